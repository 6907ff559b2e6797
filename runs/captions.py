"""Are a list's captions good enough to adapt and sample with? The thresholds and the verdict."""

from collections import Counter
from dataclasses import replace

from common.errors import UsageError

ENOUGH = 20  # videos; below it shares say nothing
GENERIC = {
    "video", "videos", "a video", "clip", "clips", "untitled", "unknown", "none", "n/a", "test",
    "movie", "footage",
}  # fmt: skip
# shares of the list, at most
LIMITS = {"empty": 0.05, "repeated": 0.9, "the same": 0.5, "generic": 0.2}


def add_arguments(group):
    group.add_argument(
        "--caption", metavar="TEXT", changes="generation",
        help="for every video, whatever the list says",
    )  # fmt: skip
    group.add_argument(
        "--allow-poor-captions", action="store_true", changes=None, baseline=True,
        help="run a list whose captions are often empty, the same or say nothing",
    )  # fmt: skip


def caption_shares(captions):
    """Shares of captions that are empty, repeat an earlier one (of fewer than ENOUGH), are the
    commonest one, or say nothing: one word, one of GENERIC, or a list that was written as text."""
    cleaned = [" ".join(caption.lower().strip(" .").split()) for caption in captions]
    count, times = max(1, len(cleaned)), Counter(c for c in cleaned if c)
    generic = [c for c in cleaned if c in GENERIC or is_one_word(c) or c.startswith("['")]
    return {
        "empty": sum(not c for c in cleaned) / count,
        "repeated": sum(n - 1 for n in times.values()) / count if len(times) < ENOUGH else 0.0,
        "the same": max(times.values(), default=0) / count,
        "generic": len(generic) / count,
    }


def is_one_word(caption):
    return caption != "" and " " not in caption and caption.isascii()


def distinct(videos):
    """Their captions; what is said of several clips of one source stands once."""
    return [caption for _, caption in dict.fromkeys((v.source, v.caption) for v in videos)]


def poor_captions(captions):
    """Why these captions should not be used, or None."""
    if len(captions) < ENOUGH:
        return None
    shares = caption_shares(captions)
    found = [
        f"{100 * shares[name]:.0f} % are {name} (at most {100 * limit:.0f} %)"
        for name, limit in LIMITS.items()
        if shares[name] > limit
    ]
    return ", ".join(found) or None


def captioned(videos, args):
    """The videos with the captions of a run: --caption, or their own. Raises UsageError where those
    are poor."""
    if args.caption is not None:
        return [replace(video, caption=args.caption) for video in videos]
    if args.prompt:
        return videos
    poor = poor_captions(distinct(videos))
    if poor and not args.allow_poor_captions:
        raise UsageError(
            f"--videos {args.videos}: of its captions {poor}; the model adapts and samples with "
            "them. Better ones, --caption TEXT, or --allow-poor-captions"
        )
    return videos
