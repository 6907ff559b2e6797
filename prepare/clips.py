"""Your own long videos -> clips and a manifest.

    python -m prepare.clips videos --out data/mine --length 97

SOURCE is a folder of videos (not recursive), one video, or a CSV with filename,caption. Each video
is cut into clips that follow one another; those with a scene change in them are rejected. What
holiday.txt beside holiday.mp4 says, or --prompt, is the caption of all clips of that video, and the
video is their source: intervals of a comparison are taken over sources.

MP4 and MOV are entered where a clip begins; other containers are decoded from their first frame for
each clip, which takes long in long videos.
"""

import math
from pathlib import Path

from runs.exits import run_script  # first: signals, and how torch's threads wait

# isort: split
import av

from common.errors import VideoError
from common.values import at_least
from common.video import announced_frames, opened
from prepare.flags import add_arguments
from prepare.make import FASTEST, SLOWEST, Candidate, one_line
from prepare.select import prepare
from runs.lists import list_videos
from runs.parser import Parser


def candidates(args):
    """Stretches of all videos; of one that cannot be read or is too short its beginning, whose
    verdict says so. Raises UsageError."""
    videos, _ = list_videos(args.source, args.prompt, flag="SOURCE")
    return [
        Candidate(
            f"{video.id}_{first:06d}", video.path, one_line(video.caption),
            video.columns.get("category") or video.id, video.source, first=first,
        )
        for video in videos
        for first in first_frames(video.path, args) or [0]
    ]  # fmt: skip


def first_frames(path, args):
    """Index of the first frame of each clip that the video has room for."""
    try:
        with opened(path) as (container, stream):
            known = announced_frames(stream) if "mp4" in container.format.name else 0
            count = known or sum(packet.size > 0 for packet in container.demux(stream))
            rate = float(stream.average_rate or 24)
    except (VideoError, av.FFmpegError):
        return []
    if not SLOWEST <= rate <= FASTEST:
        return []
    pace = rate / (args.fps or rate)  # frames of the video for one of a clip
    last = count - 1 - (args.length - 1) * pace
    stride = (args.stride or args.length) * pace
    return [math.ceil(k * stride) for k in range(math.floor(max(last, -1) / stride) + 1)]


def main():
    parser = Parser(__doc__, "%(prog)s SOURCE --out DIR [flags]")
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder, video or CSV")
    parser.add_argument("--prompt", metavar="TEXT", help="caption of videos without a .txt")
    parser.add_argument(
        "--length", type=at_least(1), default=97, metavar="N",
        help="frames of a clip (default: 97; a run needs those up to --anchor and --gen-frames "
        "more, by default 46: more leave room for a later anchor or a longer window)",
    )  # fmt: skip
    parser.add_argument(
        "--stride", type=at_least(1), metavar="N",
        help="frames from the start of one clip to that of the next; below --length they overlap "
        "(default: --length)",
    )  # fmt: skip
    parser.add_argument(
        "--per-video", type=at_least(1), dest="per_source", metavar="N",
        help="clips of one video, at most (default: all that pass)",
    )  # fmt: skip
    add_arguments(parser, count=None, max_cut=0.12)  # a data set's stretches have few cuts
    args = parser.parse_args()
    args.min_frames = args.max_frames = args.length
    return prepare(candidates(args), args)


if __name__ == "__main__":
    run_script(main)
