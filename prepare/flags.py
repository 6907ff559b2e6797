"""Flags of every preparation, and what their values may be."""

import argparse

from common.values import at_least, folder, frame_size, not_negative, positive
from common.video import LARGEST
from prepare.make import FASTEST, SLOWEST

LONGEST_SIDE = 8192


def add_arguments(parser, count=100, max_cut=0.22):
    """Flags of every preparation, with defaults. count: how many clips, None for all that pass."""
    parser.add_argument(
        "--out", type=folder, required=True, metavar="DIR", help="clips and manifest"
    )
    parser.add_argument(
        "--count", type=at_least(1), default=count,
        help=f"clips, exactly (default: {count or 'all that pass'})",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=42, help="of the order that is chosen in")
    parser.add_argument(
        "--size", type=clip_size, default=(480, 832), metavar="WxH",
        help="scaled with the aspect kept, and cropped at the centre (default: 832x480)",
    )  # fmt: skip
    parser.add_argument("--fps", type=frame_rate, help="frame rate; a file's own where not given")
    parser.add_argument(
        "--min-motion", type=not_negative, default=0.05,
        help="mean optical flow, pixels per frame at 120x72; below it a clip is static "
        "(default: 0.05)",
    )  # fmt: skip
    parser.add_argument(
        "--max-cut", type=not_negative, default=max_cut,
        help="how far one frame difference, in 0..1, may stand above its neighbours (default: "
        f"{max_cut}; of cuts between real scenes 0.22 finds two in three, 0.12 all but one in 60)",
    )  # fmt: skip


def add_lengths(parser):
    """For stretches that a data set says: clips as long as these are, of each source one."""
    parser.set_defaults(per_source=1)
    parser.add_argument(
        "--min-frames", type=at_least(1), default=46, help="anchor + generated frames (default: 46)"
    )
    parser.add_argument(
        "--max-frames", type=at_least(1), default=300, help="longer ones are cut (default: 300)"
    )


def clip_size(text):
    """(height, width), both even, as the encoder wants them."""
    height, width = frame_size(text)
    even = all(2 <= side <= LONGEST_SIDE and side % 2 == 0 for side in (height, width))
    if not even or height * width > LARGEST:
        raise argparse.ArgumentTypeError(
            f"must be even numbers up to {LONGEST_SIDE}, as 832x480, got {text[:30]}"
        )
    return height, width


def frame_rate(text):
    value = positive(text)
    if not SLOWEST <= value <= FASTEST:
        raise argparse.ArgumentTypeError(
            f"must be {SLOWEST:g} to {FASTEST} frames a second, got {text[:30]}"
        )
    return value
