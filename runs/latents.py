"""Runs on clips of frame features, which a predictor adapts to: their flags, and their list."""

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

from common.data import file_facts, sha256
from common.errors import UsageError, VideoError
from common.start import add_carry_over
from common.values import at_least
from predictors.clips import Entry, read_clips
from runs import carry, measures, records, todo
from runs.identity import ROOT
from runs.names import printable, unusable
from runs.parser import shown
from runs.results import read_record

SITE = {"--checkpoint": "PREDICTOR", "--videos": "CLIPS"}  # what sbatch/site.sh calls them
NANO = {"--checkpoint": ROOT / "nano" / "vjepa", "--videos": ROOT / "nano" / "demo_vjepa"}


def add_arguments(group):
    group.add_argument(
        "--videos", type=Path, default=NANO["--videos"], metavar="FOLDER",
        changes="generation", known_by="manifest_sha256",
        help="clips of frame features: what prepare.features wrote, or the study's folders",
    )  # fmt: skip
    group.add_argument(
        "--checkpoint", type=Path, default=NANO["--checkpoint"], metavar="PATH",
        changes="generation", known_by="checkpoint_sha256",
        help="predictor: a folder of config.json and weights.safetensors, or a .pt or .ckpt file",
    )  # fmt: skip


def add_protocol(group):
    add_carry_over(group)
    carry.add_order(group, "list")
    group.add_argument(
        "--adapt-frames", type=adapt_frames, default="half", metavar="half|all|K",
        changes="generation",
        help="adaptation sees a clip's first K frames; the rest is predicted after it, and scored",
    )  # fmt: skip
    group.add_argument(
        "--score", choices=("rollout", "jump"), changes="generation", baseline=False,
        help="how frames are predicted for the scores, whatever --mode learns from; jump where "
        "that is a jump",
    )  # fmt: skip
    group.add_argument(
        "--seed", type=int, default=42, changes="generation", help="of --order seed"
    )  # fmt: skip


def adapt_frames(text):
    return text if text in ("half", "all") else at_least(2)(text)


def add_device(group):
    group.add_argument(
        "--device", default="auto", changes=None, baseline=True,
        help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one",
    )  # fmt: skip


NOUN, SAME = "clip", "the same clips"  # what a baseline shares with a run
ORDER = ("adaptation", "data and model", "run")  # in the help, after the script's own
GROUPS = {  # as they are declared; None: those of the method
    "data and model": (add_arguments,),
    "adaptation": (add_protocol,),
    "own": None,
    "run": (records.add_arguments, todo.add_range, records.add_adapters, add_device),
}


def complete(args, method):
    """Fills in what presets give and checks what can be checked by now."""
    method.check(args)
    args.score = args.score or ("jump" if "jump" in args.mode else "rollout")
    if args.score == "jump" and vars(args).get("context_frames", 1) > 1:
        raise UsageError(
            f"--context-frames {args.context_frames}: not with --score jump, which predicts from "
            "frame 0"
        )
    todo.check(args)
    if not args.checkpoint.exists():
        raise UsageError(f"--checkpoint {args.checkpoint}: no such file or folder")
    if carries(args):
        carry.refuse_parts(args, "--carry-over")


def carries(args):
    return args.carry_over > 0 and args.steps > 0


def window_flags(args):
    """Those that a baseline needs beside what it takes over: it has no --mode to go by."""
    return [] if args.score == "rollout" else ["--score", args.score]


def metrics_of(args):
    return measures.of_latent_clips(carries(args), args.adapt_frames != "all")


def facts(args):
    """The list's SHA-256, as config.json has it."""
    return {"manifest_sha256": chosen(args)[1]}


def in_range(args):
    """The clips that a worker with these flags has."""
    return chosen(args)[0]


def other_file(item, record):
    """Its path where its files are not those of the record, or None."""
    return None if item.is_that_of(record) else item.path


def import_model(checkpoint):
    """There is one class of predictors, and it is imported."""


@dataclass(frozen=True)
class Item:
    """A clip of the list, as a run and its records see it."""

    entry: Entry
    place: int  # in the whole list, or in the order in which they follow from each other
    caption: str = ""
    beside: dict = field(default_factory=dict)  # no other files

    @property
    def id(self):
        return self.entry.id

    @property
    def path(self):
        return self.entry.path

    @property
    def source(self):
        return self.entry.source

    @property
    def columns(self):
        return {"source": self.source, "category": self.entry.category}

    def read(self, **widths):
        """The LatentClip. Raises VideoError with the reason where it cannot be used."""
        try:
            return self.entry.read(**widths)
        except (ValueError, OSError) as error:
            raise VideoError(str(error)) from error

    def files(self):
        return [path for path in self.entry.files() if path.exists()]

    def sha256(self):
        lines = [f"{path.name} {sha256(path)}" for path in self.files()]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def facts(self):
        return [[path.name, *file_facts(path).values()] for path in self.files()]

    def is_that_of(self, record):
        """Whether its files are those that the record was made from."""
        return self.facts() == record.get("clip_files") or self.sha256() == record["video_sha256"]


def chosen(args):
    """The clips of the range, in their order, and the SHA-256 of the whole list."""
    try:
        entries = read_clips(args.videos)
    except (ValueError, OSError) as error:
        raise UsageError(f"--videos {args.videos}: {error}") from error
    for entry in entries:
        if why := unusable(entry.id):
            raise UsageError(f"--videos {args.videos}: the id {entry.id[:60]!r} {why}")
    lines = [f"{x.id}\0{x.source}\0{x.category}" for x in entries]
    digest = hashlib.sha256("\n".join(lines).encode(errors="backslashreplace")).hexdigest()
    items = todo.in_range([Item(entry, place) for place, entry in enumerate(entries)], args)
    if carries(args):
        ordered = enumerate(carry.in_order(items, args))
        items = [replace(item, place=place) for place, item in ordered]
    todo.refuse_overwriting(items, args)
    return items, digest


def refuse_changed(item, record, path):
    if not item.is_that_of(record):
        raise UsageError(
            f"--videos: {item.path} is not what {path} was made from; choose another --out"
        )


def done_among(items, folder):
    """Ids of the items that are finished. Raises UsageError where one was made from other files."""
    found = set()
    for item in items:
        record = read_record(path := folder / f"{item.id}.json")
        if record and record["status"] == "done":
            refuse_changed(item, record, path)
            found.add(item.id)
    return found


def setting(args):
    """One line: which predictor, and what each frame is for."""
    frames = {"half": "the first half of", "all": "all frames of"}.get(
        args.adapt_frames, f"the first {args.adapt_frames} frames of"
    )
    carried = "; weights and optimiser go on from clip to clip" if carries(args) else ""
    rest = "" if args.adapt_frames == "all" else ", the rest is predicted and scored"
    return printable(f"{shown(args.checkpoint)}: {frames} each clip adapt{rest}{carried}")
