"""What Open-Sora v2.0 does around its transformer: sizes, packing, the flow's path, conditions,
schedule, and guidance. Pure functions.

Source of the formulas: hpcaitech/Open-Sora v2.0 (opensora/utils/sampling.py, utils/inference.py,
datasets/aspect.py). Shape letters as in contract.py; p is the patch's side. Time is in 0..1, 1 is
noise.
"""

import itertools
import math
from typing import NamedTuple

import torch

SIGMA_FLOOR = 1e-5  # the path ends in latents + SIGMA_FLOOR * noise
SIZE_MULTIPLE = 16  # of frames: 8 by the autoencoder, 2 by the patch
RATIOS = ("2.39:1", "2:1", "16:9", "1.85:1", "9:16", "5:8", "3:2", "4:3", "1:1")  # width:height
# latents that a condition shows at the head and at the tail; with a causal autoencoder, whose first
# latent is a picture, one more of those that are not single
CONDITIONS = {
    "t2v": (0, 0), "i2v_head": (1, 0), "i2v_tail": (0, 1), "i2v_loop": (1, 1), "v2v_head": (8, 0),
    "v2v_head_easy": (16, 0), "v2v_tail": (0, 8), "v2v_tail_easy": (0, 16),
}  # fmt: skip
OSCILLATES_FROM = 10  # step, counted from 0


# Sizes and packing


def frame_size(resolution, ratio, training=False):
    """(height, width) of frames in pixels, multiples of 16, for a resolution "256px" (a square's
    side) or "720p" (the height of 16:9) and a ratio "16:9", width:height, one of RATIOS or upright.

    training: with the size nearest to the number of pixels among the four neighbours.
    """
    width, height = ratio.split(":")
    if f"{height}:{width}" in RATIOS:  # officially the upright one of a size goes before its own
        return frame_size_of(pixels_of(resolution), float(height), float(width), training)[::-1]
    if ratio not in RATIOS:
        raise ValueError(f"ratio must be one of {', '.join(RATIOS)} or upright, got {ratio}")
    return frame_size_of(pixels_of(resolution), float(width), float(height), training)


def pixels_of(resolution):
    if resolution.endswith("px"):
        return int(resolution.removesuffix("px")) ** 2
    return int(int(resolution.removesuffix("p")) ** 2 / 9 * 16)


