"""Controls: would any change of this size help, or what was learned on any other video?

random: in place of what was learned each parameter moves from its start in a random direction, as
far as it had moved. other: what a finished run has learned on a video of another source. What is
left of a gain beside both was learned, and on the video itself.
"""

import functools
import hashlib
import json

import torch

from common.errors import UsageError, VideoError
from common.loss import random_stream
from devices import shards

STREAM = "control"
ROUNDED = 0.05  # of a random change, at most, by the type of the parameters


def add_arguments(group):
    group.add_argument(
        "--control", choices=("random", "other"), changes="adaptation",
        help="in place of what was learned a random change of the same norm; or, with --adapter "
        "RUN/videos, what was learned on a video of another source",
    )  # fmt: skip


def check(args):
    """To be called once --steps has its default."""
    if args.control == "other" and args.adapter is None:
        raise UsageError(
            "--control other: needs --adapter RUN/videos, of a finished run with --save-adapter"
        )
    if args.control == "other" and args.steps:
        raise UsageError(
            f"--control other: takes what was learned as it is; leave out --steps {args.steps}"
        )
    if args.control and args.adapter and not args.steps:
        refuse_lender(args)
    if args.control == "random" and not args.steps and args.adapter is None:
        raise UsageError(
            "--control random: with --steps 0 nothing is learned that it could replace; give "
            "--steps of 1 or more, or --adapter"
        )


def refuse_lender(args):
    """Raises UsageError for adapters that the control cannot take the place of: for `other` those
    that began at other videos', from which what was learned on a video alone is not to be told; for
    `random` those that began elsewhere than this run's parameters do."""
    if args.control == "random" and (args.adapter / "adapter_config.json").is_file():
        raise UsageError(
            f"--control random: --adapter {args.adapter} is peft's, which draws its start and does "
            "not say where that was; give RUN/videos, of a run with --save-adapter"
        )
    its, names = lender_arguments(args), ["adapter", "start_from"]
    names += ["carry_over", "reptile"] if args.control == "other" else []
    for name in names:
        if its.get(name):
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(
                f"--control {args.control}: --adapter {args.adapter} is of a run with {flag}; give "
                "one in which each video begins alone"
            )


def lender_arguments(args):
    """Of the run whose adapters, one a video, --adapter is; {} where it is no such folder."""
    if args.adapter.suffix == ".adapter" or not args.adapter.is_dir():
        return {}
    its = read(args.adapter.parent / "config.json").get("arguments")
    return its if isinstance(its, dict) else {}


def begins_as_a_chain(args):
    """Whether a random control begins where all videos of its lender began."""
    if args.control != "random" or args.steps or args.adapter is None:
        return False
    its = lender_arguments(args)
    return bool(its.get("steps") and (its.get("carry_over") or its.get("reptile")))


class Control:
    """What --control does in one adaptation. origin: copies of the parameters where what it
    replaces began, None where none are needed; said: for the video's JSON."""

    def __init__(self, method, clip, args):
        self.method, self.clip, self.args, self.said = method, clip, args, {}
        self.origin = self.copies()  # before --adapter

    def copies(self):
        if self.args.control != "random":
            return None
        return [shards.kept(p) for p in self.method.named_parameters().values()]

    def begin(self):
        """Called where the updates begin. Without updates it is what --adapter gave that counts."""
        if self.args.steps:
            self.origin = self.copies()
        else:
            self.apply()

    def end(self):
        """Called after the updates."""
        if self.args.steps:
            self.apply()

    def apply(self):
        if self.args.control == "random":
            scatter(self.method.named_parameters().values(), self.origin, self.clip)
        if self.args.control:
            self.said = {"control": self.args.control}
        if self.args.control == "other":
            name = lender(self.args, self.clip.video)
            source = sources(self.args.adapter)[name]
            self.said |= {"control_video": name, "control_source": source}


@torch.no_grad()
def scatter(parameters, origin, clip):
    """Puts in place of each parameter's change from its start a random one of the same L2 norm, of
    normal numbers from the video's own stream."""
    generator = random_stream(clip.seed, clip.video.id, STREAM)
    for parameter, first in zip(parameters, origin, strict=True):
        direction = torch.randn(parameter.shape, generator=generator)
        moved, length = shards.norm(parameter - first), shards.norm(direction)
        change = (direction * (moved / length).float()).to(shards.local(parameter).device)
        shards.put(parameter, shards.whole(first.detach()).to(change) + change)
        left = shards.norm(parameter - first)
        if not torch.isclose(left, moved, rtol=ROUNDED):
            raise UsageError(
                f"--control random: of a change of norm {moved:.3g} rounding to {parameter.dtype} "
                f"leaves {left:.3g}; give --weights fp32, or an optimizer with float32 copies"
            )


def lender(args, video):
    """Id of the video whose adapter of --adapter this one gets: its own or, with --control other,
    that of the next video of another source, in a circle that the seed orders: where the same
    videos give and take, each gives about as often. Raises VideoError where there is none."""
    if args.control != "other":
        return video.id
    own, found = place(args.seed, video.id), sources(args.adapter)
    others = [name for name, source in found.items() if source != video.source and name != video.id]
    if not others:
        raise VideoError(
            f"--adapter {args.adapter}: has no adaptation of another source than {video.source}"
        )
    return min(others, key=lambda name: ((at := place(args.seed, name)) < own, at))


@functools.cache
def place(seed, name):
    return hashlib.sha256(f"{seed}\n{name}\n{STREAM}".encode()).digest()


@functools.cache
def sources(folder):
    """{id: source} of the finished videos of a run's folder `videos` whose adapters are there.
    Raises UsageError where these are not of two sources or more."""
    found = {}
    for path in folder.glob("*.json"):
        name, record = path.stem, read(path)
        saved = (f"{name}.safetensors", f"{name}.adapter")
        if record.get("status") == "done" and any((folder / file).exists() for file in saved):
            found[name] = str(record.get("source", name))
    if len({*found.values()}) < 2:
        raise UsageError(
            f"--adapter {folder}: --control other needs finished videos of two sources or more "
            f"with their adapters, found {len(found)}; give the folder videos of a run with "
            "--save-adapter"
        )
    return found


def read(path):
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}
