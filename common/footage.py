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


def read_footage(video, window, size):
    """Raises VideoError when the file is unreadable, too short or replaced meanwhile."""
    try:
        before = file_facts(video.path)
    except (OSError, ValueError):
        before = None  # read_frames says why
    frames, fps = read_frames(video.path, window.first, window.stop, size)
    try:
        digest, after = sha256(video.path), file_facts(video.path)
    except OSError as error:
        raise VideoError(f"{video.path}: cannot be read ({error})") from error
    if before != after:
        raise VideoError(f"{video.path}: was changed while it was read")
    given = frames[window.anchor - window.cond_frames - window.first :]
    beside = {name: read_beside(video, name, window, size, given) for name in video.beside}
    return Footage(frames, fps, digest, after, beside)


def read_beside(video, name, window, size, own):
    """As many frames (F, 3, H, W) as `own`, of the same indices, of the file in column `name`;
    `own` where that is the video's. Raises VideoError, also where column <name>_sha256 has
    another."""
    path, known = video.beside[name], video.columns.get(f"{name}_sha256")
    if real(path) == real(video.path):
        return own
    frames, _ = read_frames(path, window.anchor - window.cond_frames, window.stop, size)
    if known and sha256(path) != known:
        raise VideoError(f"{path}: is not the file that {name}_sha256 of the list is of")
    return frames
