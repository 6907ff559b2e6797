"""Low-resolution clips as cameras, sites and phones make them, from sharp ones.

Twice blur, resizing, noise and JPEG, the second time milder (Real-ESRGAN, Wang et al. 2021), then a
video codec (RealBasicVSR, Chan et al. 2022). What is drawn is drawn once for a whole clip: frames
of one video are damaged alike, but each has noise of its own.
"""

import dataclasses
import io
from dataclasses import dataclass

import av
import cv2
import numpy as np
import torch

RESIZES = (cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC)
CODECS = ("libx264", "mpeg4")
SMALLEST = 16  # pixels on a side that every codec here takes


@dataclass(frozen=True)
class Stage:
    """One round of damage."""

    blur: tuple[float, float, float]  # standard deviations in pixels along two axes, their angle
    resize: float  # factor
    resize_by: int  # of RESIZES
    noise: float  # standard deviation of a full-scale signal's
    shot_noise: bool  # grows with the root of the brightness
    grey_noise: bool  # the same in all three colours
    jpeg: int  # quality


@dataclass(frozen=True)
class Degradation:
    """What happens to one clip. scale: how many times smaller the result is on each side."""

    scale: int
    stages: tuple[Stage, ...]
    codec: str | None
    crf: int  # of libx264; mpeg4 has a fourth of it as its quantiser
    seed: int  # of the noise

    @classmethod
    def draw(cls, seed, scale=4):
        """The degradation that a seed means."""
        rng = np.random.default_rng(seed)
        stages = draw_stage(rng, 3.0, (0.15, 1.5), 0.12), draw_stage(rng, 1.5, (0.3, 1.2), 0.1)
        codec = CODECS[rng.integers(len(CODECS))]
        return cls(scale, stages, codec, int(rng.integers(18, 36)), int(rng.integers(2**31)))

    @classmethod
    def bicubic(cls, scale=4):
        """Made smaller and nothing else."""
        return cls(scale, (), None, 0, 0)

    def __call__(self, frames, fps=24.0):
        """frames (F, 3, H, W) float in 0..1 -> (F, 3, H / scale, W / scale). ValueError where
        height or width is no multiple of scale."""
        height, width = frames.shape[-2:]
        if height % self.scale or width % self.scale:
            raise ValueError(f"frames of {width}x{height} are no multiple of --scale {self.scale}")
        rng, size = np.random.default_rng(self.seed), (width // self.scale, height // self.scale)
        pictures = list(frames.clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy())
        for stage in self.stages:
            pictures = [damaged(picture, stage, (height, width), rng) for picture in pictures]
        pictures = [resized(picture, size, cv2.INTER_AREA) for picture in pictures]
        if self.codec:
            pictures = coded(pictures, self.codec, self.crf, fps)
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float().clamp(0, 1)

    def describe(self):
        """For a JSON."""
        return dataclasses.asdict(self)


def draw_stage(rng, widest, factors, loudest):
    """Up to `widest` pixels of blur, a resize by one of `factors`, up to so much noise."""
    down, up = factors
    low, high = (down, 1.0) if rng.random() < 0.6 else (1.0, up)
    return Stage(
        blur=(rng.uniform(0.2, widest), rng.uniform(0.2, widest), rng.uniform(0, np.pi)),
        resize=float(rng.uniform(low, high)),
        resize_by=int(rng.integers(len(RESIZES))),
        noise=float(rng.uniform(0.004, loudest)),
        shot_noise=bool(rng.random() < 0.5),
        grey_noise=bool(rng.random() < 0.4),
        jpeg=int(rng.integers(30, 96)),
    )


def damaged(picture, stage, size, rng):
    """A picture (H, W, 3) after one round; size: (height, width) of the whole clip's frames."""
    picture = cv2.filter2D(picture, -1, gaussian_kernel(*stage.blur), borderType=cv2.BORDER_REFLECT)
    height, width = (max(SMALLEST, round(side * stage.resize)) for side in size)
    picture = resized(picture, (width, height), RESIZES[stage.resize_by])
    return jpeg(noisy(picture, stage, rng), stage.jpeg)


def gaussian_kernel(along, across, angle):
    """(K, K) of sum 1, rotated by the angle; K covers three standard deviations on each side."""
    half = int(np.ceil(3 * max(along, across)))
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float64)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    kernel = np.exp(-0.5 * ((u / along) ** 2 + (v / across) ** 2))
    return (kernel / kernel.sum()).astype(np.float32)


def resized(picture, size, how):  # size (width, height), as OpenCV has it
    if picture.shape[1::-1] == size:
        return picture
    return cv2.resize(picture, size, interpolation=how).clip(0, 1)


def noisy(picture, stage, rng):
    shape = (*picture.shape[:2], 1) if stage.grey_noise else picture.shape
    noise = stage.noise * rng.standard_normal(shape)
    if stage.shot_noise:
        noise = noise * np.sqrt(picture.clip(0))
    return (picture + noise).clip(0, 1).astype(np.float32)


def jpeg(picture, quality):
    stored = (picture[..., ::-1] * 255).round().astype(np.uint8)  # OpenCV has blue first
    written = cv2.imencode(".jpg", stored, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return cv2.imdecode(written, cv2.IMREAD_COLOR)[..., ::-1].astype(np.float32) / 255


def coded(pictures, codec, crf, fps, x264="mbtree=0"):
    """The pictures through a video encoder and back; their edges are repeated where it asks for
    more or for even sizes. x264: parameters of libx264."""
    height, width = pictures[0].shape[:2]
    more = [max(SMALLEST, side + side % 2) - side for side in (height, width)]
    padded = [np.pad(p, ((0, more[0]), (0, more[1]), (0, 0)), mode="edge") for p in pictures]
    file = io.BytesIO()
    # one thread and no macroblock tree: the same bytes on every machine
    options = {"threads": "1", "crf": str(crf), "x264-params": x264}
    if codec == "mpeg4":  # qscale is an option of the program ffmpeg, not of the encoder
        options = {"threads": "1", "qmin": str(crf // 4), "qmax": str(crf // 4)}
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream(codec, rate=round(fps), options=options)
        stream.pix_fmt = "yuv420p"
        stream.height, stream.width = padded[0].shape[:2]
        for picture in padded:
            stored = (picture * 255).round().astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(stored, format="rgb24")))
        container.mux(stream.encode())
    file.seek(0)
    with av.open(file) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return [frame[:height, :width].astype(np.float32) / 255 for frame in decoded]