def frame_size_of(pixels, wide, high, training):
    width = int(math.sqrt(pixels * (wide / high)) // SIZE_MULTIPLE) * SIZE_MULTIPLE
    height = int(pixels / width // SIZE_MULTIPLE) * SIZE_MULTIPLE
    if not training:
        return height, width
    step, sizes = SIZE_MULTIPLE, [(height, width)]
    sizes += [(height - step, width), (height + step, width)]
    sizes += [(height, width - step), (height, width + step)]
    return min(sizes, key=lambda size: abs(size[0] * size[1] - pixels))


def pack(x, patch):
    """(B, C, T, h, w) -> tokens (B, T * h/p * w/p, C * p * p): frame, row, column; in a token
    channel, row, column."""
    x = x.unflatten(4, (-1, patch)).unflatten(3, (-1, patch))  # (B, C, T, h/p, p, w/p, p)
    return x.permute(0, 2, 3, 5, 1, 4, 6).flatten(4, 6).flatten(1, 3)


def unpack(tokens, shape, patch):
    """What was packed, of `shape` (B, C, T, h, w)."""
    _, _, frames, height, width = shape
    x = tokens.unflatten(1, (frames, height // patch, width // patch))
    x = x.unflatten(-1, (-1, patch, patch))  # (B, T, h/p, w/p, C, p, p)
    return x.permute(0, 4, 1, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4)


def token_ids(shape, patch, device=None):
    """Frame, row and column (1, N, 3), float32, of the tokens of latents of `shape` (B, C, T, h,
    w)."""
    sizes = shape[2], shape[3] // patch, shape[4] // patch
    axes = [torch.arange(size, dtype=torch.float32, device=device) for size in sizes]
    return torch.cartesian_prod(*axes)[None]


# The flow's path and the condition


def noisy_latents(latents, noise, t):
    """(1 - t) * latents + (1 - (1 - s) * (1 - t)) * noise, at t (B,); s = SIGMA_FLOOR. That is the
    contract's path but for at most s * noise."""
    t = t.view(-1, 1, 1, 1, 1)
    return (1 - t) * latents + (1 - (1 - SIGMA_FLOOR) * (1 - t)) * noise


def velocity_target(latents, noise):
    """The path's derivative, (1 - s) * noise - latents."""
    return (1 - SIGMA_FLOOR) * noise - latents


def shown_latents(kind, latents, causal=True):
    """How many of so many latents a condition shows at the head and at the tail. "everything",
    which is no official kind, shows all, as the reference's adaptation does. One latent is a
    picture, and gets no condition."""
    if kind == "everything":
        return latents, 0
    if kind not in CONDITIONS:
        raise ValueError(f"condition must be one of {', '.join(CONDITIONS)}, got {kind}")
    if latents == 1:
        return 0, 0
    return tuple(min(n + (causal and n > 1), latents) for n in CONDITIONS[kind])


def condition(kind, shape, head=None, tail=None, causal=True):
    """Mask (B, 1, T, h, w), 1 on the shown latents, and reference (B, C, T, h, w), 0 elsewhere, for
    latents of `shape`.

    head and tail (1 or B, C, T_given, h, w): clean latents that begin and end with the shown ones,
    encoded on their own. causal: the autoencoder encodes 4k + 1 frames to k + 1 latents.
    """
    first, last = shown_latents(kind, shape[2], causal)
    given = next((x for x in (head, tail) if x is not None), None)
    if given is None and (first or last):
        raise ValueError(f"condition {kind} needs latents to show")
    like = torch.zeros(()) if given is None else given
    mask, reference = like.new_zeros(shape[0], 1, *shape[2:]), like.new_zeros(shape)
    end = shape[2] - last
    mask[:, :, :first], mask[:, :, end:] = 1, 1
    return mask, put_shown(reference, first, last, head, tail)


def put_shown(latents, first, last, head, tail):
    """Latents whose first ones are head's first and whose last are tail's last."""
    latents = latents.clone()
    if first:
        latents[:, :, :first] = head[:, :, :first]
    if last:
        latents[:, :, -last:] = tail[:, :, -last:]
    return latents


def condition_tokens(mask, reference, patch):
    """The network's `cond` (B, N, (1 + C) * p * p)."""
    return pack(torch.cat([mask, reference], dim=1), patch)


def with_given(latents, kind, head=None, tail=None):
    """A sample as officially decoded: the pictures of an "i2v" kind replace what was sampled in
    their place; a "v2v" kind leaves all as it is."""
    first, last = shown_latents(kind, latents.shape[2])
    return put_shown(latents, first, last, head, tail) if kind.startswith("i2v") else latents


# Schedule and guidance


def shift_of(tokens_per_latent, latents):
    """alpha: 1 at 256 tokens per latent, 3 at 4096, linear; times the root of the latents."""
    return (1 + (tokens_per_latent - 256) * 2 / (4096 - 256)) * math.sqrt(latents)


def schedule(steps, alpha=1.0):
    """Times (steps + 1,) from 1 to 0, float32, shifted: alpha * t / (1 + (alpha - 1) * t)."""
    t = torch.linspace(1, 0, steps + 1)
    return alpha * t / (1 + (alpha - 1) * t)


class Guidance(NamedTuple):
    """Scales of text and image guidance. oscillation: from step 10 on odd steps use 1. temporal:
    the image's grows along the latents, and less with every step; officially for "i2v" kinds."""

    text: float = 7.5
    image: float = 3.0
    text_oscillation: bool = True
    image_oscillation: bool = True
    temporal: bool = False

    def at(self, step, steps, latents):
        """Text scale and image scale of a step: a number, and a number or (1, 1, T, 1, 1)."""
        pauses = step >= OSCILLATES_FROM and step % 2 == 1
        text = 1.0 if self.text_oscillation and pauses else self.text
        image = 1.0 if self.image_oscillation and pauses else self.image
        if self.temporal and image > 1:
            highest = torch.linspace(image, 1, steps + 1)[step].item()
            image = torch.linspace(1, highest, latents).view(1, 1, -1, 1, 1)
        return text, image


def guide(v, text_scale, image_scale):
    """(1, C, T, h, w) of v (3, C, T, h, w): prompt and condition, negative prompt and condition,
    negative prompt and a condition of zeros."""
    both, image, neither = v.split(1)
    if isinstance(image_scale, torch.Tensor):
        image_scale = image_scale.to(v.device)
    return neither + image_scale * (image - neither) + text_scale * (both - image)


def sample(branches, noise, times, guidance):
    """Euler's steps from noise (1, C, T, h, w) along `times`; branches(latents, t) gives the three
    velocities that `guide` takes."""
    latents, steps = noise, len(times) - 1
    for i, (t, t_next) in enumerate(itertools.pairwise(times)):
        v = guide(branches(latents, t), *guidance.at(i, steps, noise.shape[2]))
        latents = latents + (t_next - t) * v
    return latents
