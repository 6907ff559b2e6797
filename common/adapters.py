"""Adapted parameters that --save-adapter has written, used again."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from common.control import lender
from common.errors import UsageError, VideoError
from devices import shards

PEFT = "adapter_model.safetensors"  # in a folder of peft's
FACTS = "adasteer.json"  # beside it, or a key in the header of a plain file: facts()


def add_arguments(group):
    group.add_argument(
        "--adapter", type=Path, metavar="PATH", changes="adaptation", known_by="adapter_sha256",
        help="start from saved parameters: a file (of LoRA a folder) for all videos, or another "
        "run's folder videos with each one's own",
    )  # fmt: skip


def facts(method, args, **more):
    """What an adapter says of itself, as text: the method's name, its own flags, and more."""
    return json.dumps({"method": method, "flags": own_flags(args)} | more)


def own_flags(args):
    """The method's own, as text; which they are is in what parse_args found."""
    return {name: str(getattr(args, name)) for name, said in args.flags.items() if said["own"]}


@torch.no_grad()
def load_adapter(path, method, args=None):
    """Puts saved parameters into a method of the same kind and size and, where args are given, of
    the same flags. Raises UsageError where they are another's."""
    tensors, said = read_adapter(Path(path))
    refuse_other(path, said, type(method).__name__, args)
    parameters = method.named_parameters()
    shapes = [{k: list(x.shape) for k, x in found.items()} for found in (tensors, parameters)]
    for name in dict.fromkeys([*parameters, *tensors]):
        there, here = (found.get(name, "nothing") for found in shapes)
        if there != here:
            raise UsageError(
                f"--adapter {path}: {name} is {there} there, {here} here; give the flags and the "
                "checkpoint that it was saved with"
            )
    for name, parameter in parameters.items():
        if not tensors[name].isfinite().all():
            raise UsageError(f"--adapter {path}: {name} is not finite; save it anew")
        shards.put(parameter, tensors[name])


def check_adapters(args, videos):
    """Raises UsageError where what --adapter gives to these videos was saved with another method or
    with other flags; known before a weight of the model is read."""
    for video in videos if args.adapter else ():
        try:
            path = adapter_of(args.adapter, lender(args, video))
        except VideoError:  # it will be skipped
            continue
        said = read_adapter(path, tensors=False)[1]
        refuse_other(path, said, args.method, args)
        if path == args.adapter:  # the same for all
            refuse_seen(path, said, videos)
            return


def refuse_seen(path, said, videos):
    """Raises UsageError where what was learned on sources of these videos would be scored by
    them."""
    both = {str(source) for source in said.get("learned_on", ())} & {v.source for v in videos}
    if both:
        raise UsageError(
            f"--adapter {path}: was learned on the source {min(both)}, which this run scores; give "
            f"--videos without the {len(both)} that it has seen"
        )


def refuse_other(path, said, method, args):
    """Raises UsageError where what an adapter says of itself does not hold here: the method and,
    where args are given, its own flags."""
    own = own_flags(args) if args else {}
    compared = [("method", said.get("method"), method)]
    compared += [
        (args.flags[name]["names"][0], said.get("flags", {}).get(name), here)
        for name, here in own.items()
    ]
    for what, there, here in compared:
        if there not in (None, here):
            raise UsageError(f"--adapter {path}: was saved with {what} {there}, here it is {here}")


def read_adapter(path, tensors=True):
    """Its tensors by name, if they are wanted, and what it says of itself. Raises UsageError."""
    try:
        with safe_open(path / PEFT if path.is_dir() else path, "pt") as opened:
            found = {name: opened.get_tensor(name) for name in opened.keys() if tensors}
            said = (opened.metadata() or {}).get(FACTS, "{}")
        if (path / FACTS).is_file():
            said = (path / FACTS).read_text(encoding="utf-8")
        said = dict(json.loads(said))
        if not isinstance(said.get("flags", {}), dict):
            raise TypeError("its flags are no table")
        if not isinstance(said.get("learned_on", []), list):
            raise TypeError("what it was learned on is no list")
        return found, said
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise UsageError(
            f"--adapter {path}: is no adapter ({error}); give what --save-adapter wrote"
        ) from error


def adapter_of(path, video_id):
    """The file or folder with the video's. Raises VideoError where there is none of it."""
    if not is_of_each_video(path):
        return path
    for name in (f"{video_id}.safetensors", f"{video_id}.adapter"):
        if (path / name).exists():
            return path / name
    raise VideoError(f"--adapter {path}: has no {video_id}.safetensors or {video_id}.adapter")


def is_of_each_video(path):
    """Whether it is a folder with adapters, not one of them."""
    return path.is_dir() and not (path / PEFT).is_file()


def adapter_files(path):
    """All files of --adapter that may be used. Raises UsageError where there is none."""
    inside = [path, *path.glob("*.adapter")] if path.is_dir() else []
    files = [file for folder in inside for file in folder.glob("*.safetensors")]
    if path.is_file():
        files = [path]
    if not files:
        raise UsageError(
            f"--adapter {path}: holds no adapter; give a .safetensors file or an .adapter folder "
            "that --save-adapter wrote, or the folder of these"
        )
    return sorted(files)
