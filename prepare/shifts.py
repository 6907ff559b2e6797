"""What a shift does to a clip: each kind at five severities, the milder the lower.

What is drawn (an angle, a hue, a side) is drawn once for a clip, from its id and the kind, and
holds for all its frames and at every severity; the grain of noise is each frame's own. No frame
depends on a later one of the clip, which would show the context its future. Severities
follow Hendrycks and Dietterich (2019) where they have the kind.
"""

import cv2
import numpy as np

from common.errors import VideoError
from common.loss import random_stream
from litevsr.degradation import coded, gaussian_kernel, jpeg

GAMMA = 2.2  # from light to stored values
CAUSAL = "mbtree=0:bframes=0:rc-lookahead=0"  # x264 looks at no later frame


def shifted(frames, kind, severity, seed, clip_id, fps=24.0):
    """frames (F, H, W, 3) 8 bits -> (F', H, W, 3) 8 bits; F' is smaller after speed alone.
    Raises VideoError where the clip is too short for it."""
    change, amounts = KINDS[kind]
    stream = random_stream(seed, clip_id, f"shift {kind}")
    rng = np.random.default_rng(stream.initial_seed())
    return change(frames, amounts[severity - 1], rng, fps)


def each(frames, change):
    """The change of a picture (H, W, 3), float32 in 0..1, on every frame."""
    return np.stack([stored(change(frame.astype(np.float32) / 255)) for frame in frames])


def stored(picture):
    return (picture * 255).round().clip(0, 255).astype(np.uint8)


def noise(frames, sigma, rng, fps):
    """Gaussian, of a standard deviation in units of full scale."""
    return each(frames, lambda p: p + sigma * rng.standard_normal(p.shape, np.float32))


def blur(frames, share, rng, fps):
    """Gaussian, its longer standard deviation a share of the picture's shorter side, and half a
    pixel more in quadrature, below which nothing changes."""
    along = np.hypot(0.5, share * min(frames.shape[1:3]))
    kernel = gaussian_kernel(along, along * rng.uniform(0.5, 1), rng.uniform(0, np.pi))
    return each(frames, lambda p: cv2.filter2D(p, -1, kernel, borderType=cv2.BORDER_REFLECT))


def dark(frames, stops, rng, fps):
    """So many times half of the light."""
    return each(frames, lambda p: p * 2 ** (-stops / GAMMA))


def contrast(frames, share, rng, fps):
    """Of the distance to the first frame's mean a share is left; later frames are the future."""
    mean = frames[0].mean(dtype=np.float64) / 255
    return each(frames, lambda p: mean + share * (p - mean))


def colour_cast(frames, amount, rng, fps):
    """The three colours times 1 and up to `amount` more or less, towards a hue."""
    hue = rng.uniform(0, 2 * np.pi) + np.array([0, 2, 4]) * np.pi / 3
    return each(frames, lambda p: p * (1 + amount * np.cos(hue)).astype(np.float32))


def jpegs(frames, quality, rng, fps):
    return each(frames, lambda p: jpeg(p, quality))


def video_codec(frames, crf, rng, fps):
    """H.264 at a constant rate factor, no frame coded by later ones: a run adapts to the first."""
    pictures = [frame.astype(np.float32) / 255 for frame in frames]
    decoded = coded(pictures, "libx264", crf, max(1, fps), CAUSAL)
    return np.stack([stored(p) for p in decoded])


def low_frame_rate(frames, every, rng, fps):
    """One frame in so many, shown until the next: the clip lasts as long."""
    if len(frames) <= every:
        raise VideoError(f"has {len(frames)} frames; one in {every} would be a still")
    phase = int(rng.random() * every)
    times = (np.arange(len(frames)) + phase) // every * every - phase
    return frames[times.clip(0)]


def speed(frames, factor, rng, fps):
    """So many times as fast, of the nearest frames, and so much shorter."""
    return frames[np.arange(0, len(frames) - 0.5, factor).round().astype(int)]


def flip(frames, axes, rng, fps):
    return np.ascontiguousarray(np.flip(frames, axes))


def rotation(frames, degrees, rng, fps):
    """As a tilted camera sees it: to either side, enlarged until no corner is empty."""
    height, width = frames.shape[1:3]
    angle = np.deg2rad(degrees)
    scale = np.cos(angle) + max(width / height, height / width) * np.sin(angle)
    centre = (width - 1) / 2, (height - 1) / 2
    turned = cv2.getRotationMatrix2D(centre, degrees * rng.choice((-1, 1)), scale)
    size, how = (width, height), cv2.INTER_LINEAR
    return each(
        frames, lambda p: cv2.warpAffine(p, turned, size, flags=how, borderMode=cv2.BORDER_REFLECT)
    )


def letterbox(frames, share, rng, fps):
    """Black bars over a share of the picture, above and below or left and right."""
    axis = int(rng.integers(1, 3))
    side = frames.shape[axis]
    bar, covered = round(share * side / 2), np.moveaxis(frames.copy(), axis, 0)
    covered[:bar] = covered[side - bar :] = 0
    return np.moveaxis(covered, 0, axis)


LEFT_RIGHT, TOP_BOTTOM = 2, 1  # axes of frames
KINDS = {  # what each does, and how much of it at severity 1 to 5
    "noise": (noise, (0.04, 0.08, 0.12, 0.18, 0.26)),
    "blur": (blur, (0.005, 0.01, 0.015, 0.02, 0.03)),
    "dark": (dark, (0.5, 1, 1.5, 2, 3)),
    "contrast": (contrast, (0.75, 0.6, 0.45, 0.3, 0.2)),
    "colour-cast": (colour_cast, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "jpeg": (jpegs, (40, 25, 15, 10, 6)),
    "video-codec": (video_codec, (28, 33, 38, 43, 48)),
    "low-frame-rate": (low_frame_rate, (2, 3, 4, 6, 8)),
    "speed": (speed, (1.1, 1.25, 1.5, 2, 3)),
    "flip": (flip, (LEFT_RIGHT,) * 2 + (TOP_BOTTOM,) * 2 + ((TOP_BOTTOM, LEFT_RIGHT),)),
    "rotation": (rotation, (3, 6, 10, 15, 25)),
    "letterbox": (letterbox, (0.08, 0.16, 0.24, 0.32, 0.4)),
}
OWN_TRUTH = ("speed", "flip", "rotation")  # other times or places, nothing of a picture damaged
