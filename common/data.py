"""The list of videos, and frames in and out of files."""

import csv
import hashlib
import itertools
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F

from common.errors import UsageError, VideoError

SUFFIXES = {".mp4", ".mov", ".avi", ".mkv", ".webm", ".gif", ".m4v", ".mpg", ".mpeg"}
LATENT_FRAMES = 4  # frames of a latent after the first, which is one frame alone


@dataclass(frozen=True)
class Video:
    id: str
    path: Path
    caption: str
    columns: dict = field(default_factory=dict)  # the manifest's other columns

    @property
    def source(self):
        """What statistics cluster by."""
        return self.columns.get("source") or self.id


def list_videos(path, prompt=None, flag="--videos", allow_empty=False):
    """The videos of a CSV manifest, of a folder (not recursive) or of one file, and the list's
    SHA-256.

    A manifest has the columns filename and caption, perhaps id; files are relative to its folder. A
    folder or file takes the caption `prompt`; captions may be missing with allow_empty. Raises
    UsageError that names `flag`.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(
            p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.name[0] != "."
        )
        rows = [{"filename": p.name} for p in files]
        digest = hashlib.sha256("\n".join(p.name for p in files).encode())
    elif path.suffix.lower() == ".csv" and path.is_file():
        if prompt is not None:
            raise UsageError(
                f"--prompt: {path} has its own captions; --prompt is for files and folders"
            )
        rows, digest = read_manifest(path, flag, allow_empty), hashlib.sha256(path.read_bytes())
    elif path.is_file():
        rows, digest = [{"filename": path.name}], hashlib.sha256(path.name.encode())
    else:
        raise UsageError(f"{flag} {path}: no such file or folder; give a CSV, a folder or a video")
    if not rows:
        raise UsageError(f"{flag} {path}: lists no videos; a CSV needs rows, a folder video files")
    if path.is_dir() or path.suffix.lower() != ".csv":
        check_prompt(path, prompt, flag, allow_empty)
        for row in rows:
            row["caption"] = prompt
    folder = path if path.is_dir() else path.parent
    return [
        new_video(row, name, folder) for row, name in zip(rows, ids(rows, path, flag), strict=True)
    ], (digest.hexdigest())


def check_prompt(path, prompt, flag, allow_empty):
    if not allow_empty and not (prompt or "").strip():
        found = [p.name for p in path.glob("*.csv")] if path.is_dir() else []
        hint = f" (or pass {flag} {path / found[0]})" if found else ""
        raise UsageError(
            f"{flag} {path}: has no captions; say what it shows with --prompt TEXT{hint}"
        )


def read_manifest(path, flag, allow_empty):
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        try:
            columns = reader.fieldnames or []
            rows = [(reader.line_num, row) for row in reader]
        except (csv.Error, UnicodeDecodeError) as error:
            raise UsageError(f"{flag} {path}: not a CSV file in UTF-8 ({error})") from error
    missing = {"filename", "caption"} - set(columns)
    if missing:
        raise UsageError(
            f"{flag} {path}: no column {' or '.join(sorted(missing))}; it needs filename,caption"
        )
    for line, row in rows:
        for name in ("filename",) if allow_empty else ("filename", "caption"):
            if not (row[name] or "").strip():
                raise UsageError(f"{flag} {path}, line {line}: empty {name}; every video needs one")
    return [row for _, row in rows]


def ids(rows, path, flag):
    """The id column, else the file name without suffix, with it where two would collide."""
    stems = Counter(Path(row["filename"]).stem for row in rows)
    names = []
    for row in rows:
        file = Path(row["filename"])
        names.append(
            (row.get("id") or "").strip() or (file.stem if stems[file.stem] == 1 else file.name)
        )
    for name, count in Counter(names).items():
        if count > 1:
            raise UsageError(
                f"{flag} {path}: the id {name!r} stands {count} times; make ids unique"
            )
        if len(name.encode()) > 200:
            raise UsageError(f"{flag} {path}: the id {name!r} is longer than 200 bytes")
        if "/" in name or "\\" in name or ".." in name or name.startswith("."):
            raise UsageError(
                f"{flag} {path}: the id {name!r} cannot name a file; no / \\ or .. in ids"
            )
    return names


def new_video(row, name, folder):
    known = {"id", "filename", "caption"}
    columns = {key: value for key, value in row.items() if key and key not in known}
    return Video(name, folder / row["filename"], (row["caption"] or "").strip(), columns)


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_frames(path, start, stop, size):
    """Stored frames start..stop - 1 as (stop - start, 3, H, W) float32 in 0..1, and the frame rate.

    By index, whatever the time stamps say; turned upright and to square pixels, scaled to cover
    `size` (height, width) and cropped at the centre. Raises VideoError when one of the frames is
    not to be had.
    """
    if not path.is_file():
        raise VideoError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise VideoError(f"{path}: empty file")
    frames, count = [], 0
    try:
        with av.open(str(path.resolve()), metadata_errors="ignore") as container:
            stream = video_stream(container, path)
            announced = announced_frames(stream)
            count = seek_before(container, stream, start)
            for frame in decode(container, stream, path, count):
                count += 1
                if count > start:
                    frames.append(fit(frame, stream.sample_aspect_ratio, size))
                if count == stop:
                    return torch.stack(frames), float(stream.average_rate or 24)
    except av.FFmpegError as error:
        what = f"decodes only {count} frames" if count else "cannot be opened as a video"
        raise VideoError(f"{path}: {what} ({error.strerror}), {stop} are needed") from error
    lacking = f" of {announced} announced" if announced > count else ""
    raise VideoError(f"{path}: has {count}{lacking} frames, {stop} are needed")


def video_stream(container, path):
    if not container.streams.video:
        raise VideoError(f"{path}: no video stream in it")
    container.streams.video[0].thread_type = "AUTO"
    return container.streams.video[0]


def announced_frames(stream):
    """How many frames the file says that it shows. An MP4 that was cut without encoding it anew
    stores more: its edit list hides some, which the index marks or lacks."""
    if "mp4" not in stream.container.format.name:
        return stream.frames
    return min(stream.frames, sum(not entry.is_discard for entry in stream.index_entries))


def seek_before(container, stream, start):
    """Goes to the last keyframe up to frame `start` and gives its index; to the first frame where
    the file's index does not tell, or pictures after the keyframe are shown before it."""
    entries = list(stream.index_entries)
    keys = [i for i, entry in enumerate(entries) if entry.is_keyframe and 0 < i <= start]
    all_shown = len(entries) == stream.frames and not any(entry.is_discard for entry in entries)
    if not keys or not all_shown:
        return 0
    time = entries[keys[-1]].timestamp
    shown = time - min(0, entries[0].timestamp)  # the index has times of decoding
    container.seek(shown, stream=stream)
    packets = container.demux(stream)
    first = next(packets)
    until_next = itertools.takewhile(lambda p: not p.is_keyframe and p.pts is not None, packets)
    whole = first.is_keyframe and first.dts == time and all(p.pts > first.pts for p in until_next)
    container.seek(shown if whole else entries[0].timestamp, stream=stream)
    return keys[-1] if whole else 0


