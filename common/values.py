"""What a flag's value may be: functions for argparse's `type`."""

import argparse
import math
from pathlib import Path

WIDEST = 8192  # pixels of a frame's side
MANY = 10**9  # of anything that is counted: more than any machine can do


def at_least(low, high=MANY):
    def whole(text):
        value = int(text)
        if value < low:
            raise argparse.ArgumentTypeError(f"must be at least {low}, got {value}")
        if value > high:
            raise argparse.ArgumentTypeError(f"must be at most {high}, got {text[:30]}")
        return value

    whole.__name__ = "whole number"  # argparse names the type in its message
    return whole


def folder(text):
    if not text.strip():
        raise argparse.ArgumentTypeError("must not be empty; give a folder")
    if Path(text).is_file():
        raise argparse.ArgumentTypeError(f"{text}: is a file; give a folder")
    return Path(text)


def finite(text):
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a finite number, got {text}")
    return value


def positive(text):
    if not finite(text) > 0:
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text}")
    return float(text)


def not_negative(text):
    if not finite(text) >= 0:
        raise argparse.ArgumentTypeError(f"must not be negative, got {text}")
    return float(text)


def share(text):
    if not 0 <= finite(text) <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1, got {text}")
    return float(text)


def frame_size(text):
    """'832x480' (width x height) -> (480, 832)."""
    try:
        width, height = (int(part) for part in text.lower().split("x"))
    except ValueError:
        width = height = 0
    if not (0 < width <= WIDEST and 0 < height <= WIDEST):
        raise argparse.ArgumentTypeError(
            f"must be WIDTHxHEIGHT such as 832x480, {WIDEST} at most, got {text[:30]}"
        )
    return height, width


def count_of_blocks(text):
    if text == "none":
        return 0
    return text if text in ("auto", "all") else at_least(0)(text)


def groups(text):
    """A number of groups, "auto", or '4,4' -> (4, 4)."""
    if "," in text:
        return tuple(map(at_least(1), text.split(",")))
    return text if text == "auto" else at_least(1)(text)


def given_flags(args, *names):
    """Those of them, as a user writes them, that stand on the command line."""
    given = {name for each in args.headings.values() for name, there in each.items() if there}
    return [args.flags[name]["names"][0] for name in names if name in given]


def blocks(text):
    """'all', 'last:K' or "0,5,7": kept as text; `chosen_blocks` knows the depth."""
    if text != "all":
        numbers = text.removeprefix("last:").split(",")
        if not all(n.isdecimal() for n in numbers) or ("last:" in text and len(numbers) > 1):
            raise argparse.ArgumentTypeError(f"must be all, last:K or a list as 0,5,7, got {text}")
    return text


def numbers(text):
    """'0.25,0.5' -> (0.25, 0.5), each in (0, 1]."""
    values = tuple(finite(part) for part in text.split(","))
    if not all(0 < value <= 1 for value in values):
        raise argparse.ArgumentTypeError(f"must be sigmas in (0, 1], as 0.25,0.5, got {text}")
    return values


def shard(text):
    """'2/8' -> (2, 8): part 2 of the parts 0..7."""
    try:
        index, count = (int(part) for part in text.split("/"))
    except ValueError:
        index, count = 0, 0
    if not 0 <= index < count:
        raise argparse.ArgumentTypeError(f"must be I/N with I in 0..N-1, as 0/4, got {text}")
    return index, count
