"""Which videos of a list a run works on, and which of them are done."""

import hashlib
import os
from pathlib import Path

from common.data import file_facts, real, sha256
from common.errors import UsageError
from common.values import at_least, shard
from runs.captions import captioned
from runs.carry import in_order
from runs.identity import ROOT
from runs.lists import list_videos
from runs.names import printable
from runs.results import read_record

DEMO = ROOT / "nano" / "demo" / "manifest.csv"


def add_arguments(group):
    group.add_argument(
        "--videos", type=Path, default=DEMO, metavar="PATH",
        changes="generation", known_by="manifest_sha256",
        help="CSV with filename,caption; or a folder or file, with a caption in clip.txt beside "
        "clip.mp4 or --prompt",
    )  # fmt: skip
    group.add_argument(
        "--prompt", metavar="TEXT", changes="generation",
        help="caption of a file, or of a folder's files, that has no .txt beside it",
    )  # fmt: skip


def add_other_videos(group):
    group.add_argument(
        "--forgetting", type=Path, metavar="MANIFEST",
        changes=None, known_by="forgetting_sha256",  # beside the scores, no score
        help="measure the loss on another clip of this list before and after adapting",
    )  # fmt: skip


def add_range(group):
    group.add_argument(
        "--batch-start", type=at_least(0), default=0, metavar="I", changes=None, baseline=True,
        help="first video of the list",
    )  # fmt: skip
    group.add_argument(
        "--batch-end", type=at_least(0), metavar="J", changes=None, baseline=True,
        help="end before this video of the list",
    )  # fmt: skip
    group.add_argument(
        "--shard", type=shard, default="0/1", metavar="I/N", changes=None,
        help="the I-th of N parts of these",
    )  # fmt: skip
    group.add_argument(
        "--limit", type=at_least(1), metavar="N", changes=None, baseline=True,
        help="at most N videos of the range",
    )  # fmt: skip
    group.add_argument(
        "--dry-run", action="store_true", changes=None, help="print what would run, and end"
    )


def check(args):
    if args.batch_end is not None and args.batch_end < args.batch_start:
        raise UsageError(
            f"--batch-end {args.batch_end} lies before --batch-start {args.batch_start}"
        )


def chosen_videos(args):
    """The videos of this range, with their captions, and the SHA-256 of the whole list."""
    videos, digest = list_videos(
        args.videos, args.prompt, allow_empty=args.caption is not None or args.allow_poor_captions
    )
    videos = in_order(in_range(captioned(videos, args), args), args)
    refuse_overwriting(videos, args)
    return videos, digest


def other_videos(args):
    """The videos that forgetting is measured on, two so that one of them is not the video that is
    adapted to, and the SHA-256 of the list and of these."""
    if not args.forgetting:
        return [], None
    listed, digest = list_videos(args.forgetting, flag="--forgetting")
    others = listed[:2]
    refuse_overwriting(others, args, "--forgetting")
    files = [sha256(video.path) for video in others if video.path.is_file()]
    return others, hashlib.sha256("\n".join([digest, *files]).encode()).hexdigest()


def in_range(videos, args):
    """From --batch-start to --batch-end, of those the first --limit, of those the shard."""
    chosen = videos[args.batch_start : args.batch_end]
    if not chosen:
        raise UsageError(
            f"--batch-start {args.batch_start}: {args.videos} lists {len(videos)} videos, the "
            "range holds none of them"
        )
    chosen, (index, count) = chosen[: args.limit], args.shard
    first, last = (len(chosen) * i // count for i in (index, index + 1))
    return chosen[first:last]


def refuse_overwriting(videos, args, flag="--videos"):
    """Raises UsageError where a video or what it links to lies in a folder that results are written
    to, or that folder in the checkpoint."""
    out, own = args.out, "which results could overwrite; choose a folder of its own"
    if real(out).is_relative_to(real(args.checkpoint)):
        raise UsageError(f"--out {out}: lies in --checkpoint {args.checkpoint}, {own}")
    results = [real(out), real(out / "videos")]
    paths = {path for video in videos for path in (video.path, *video.beside.values())}
    folders = {path.parent for path in paths}
    targets = {path for path in paths if os.path.islink(path)}
    for place in folders | targets:
        if any(real(place).is_relative_to(folder) for folder in results):
            raise UsageError(f"--out {out}: holds videos of {flag}, in {place}, {own}")


def written(folder):
    """{id: when its record was last written, in nanoseconds} of a folder of records."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        return {Path(e.name).stem: e.stat().st_mtime_ns for e in entries if is_record(e.name)}


def is_record(name):
    return name.endswith(".json") and not name.startswith(".")


def done_among(videos, folder):
    """Ids of the videos that are done by the records in a folder."""
    there = written(folder)
    return {v.id for v in videos if v.id in there and is_done(v, folder / f"{v.id}.json")}


def is_done(video, path):
    """Whether the record at `path` is that of the finished video. Raises UsageError where it was
    made from another file."""
    record = read_record(path)
    if record is None or record["status"] != "done":
        return False
    if other := other_file(video, record):
        raise UsageError(
            f"--videos: {other} is not the file that {path} was made from; choose another --out"
        )
    return True


def other_file(video, record):
    """The first of the video's files, and of those beside it, that is not the record's, or None.
    One that is not there, or not in the record, passes."""
    files = {"video": video.path, **video.beside}
    there = (n for n, path in files.items() if f"{n}_sha256" in record and path.is_file())
    return next((files[n] for n in there if not same_file(files[n], record, n)), None)


def same_file(path, record, name):
    """By size and time where these are the record's, else by content."""
    known = record.get(f"{name}_file"), record[f"{name}_sha256"]
    return file_facts(path) == known[0] or sha256(path) == known[1]


def setting(args, geometry, window):
    """One line: which model, at which frame size, and what each frame is for."""
    height, width = args.size or geometry.size
    adapt, condition, generated = (f"{a}..{b - 1}" for a, b in window.indices().values())
    return printable(
        f"{geometry.class_name} {args.checkpoint} at {width}x{height}: frames {adapt} adapt, "
        f"{condition} condition, {generated} are generated{zero_shot(args, geometry)}"
    )


def zero_shot(args, geometry):
    """What that line adds where the model was trained with another context."""
    asked = geometry.latents_of(args.cond_frames), args.context_latents
    trained = geometry.trained_contexts
    if trained is None or {*asked} <= {*trained}:
        return ""
    lengths = " or ".join(map(str, trained))
    return (
        f"; zero-shot: {asked[0]} context latents to generate and {asked[1]} to adapt, where "
        f"training had {lengths}; the preflight says whether it works"
    )
