"""Panda-70M -> clips and a manifest.

    python -m prepare.panda70m panda70m_testing.csv --videos downloads --out data/panda70m

With --download, videos that are missing there are fetched first.

SOURCE is one of the official CSVs, in which `timestamp` and `caption` are lists written as text: a
row is a video of several clips. --videos holds the videos as <videoID>.<suffix>.
"""

import ast
import hashlib
import heapq
import math
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

from runs.exits import run_script  # first: signals, and how torch's threads wait

# isort: split
from tqdm import tqdm

from common.errors import UsageError
from prepare.flags import add_arguments, add_lengths
from prepare.make import Candidate, one_line
from prepare.select import prepare
from runs.lists import SUFFIXES, read_csv
from runs.names import unusable
from runs.parser import Parser

CATEGORIES = {  # by the first word found; others are "other"
    "people": "man woman person people boy girl hands baby crowd",
    "animals": "dog cat bird horse fish animal lion elephant bear",
    "vehicles": "car truck train boat plane motorcycle bus bicycle",
    "nature": "mountain river beach forest ocean sky tree snow flower",
    "food": "food cooking kitchen cake meat bowl plate",
    "sport": "football soccer basketball tennis game player",
    "city": "street building city house road room",
}
COLUMNS = {"videoID", "url", "timestamp", "caption"}
# what yt-dlp's template takes as it is: no %(field)s, no $VARIABLE, no other folder
FETCHABLE = re.compile(r"[\w=+, -][\w=+,. -]*", re.ASCII)
FORMAT = "bestvideo[height<=720][ext=mp4]/best[height<=720]"


def seconds(text):
    """'0:01:02.500' -> 62.5"""
    total = 0.0
    for part in text.split(":"):
        total = 60 * total + float(part)
    if not 0 <= total < math.inf:
        raise ValueError(f"{text[:30]!r} is no time")
    return total


def as_list(text, column, line):
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # e.g. nested deep
        value = None
    if not isinstance(value, list):
        raise UsageError(f"SOURCE, line {line}: {column} is not a list: {str(text)[:60]!r}")
    return value


def category(caption):
    """The first of CATEGORIES that has a word of the caption."""
    words = set(re.findall(r"[a-z]+", caption.lower()))
    for name, known in CATEGORIES.items():
        if words & {w for word in known.split() for w in (word, word + "s")}:
            return name
    return "other"


def read_rows(path):
    """(line, row) one by one: the list for training has millions. Raises UsageError."""
    for line, row in read_csv(path, COLUMNS, f"SOURCE {path}"):
        yield line, {name: row[name] or "" for name in COLUMNS}


def clips_of(row, line):
    """[(start, stop, caption)] of a row's clips with a caption, in seconds. Raises UsageError."""
    times = as_list(row["timestamp"], "timestamp", line)
    captions = as_list(row["caption"], "caption", line)
    if not all(isinstance(caption, str) for caption in captions):
        raise UsageError(f"SOURCE, line {line}: captions must be text: {str(captions)[:60]!r}")
    if len(times) != len(captions):
        raise UsageError(f"SOURCE, line {line}: {len(times)} timestamps, {len(captions)} captions")
    try:
        return [
            (seconds(start), seconds(stop), one_line(caption))
            for (start, stop), caption in zip(times, captions, strict=True)
            if one_line(caption)
        ]
    except (TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"SOURCE, line {line}: timestamps must be pairs as "
            f"['0:00:01.000', '0:00:04.400'] ({error})"
        ) from error


def candidates(path, folder):
    """The clips of all videos that the folder holds, one source a video."""
    files = {p.stem: p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES}
    found, listed, clips = [], 0, Counter()
    for line, row in read_rows(path):
        listed, video = listed + 1, row["videoID"]
        if video not in files:
            continue
        for start, stop, caption in clips_of(row, line):
            name = f"{video}_{clips[video]:03d}"
            clips[video] += 1  # a video may have several rows
            found.append(
                Candidate(name, files[video], caption, category(caption), video, start, stop)
            )
    if not found:
        raise UsageError(
            f"--videos {folder}: holds none of the CSV's {listed} videos as <videoID>.mp4; "
            "fetch them, perhaps with --download"
        )
    return found


def download(path, folder, args):
    """Fetches three videos for each clip that is asked for, since many are gone or rejected."""
    if not shutil.which("yt-dlp"):
        raise UsageError("--download: needs yt-dlp (pip install yt-dlp)")
    refused = Counter()

    def ranked():  # all rows alike, without holding them
        for _, row in read_rows(path):
            video, url = row["videoID"], row["url"]
            if why := unfetchable(video, url):
                refused[why] += 1
            else:
                yield hashlib.sha256(f"{args.seed} {video}".encode()).digest(), video, url

    wanted = heapq.nsmallest(3 * args.count, ranked())
    for why, count in refused.most_common():
        print(f"not fetched {count}: {why}")
    folder.mkdir(parents=True, exist_ok=True)
    for _, video, url in tqdm(wanted, "downloading", unit="video"):
        if not any(p.stem == video for p in folder.iterdir()):
            command = ["yt-dlp", "--quiet", "-f", FORMAT, "-o", f"./{video}.%(ext)s", "--", url]
            subprocess.run(command, cwd=folder)  # the folder may hold what a template may not


def unfetchable(video, url):
    """Why a row's video is not handed to yt-dlp, or None."""
    if why := unusable(video):
        return f"its videoID {why}"
    if not FETCHABLE.fullmatch(video):
        return "its videoID is none of YouTube's"
    return None if url.lower().startswith(("http://", "https://")) else "its url is not of http"


def main():
    parser = Parser(__doc__, "%(prog)s SOURCE --videos DIR --out DIR [flags]")
    parser.add_argument("source", type=Path, metavar="SOURCE", help="an official CSV")
    parser.add_argument("--videos", type=Path, required=True, metavar="DIR", help="the videos")
    parser.add_argument("--download", action="store_true", help="fetch missing ones with yt-dlp")
    add_arguments(parser)
    add_lengths(parser)
    args = parser.parse_args()
    if not args.source.is_file():
        raise UsageError(f"SOURCE {args.source}: no such file")
    if args.download:
        download(args.source, args.videos, args)
    if not args.videos.is_dir():
        raise UsageError(f"--videos {args.videos}: no such folder")
    return prepare(candidates(args.source, args.videos), args)


if __name__ == "__main__":
    run_script(main)
