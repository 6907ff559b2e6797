"""What is this data set? Prints what a run on it would rest on, and draws a contact sheet.

    python -m prepare.check data/ucf101/manifest.csv

Exit code 1 where something would make a run refuse or mean little: poor or empty captions, files
that do not decode, the same file twice.
"""

import argparse
from collections import Counter, defaultdict
from itertools import islice
from pathlib import Path

from runs.exits import run_script  # first: signals, and how torch's threads wait

# isort: split
import av
import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from common.data import sha256
from common.errors import VideoError
from common.video import decode, fit, opened
from prepare.make import MEASURED, largest_cut, mean_motion, shrink
from runs.captions import LIMITS, caption_shares, distinct, poor_captions
from runs.lists import list_videos
from runs.names import printable
from runs.parser import Parser

BINS = (0, 0.05, 0.1, 0.3, 1, 3, float("inf"))  # of motion, pixels per frame at 120x72
PICTURES = 400  # at most, of a contact sheet
FROZEN = 5  # identical frames in a row that are reported


def measure(path):
    """Every frame decoded: number, rate, motion, cut, longest run of identical ones, a picture."""
    grey, middle = [], None
    try:
        with opened(path) as (container, stream):
            for frame in decode(container, stream, path):
                picture = fit(frame, stream.sample_aspect_ratio, MEASURED)
                grey.append(shrink(picture))
                if len(grey) in (1, 24):
                    middle = picture
            fps, announced = float(stream.average_rate or 24), stream.frames
    except av.FFmpegError as error:
        raise VideoError(f"{len(grey)} frames decode ({error.strerror})") from error
    if not grey:
        raise VideoError("no frame decodes")
    grey = np.stack(grey)
    return {
        "frames": len(grey), "lost": max(0, announced - len(grey)), "fps": fps,
        "motion": mean_motion(grey), "cut": largest_cut(grey), "still": longest_still(grey),
        "picture": middle.permute(1, 2, 0).numpy(),
    }  # fmt: skip


def longest_still(grey):
    """Longest run of frames that differ from the one before by less than coding noise."""
    still = np.abs(np.diff(grey.astype(np.float32), axis=0)).mean((1, 2)) < 0.3
    longest = run = 1
    for same in still:
        run = run + 1 if same else 1
        longest = max(longest, run)
    return longest


def report(videos, found, broken):
    lines = [f"{len(videos)} videos, {len({v.source for v in videos})} sources"]
    lines += [f"  {n} {name}" for name, n in categories(videos)]
    if found:
        lengths = [m["frames"] for m in found.values()]
        seconds = sum(m["frames"] / m["fps"] for m in found.values())
        rates = Counter(round(m["fps"], 2) for m in found.values())
        lines.append(f"frames {min(lengths)} to {max(lengths)}, {seconds:.0f} s in all")
        lines.append("rates " + ", ".join(f"{fps:g} ({n})" for fps, n in rates.most_common(6)))
        lines += ["motion, pixels per frame at 120x72", *histogram(found)]
    shares = caption_shares(distinct(videos))
    lines.append("captions")
    lines += [f"  {100 * shares[k]:5.1f} % {k} (limit {100 * LIMITS[k]:.0f} %)" for k in LIMITS]
    lines += [
        f"CUT {name}: a jump of {m['cut']:.2f}" for name, m in found.items() if m["cut"] > 0.22
    ]
    lines += [
        f"STILL {name}: {m['still']} frames in a row are the same"
        for name, m in found.items()
        if m["still"] >= FROZEN
    ]
    lines += [
        f"LOST {name}: {m['lost']} announced frames" for name, m in found.items() if m["lost"]
    ]
    return lines + [f"BROKEN {name}: {why}" for name, why in broken.items()]


def categories(videos):
    return Counter(v.columns.get("category") or "no category" for v in videos).most_common()


def histogram(found):
    counts, _ = np.histogram([m["motion"] for m in found.values()], BINS)
    names = [f"{low:g} to {high:g}" for low, high in zip(BINS[:-1], BINS[1:], strict=True)]
    return [
        f"  {name:>12} {'#' * count} {count}" for name, count in zip(names, counts, strict=True)
    ]


def same_files(videos):
    by_hash = defaultdict(list)
    for video in videos:
        try:
            by_hash[sha256(video.path)].append(video.id)
        except (OSError, ValueError):  # no such file, or no name of one: BROKEN says so
            continue
    return [f"TWICE {' '.join(ids)}: the same file" for ids in by_hash.values() if len(ids) > 1]


def contact_sheet(found, path):
    """One frame of each video, of the first PICTURES, with its name."""
    columns = 8
    rows = -(-min(len(found), PICTURES) // columns)
    figure = Figure(figsize=(2 * columns, 1.5 * rows), layout="constrained")
    for place, (name, m) in enumerate(islice(found.items(), PICTURES), 1):
        axes = figure.add_subplot(rows, columns, place)
        axes.imshow(m["picture"])
        axes.set_title(printable(name[:28]), fontsize=6, parse_math=False)
        axes.axis("off")
    figure.savefig(path, dpi=100)


def png(text):
    if Path(text).suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"must be a .png file, got {text}")
    return Path(text)


def main():
    parser = Parser(__doc__, "%(prog)s MANIFEST [flags]")
    parser.add_argument("manifest", type=Path, metavar="MANIFEST")
    parser.add_argument("--sheet", type=png, help="PNG; by default contact_sheet.png beside it")
    args = parser.parse_args()
    videos, _ = list_videos(args.manifest, flag="MANIFEST", allow_empty=True)
    found, broken = {}, {}
    for video in tqdm(videos, "decoding", unit="video", disable=None):
        try:
            found[video.id] = measure(video.path)
        except (VideoError, OSError) as error:
            broken[video.id] = str(error)
        if len(found) > PICTURES:  # a long list's would fill the memory
            found[next(reversed(found))]["picture"] = None
    twice, poor = same_files(videos), poor_captions(distinct(videos))
    print("\n".join(map(printable, [*report(videos, found, broken), *twice])))
    if poor:
        print(f"POOR CAPTIONS: {poor}; a run refuses them without --allow-poor-captions")
    if empty := sum(not video.caption for video in videos):
        print(
            f"EMPTY CAPTIONS: {empty}; a run refuses any without --caption TEXT or "
            "--allow-poor-captions"
        )
    if found:
        sheet = args.sheet or args.manifest.parent / "contact_sheet.png"
        contact_sheet(found, sheet)
        print(f"contact sheet: {sheet}")
    return 1 if broken or twice or poor or empty else 0


if __name__ == "__main__":
    run_script(main)
