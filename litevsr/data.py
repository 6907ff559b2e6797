"""Sharp clips to learn from, and the pairs made of them."""

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset, default_collate

from common.errors import UsageError, VideoError
from common.video import announced_frames, decode, opened, read_frames, upright
from litevsr.degradation import Degradation
from runs.lists import list_videos

UNSEEN = 1 << 40  # from this number on pairs are of clips held out from the others
HELD = 8  # clips, at most a tenth of all
TRIES = 20  # other clips in place of one that cannot be read
REDS_TEST = ("000", "011", "015", "020")  # REDS4, of the training folder: what papers report on


class Reds:
    """The official folders, train_sharp and val_sharp with a folder of pictures a clip: all clips
    but the four of REDS4, 266 of 270."""

    def __init__(self, folder):
        clips = [
            clip
            for part in ("train_sharp", "val_sharp")
            for found in folder.glob(f"**/{part}")
            for clip in sorted(found.iterdir())
            if clip.is_dir() and not (part == "train_sharp" and clip.name in REDS_TEST)
        ]
        self.clips = [pictures for clip in clips if (pictures := sorted(clip.glob("*.png")))]
        if not self.clips:
            raise UsageError(f"--data {folder}: no clip with pictures under train_sharp")

    def __len__(self):
        return len(self.clips)

    def begins(self, index):
        """Whether a clip is of another source than the one before."""
        return True

    def frames(self, index, rng, count, size):
        import imageio.v3 as iio

        pictures = self.clips[index]
        if len(pictures) < count:
            raise VideoError(f"{pictures[0].parent}: has {len(pictures)} pictures, {count} needed")
        start = rng.integers(len(pictures) - count + 1)
        try:
            shown = np.stack([iio.imread(path) for path in pictures[start : start + count]])
        except (OSError, ValueError) as error:
            raise VideoError(f"{pictures[start].parent}: cannot be read ({error})") from error
        return crop(torch.from_numpy(shown).permute(0, 3, 1, 2).float() / 255, rng, size)


class Videos:
    """The videos of a manifest, a folder or one file; each is scaled down by a drawn factor, at
    most to the size of the crop."""

    def __init__(self, videos):
        self.videos = videos

    def __len__(self):
        return len(self.videos)

    def begins(self, index):
        return self.videos[index].source != self.videos[index - 1].source

    def frames(self, index, rng, count, size):
        path = self.videos[index].path
        try:
            with opened(path) as (container, stream):
                most = announced_frames(stream)
                for frame in decode(container, stream, path):
                    shown = upright(frame, stream.sample_aspect_ratio)
                    break
                else:
                    raise VideoError(f"{path}: has no frames")
        except av.FFmpegError as error:
            raise VideoError(f"{path}: cannot be opened ({error.strerror})") from error
        largest = min(n / side for n, side in zip(shown, size, strict=True))
        zoom = rng.uniform(1, max(1, largest))
        start = int(rng.integers(max(1, most - count + 1)))
        scaled = tuple(round(side * zoom) for side in size)
        return crop(read_frames(path, start, start + count, scaled)[0], rng, size)


class Scenes:
    """The scenes that nano was trained on, drawn anew."""

    def __len__(self):
        return 1_000_000

    def begins(self, index):
        return True

    def frames(self, index, rng, count, size):
        from nano import scenes

        if size[0] != size[1]:
            raise UsageError(f"--size {size[1]}x{size[0]}: nano's scenes are square")
        return scenes.clip(index, count, size[0])[0]


def crop(frames, rng, size):
    """A drawn part of frames (F, 3, H, W); smaller ones are enlarged to it first."""
    scale = max(size[0] / frames.shape[2], size[1] / frames.shape[3], 1.0)
    if scale > 1:
        larger = [
            max(side, round(scale * n)) for side, n in zip(size, frames.shape[2:], strict=True)
        ]
        frames = F.interpolate(frames, larger, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (
        int(rng.integers(n - side + 1)) for n, side in zip(frames.shape[2:], size, strict=True)
    )
    return frames[:, :, top : top + size[0], left : left + size[1]]


class Pairs(Dataset):
    """Pair number n, whatever came before it: a sharp clip (3, F, H, W) and its damaged version,
    enlarged again. From UNSEEN on they are of the last clips, of which no others are, nor of their
    sources; of any where there are too few to hold some out. In place of one that cannot be made
    the UsageError: raised by a process that loads, it would be a traceback."""

    def __init__(self, source, frames, size, scale, degraded=True):
        self.source, self.count, self.size = source, frames, size
        self.scale, self.degraded = scale, degraded

    def __getitem__(self, number):
        rng, among = np.random.default_rng(number), self.among(number)
        for _ in range(TRIES):
            index = int(rng.integers(*among))
            try:
                sharp = self.source.frames(index, rng, self.count, self.size)
                break
            except UsageError as error:
                return error
            except VideoError as error:
                reason = error
        else:
            return UsageError(f"--data: {TRIES} clips in a row cannot be used, the last: {reason}")
        damage = Degradation.draw(number, self.scale)
        damage = damage if self.degraded else Degradation.bicubic(self.scale)
        return sharp.transpose(0, 1), enlarged(damage(sharp), self.size).transpose(0, 1)

    def among(self, number):
        """First and end of the clips that a pair may be of."""
        count = len(self.source)
        first = count - min(HELD, count // 10)
        while 0 < first < count and not self.source.begins(first):
            first -= 1
        if first in (0, count):
            return 0, count
        return (first, count) if number >= UNSEEN else (0, first)


def together(pairs):
    """A batch of them, or the first UsageError among them."""
    wrong = [pair for pair in pairs if isinstance(pair, UsageError)]
    return wrong[0] if wrong else default_collate(pairs)


def enlarged(frames, size):
    """frames (F, 3, h, w) -> (F, 3, *size), bicubic."""
    return F.interpolate(frames, size, mode="bicubic").clamp(0, 1)


def source_of(path):
    """REDS' folders, a list of videos, or (None) nano's scenes. Raises UsageError."""
    if path is None:
        return Scenes()
    if path.is_dir() and any(path.glob("**/train_sharp")):
        return Reds(path)
    return Videos(list_videos(path, flag="--data", allow_empty=True)[0])
