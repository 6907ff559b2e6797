"""How far the rows of a sweep are, from their folders."""

from common.claims import is_live
from common.data import list_videos
from common.results import plain_arguments, read_json
from common.run import NEUTRAL


def status(row):
    """Numbers of videos done, running (claimed by a live worker), skipped and missing, and why the
    first was skipped."""
    counts, reasons = dict(done=0, running=0, skipped=0, missing=0), []
    for video in videos_of(row.args):
        path = row.out / "videos" / f"{video.id}.json"
        record = read_json(path) or {"status": "missing"}
        running = record["status"] != "done" and is_live(path.with_suffix(".claim"))
        counts["running" if running else record["status"]] += 1
        if record["status"] == "skipped":
            reasons.append(record["reason"])
    return counts | {"why skipped": reasons[0] if reasons else ""}


def videos_of(args):
    videos, _ = list_videos(args.videos, args.prompt, allow_empty=True)
    return videos[args.batch_start : args.batch_end]


def is_complete(row):
    """Whether every video is done, with the flags that the row has now."""
    there = (read_json(row.out / "config.json") or {}).get("arguments", {})
    here = plain_arguments(row.args)
    if any(there.get(name) != here[name] for name in here.keys() - NEUTRAL):
        return False
    counts = status(row)
    return counts["done"] == len(videos_of(row.args))