def decode(container, stream, path, first=0):
    for index, frame in enumerate(container.decode(stream), first):
        if frame.is_corrupt:
            raise VideoError(f"{path}: frame {index} is damaged")
        yield frame


def fit(frame, pixel_aspect, size):
    """An av.VideoFrame as (3, *size), upright, undistorted, covering, cropped at the centre."""
    picture = frame.to_ndarray(format="rgb24")
    height, width = picture.shape[:2]
    width = round(width * float(pixel_aspect or 1))
    if frame.rotation % 180:
        height, width = width, height
    picture = np.ascontiguousarray(np.rot90(picture, frame.rotation // 90))
    x = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    scale = max(size[0] / height, size[1] / width)
    scaled = (max(size[0], round(height * scale)), max(size[1], round(width * scale)))
    x = F.interpolate(x, scaled, mode="bilinear", antialias=True)[0].clamp(0, 1)
    top, left = (scaled[0] - size[0]) // 2, (scaled[1] - size[1]) // 2
    return x[:, top : top + size[0], left : left + size[1]]


def write_video(path, frames, fps, options=None, min_height=0):
    """Writes frames, any iterable of (3, H, W) float in 0..1, as H.264, visually lossless unless
    the encoder's options say otherwise; lower ones than min_height with each pixel repeated."""
    with av.open(str(path), "w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options=options or {"crf": "12"})
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            pixels = (frame.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
            times = -(-min_height // len(pixels))
            pixels = pixels.repeat(times, 0).repeat(times, 1) if times > 1 else pixels
            if not stream.codec_context.is_open:  # the first frame gives the size
                stream.height, stream.width = pixels.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
