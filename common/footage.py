"""The frames of a video that a run reads, and those of the files beside it."""

from dataclasses import dataclass, field

import torch

from common.data import file_facts, real, sha256
from common.errors import VideoError
from common.video import read_frames


@dataclass(frozen=True)
class Footage:
    frames: torch.Tensor  # (F, 3, H, W) in 0..1: those seen, then the truth
    fps: float
    sha256: str
    file: dict = field(default_factory=dict)
    beside: dict = field(default_factory=dict)  # of other files, by column; from conditioning on
    files: dict = field(default_factory=dict)  # of these <column>_sha256 and <column>_file


def read_footage(video, window, size):
    """Raises VideoError when a file is unreadable, too short or replaced meanwhile."""
    frames, fps, digest, facts = read_file(video.path, window.first, window.stop, size)
    given = frames[window.anchor - window.cond_frames - window.first :]
    own, beside, files = (given, digest, facts), {}, {}
    for name in video.beside:
        beside[name], *found = read_beside(video, name, window, size, own)
        files |= zip((f"{name}_sha256", f"{name}_file"), found, strict=True)
    return Footage(frames, fps, digest, facts, beside, files)


def read_file(path, start, stop, size):
    """Frames (F, 3, H, W) in 0..1, their rate, and of the file its SHA-256, size and time."""
    try:
        before = file_facts(path)
    except (OSError, ValueError):
        before = None  # read_frames says why
    frames, fps = read_frames(path, start, stop, size)
    try:
        digest, after = sha256(path), file_facts(path)
    except OSError as error:
        raise VideoError(f"{path}: cannot be read ({error})") from error
    if before != after:
        raise VideoError(f"{path}: was changed while it was read")
    return frames, fps, digest, after


def read_beside(video, name, window, size, own):
    """Frames (F, 3, H, W) of the same indices as those of `own`, of the file in column `name`, with
    its SHA-256, size and time; `own` where that is the video's. Raises VideoError, also where
    column <name>_sha256 has another."""
    path, known = video.beside[name], video.columns.get(f"{name}_sha256")
    if real(path) == real(video.path):
        return own
    start = window.anchor - window.cond_frames
    frames, _, digest, facts = read_file(path, start, window.stop, size)
    if known and digest != known:
        raise VideoError(f"{path}: is not the file that {name}_sha256 of the list is of")
    return frames, digest, facts
