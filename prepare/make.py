"""One clip out of a source video: every frame decoded once, measured, judged and written."""

import itertools
import os
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np

from common.data import real, sha256
from common.errors import VideoError
from common.video import decode, fit, opened, refuse_lost, seek_before, write_video
from runs.motion import farneback

MEASURED = (72, 120)  # height and width of the grey frames that motion and cuts are measured on
# The same bytes every time: x264's macroblock tree with AVX-512 is not the same twice, and other
# numbers of threads give other pictures.
ENCODER = {"crf": "12", "threads": "1", "x264-params": "mbtree=0"}
SLOWEST, FASTEST = 0.1, 1000  # frames per second
MARGIN = 1.0  # seconds: the index has times of decoding, which are not those of showing


@dataclass(frozen=True)
class Candidate:
    """A stretch of a video that may become a clip: from a frame on, or from a time to another.
    `source` is what must not be chosen too often."""

    name: str
    path: Path
    caption: str
    category: str
    source: str
    start: float = 0.0  # seconds
    stop: float = float("inf")
    first: int = 0  # frame


@dataclass(frozen=True)
class Rules:
    """What a clip must be: size (height, width), rate (the file's own where None), number of
    frames, mean motion in pixels per frame at 120x72, and the largest jump between two frames."""

    size: tuple
    fps: float | None
    min_frames: int
    max_frames: int
    min_motion: float
    max_cut: float


def one_line(text):
    """A caption without line breaks, other control characters and halves of characters."""
    shown = (" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in text)
    return " ".join("".join(shown).split())


def make_clip(candidate, rules, folder):
    """Writes folder/<name>.mp4 and gives its columns of the manifest, or {"rejected": why}."""
    path, unfinished = (folder / f"{dot}{candidate.name}.mp4" for dot in ("", "."))
    try:
        grey, fps, start_frame = copy_frames(candidate, rules, unfinished)
        motion, cut = mean_motion(grey), largest_cut(grey)
        least = min(motion, mean_motion(grey[: rules.min_frames]))  # what a run sees comes first
        if least < rules.min_motion:
            raise VideoError(f"static: motion {least:.3f} is below --min-motion")
        if cut > rules.max_cut:
            raise VideoError(f"cut: a jump of {cut:.3f} is above --max-cut")
    except VideoError as error:
        unfinished.unlink(missing_ok=True)
        reason = without_path(str(error), candidate.path)
        known = reason.startswith(("short:", "damaged:", "static:", "cut:"))
        return {"rejected": reason if known else f"damaged: {reason}"}
    os.replace(unfinished, path)
    return {
        "filename": f"clips/{path.name}",
        "caption": candidate.caption,
        "category": candidate.category,
        "source": candidate.source,
        "start_frame": start_frame,
        "frames": len(grey),
        "fps": round(fps, 3),
        "width": rules.size[1],
        "height": rules.size[0],
        "motion": round(motion, 4),
        "sha256": sha256(path),
    }


def without_path(reason, path):
    """Of a message about a file what follows its name, or where that leads."""
    reason = reason.removeprefix(f"{path}: ")
    return reason.removeprefix(f"{real(path)}: ")


def copy_frames(candidate, rules, path):
    """Writes the stretch's frames; gives them grey and small, the rate, and the index of the first
    in the source. Raises VideoError when one is damaged or they are too few, OSError where they
    cannot be written."""
    grey, places, rates = [], [], []

    def pictures():
        try:
            for index, picture, fps in wanted(candidate, rules):
                grey.append(shrink(picture))
                places.append(index)
                rates.append(fps)
                yield picture
        except av.FFmpegError as error:
            raise VideoError(f"damaged: {len(grey)} frames decode ({error.strerror})") from error

    rest = pictures()
    first = list(itertools.islice(rest, 1))
    try:
        if first:
            write_video(path, itertools.chain(first, rest), rates[0], ENCODER)
    except av.FFmpegError as error:  # of writing: those of reading are a VideoError by now
        raise OSError(f"{path}: {error.strerror}") from error
    if len(grey) < rules.min_frames:
        raise VideoError(f"short: {len(grey)} frames, {rules.min_frames} are needed")
    return np.stack(grey), rates[0], places[0]


def wanted(candidate, rules):
    """(index in the source, picture, frame rate) of the stretch."""
    with opened(candidate.path) as (container, stream):
        fps = rules.fps or float(stream.average_rate or 24)
        if not SLOWEST <= fps <= FASTEST:
            raise VideoError(f"damaged: {fps:g} frames a second")
        for index, frame in stretch(container, stream, candidate, rules):
            yield index, fit(frame, stream.sample_aspect_ratio, rules.size), fps


def stretch(container, stream, candidate, rules):
    """(index in the source, frame) of the wanted frames: stored ones, or at --fps the newest that
    is there at each time. Raises VideoError where the file ends before the frames it announces."""
    kept, index, last, last_time = 0, -1, None, 0.0
    for index, time, frame in timed(container, stream, candidate):
        if time >= candidate.stop or kept == rules.max_frames:
            break
        if time < candidate.start - 1e-6:
            continue
        if not rules.fps:
            kept += 1
            yield index, frame
            continue
        last = last or (index, frame)
        while candidate.start + kept / rules.fps < time - 1e-6 and kept < rules.max_frames:
            kept += 1
            yield last
        last, last_time = (index, frame), time
    else:
        refuse_lost(stream, index + 1)
    if last and kept < rules.max_frames and candidate.start + kept / rules.fps <= last_time + 1e-6:
        yield last


def timed(container, stream, candidate):
    """(index, seconds after the candidate's first frame, frame), from a keyframe before the start
    on where the file has an index (fragmented MP4 has none), else from its first frame."""
    first, origin = seek_before(container, stream, candidate.first), None
    if candidate.start > MARGIN:
        with opened(candidate.path) as (again, other):
            frame = next(again.decode(other), None)
            if frame is None:
                raise VideoError("damaged: no frame decodes")
            origin = frame.time
        first = seek_before(container, stream, stored_before(stream, candidate.start - MARGIN))
    for index, frame in enumerate(decode(container, stream, candidate.path, first), first):
        if index < candidate.first:
            continue
        time = frame.time if frame.time is not None else index / float(stream.average_rate or 24)
        origin = time if origin is None else origin
        yield index, time - origin, frame


def stored_before(stream, seconds):
    """How many frames are stored before a time, by the file's index; 0 where it has none."""
    entries, unit = list(stream.index_entries), float(stream.time_base)
    return sum((entry.timestamp - entries[0].timestamp) * unit < seconds for entry in entries)


def shrink(picture):
    """(3, H, W) float -> (72, 120) 8-bit grey."""
    grey = (picture.mean(0) * 255).round().byte().numpy()
    return cv2.resize(grey, MEASURED[::-1], interpolation=cv2.INTER_AREA)


def mean_motion(grey):
    """Mean length of Farneback's flow, pixels per frame."""
    lengths = [
        np.linalg.norm(farneback(a, b), axis=2).mean()
        for a, b in zip(grey[:-1], grey[1:], strict=True)
    ]
    return float(np.mean(lengths)) if lengths else 0.0


def largest_cut(grey):
    """How far the largest frame difference (mean, in 0..1) stands above those beside it: a cut is a
    single spike, fast motion is not."""
    d = np.abs(np.diff(grey.astype(np.float32), axis=0)).mean((1, 2)) / 255
    if len(d) < 3:
        return 0.0
    beside = np.maximum(np.r_[0, d[:-1]], np.r_[d[1:], 0])
    return float((d - beside).max())
