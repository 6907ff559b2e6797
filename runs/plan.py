"""What --dry-run says: the flags, the videos, and what memory and time they take, as far as files
tell."""

import math
import shlex
from pathlib import Path

from safetensors import SafetensorError, safe_open

from backbones import TRANSFORMERS
from backbones import opensora2_configs as opensora2
from backbones import opensora13_configs as opensora13
from common.errors import UsageError
from common.generation import as_text
from common.loading import pick_device
from devices.placement import bytes_of, fitting, free_bytes, working_bytes
from runs.ending import counted
from runs.flags import spelt
from runs.names import printable
from runs.parser import shown
from runs.results import read_record

# what folders are that have a name of their own
PARTS = {opensora13.DIT: "dit", opensora13.VAE: "vae"}
BETWEEN = {"size": "x", "shard": "/"}  # the numbers of a flag; else a comma


def print_plan(args, about, videos, todo, memory):
    """about: lines on what is done with each video; memory: what it takes."""
    count = counted(len(videos), args.kind.NOUN)
    print(printable(f"{args.method} on {count} of {shown(args.videos)} -> {args.out}"))
    print(*about, sep="\n")
    for title, names in args.headings.items():
        lines = [line_of(args, name, given) for name, given in names.items()]
        if any(lines):
            print(f"\n{title}:", *sorted(filter(None, lines), key=is_default), sep="\n")
    print("\n(*: given; the others are defaults, the checkpoint's own among them)\n")
    open_ids, done = {video.id for video in todo}, []
    for video in videos:
        state = "to do"
        if video.id not in open_ids:
            record = read_record(args.out / "videos" / f"{video.id}.json")
            state = f"{record['status']:5}"  # done, or in a chain skipped
            done += [record] * (record["status"] == "done")
        print(printable(f"{state}  {video.id}: {video.caption}".removesuffix(": ")))
    print("", memory, measured(done, len(todo), args.kind.NOUN), sep="\n")


def is_default(line):
    return not line.startswith("  * ")


def line_of(args, name, given):
    """A flag with its value, marked where it was given; "" where it says nothing."""
    value, mark = getattr(args, name), "* " if given else "  "
    flag = spelt(args.flags, name)
    if isinstance(value, bool):
        return printable(f"  {mark}{flag}") if given else ""
    if value is None or (value == "" and not given):
        return ""
    return printable(f"  {mark}{flag} {spelt_value(name, value)}")


def spelt_value(name, value):
    """As the flag takes it."""
    if isinstance(value, dict):
        return " ".join(f"{key}={as_text(each)}" for key, each in value.items())
    if isinstance(value, tuple):
        values = reversed(value) if name == "size" else value  # the other way round as a flag
        return BETWEEN.get(name, ",").join(map(str, values))
    if isinstance(value, list):
        return " ".join(map(str, value))
    return shlex.quote(shown(value) if isinstance(value, Path) else str(value))


def memory(args, geometry):
    """From the headers of the checkpoint's files, and on a GPU what placement plans with them."""
    device = pick_device(args.device)
    on_gpu = device.type == "cuda"
    sizes = {
        part: count * (bytes_of(args.weights) if on_gpu and part != "vae" else 4)
        for part, count in weights_in(args.checkpoint).items()
    }
    parts = ", ".join(f"{part} {gigabytes(size)}" for part, size in sizes.items())
    words = f"memory: weights by the checkpoint's files: {parts}"
    if args.weights == "fp8":
        words += " (--weights fp8, which halves linear layers, is not counted)"
    words += "\n        text encoders go once prompts are embedded; what is adapted comes on top"
    if not on_gpu:
        return f"{words}, and activations: not known before the first video"
    # tokens are squares of this side, as in all backbones so far
    height, width = args.size or geometry.size
    work = working_bytes(args, geometry, height * width // geometry.size_multiple**2)
    free = free_bytes(device)
    dit = sum(sizes.get(part, 0) for part in TRANSFORMERS)
    plan = args.offload
    if plan == "auto":
        plan = fitting(free, dit, sizes.get("vae", 0), work)
    return (
        f"{words}\n        {gigabytes(free)} are free on {device}, a step is planned with "
        f"{gigabytes(work)}: --offload {plan}"
    )


def measured(done, left, noun):
    """Of the finished videos here."""
    if not done:
        return f"time: not known before the first {noun}; the progress bar shows it then"
    each = sum(record["total_seconds"] for record in done) / len(done)
    peak = max(record["peak_memory_gb"] for record in done)
    return (
        f"time: {each:.1f} s a {noun}, the mean of {len(done)} finished here (peak {peak:.3g} GB); "
        f"{left} to do: about {each * left / 60:.3g} minutes for one worker"
    )


def gigabytes(size):
    return f"{size / 1e9:.3g} GB" if size >= 1e8 else f"{size / 1e6:.3g} MB"


def weights_in(checkpoint):
    """{part: number of weights in its safetensors files}. Raises UsageError."""
    found = {}
    for path, part in sorted(weight_files(checkpoint).items()):
        try:
            with safe_open(path, "pt") as file:
                shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}
        except (OSError, SafetensorError) as error:
            raise UsageError(f"--checkpoint: {path} cannot be read ({error})") from error
        found.setdefault(part, {}).update(shapes)
    return {part: sum(map(math.prod, shapes.values())) for part, shapes in found.items()}


def weight_files(checkpoint):
    """{file: the folder that it is in, or what it is beside the folders}."""
    places = ("*", opensora2.T5, opensora2.CLIP)
    files = [file for place in places for file in checkpoint.glob(f"{place}/*.safetensors")]
    beside = {checkpoint / opensora2.DIT: "dit", checkpoint / opensora2.VAE: "vae"}
    return {file: PARTS.get(file.parent.name, file.parent.name) for file in files} | {
        file: part for file, part in beside.items() if file.is_file()
    }
