"""How far the rows of a sweep are, from their folders."""

import functools

from common.claims import is_live
from common.data import list_videos
from common.identity import difference, fingerprint, plain_arguments, read_config
from common.results import read_json
from common.run import in_range


def status(row):
    """Numbers of videos done, running (claimed by a live worker), skipped and missing, and why the
    first was skipped."""
    counts, reasons = dict(done=0, running=0, skipped=0, missing=0), []
    for video in videos_of(row.args):
        path = row.out / "videos" / f"{video.id}.json"
        record = read_json(path)
        whole = isinstance(record, dict) and record.get("status") in ("done", "skipped")
        state = record["status"] if whole else "missing"
        running = state != "done" and is_live(path.with_name(f"{video.id}.claim"))
        counts["running" if running else state] += 1
        if state == "skipped":
            reasons.append(record.get("reason", ""))
    return counts | {"why skipped": reasons[0] if reasons else ""}


def videos_of(args):
    videos, _ = list_videos(args.videos, args.prompt, allow_empty=True)
    return in_range(videos, args)


def is_complete(row):
    """Whether every video is done, with the flags, list and checkpoint that the row has now."""
    config = read_config(row.out)
    _, manifest_sha256 = list_videos(row.args.videos, row.args.prompt, allow_empty=True)
    asked = {
        "manifest_sha256": manifest_sha256,
        "checkpoint_sha256": known(row.args.checkpoint),
        "arguments": plain_arguments(row.args),
    }
    if config is None or difference(config, asked):
        return False  # the script will say so
    return status(row)["done"] == len(videos_of(row.args))


known = functools.cache(fingerprint)  # of a checkpoint, which all rows share
