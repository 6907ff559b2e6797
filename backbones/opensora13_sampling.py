"""What Open-Sora v1.3 does around its transformer: lengths, the flow's path and loss, conditions,
times, guidance, sampling. Pure functions.

Source of the formulas: hpcaitech/Open-Sora v1.3 (opensora/schedulers/rf, utils/inference_utils.py,
models/vae). Shape letters as in contract.py. Time is in 0..1000, 1000 is noise. The network
predicts latents - noise; velocities here are canonical, noise - latents.
"""

import itertools
import math
from typing import NamedTuple

import torch

TIME_STRIDE, SPACE_STRIDE = 4, 8  # frames and pixels a side that become one latent
CHUNK = 17  # frames that the autoencoder takes at once
KINDS = (None, "v2v_head", "i2v_head", "i2v_loop", "i2v_tail")
OSCILLATES_FROM = 10  # step, counted from 0
BASE_PIXELS = 512**2  # of the size whose times are not transformed


# Lengths


def latents_of(frames, chunk=CHUNK, overlap=True):
    """Latents that so many frames are encoded to, in chunks of so many frames, each of which begins
    with the last frame of the one before where they overlap; chunk None is all at once. Frames that
    fill no chunk are dropped, but one frame alone is a picture."""
    if frames == 1 or chunk is None:
        return of_chunk(frames)
    chunks = (frames - 1) // (chunk - 1) if overlap else frames // chunk
    return chunks * of_chunk(chunk)


def of_chunk(frames):
    return 1 + (frames - 1) // TIME_STRIDE


def latent_shape(frames, height, width, chunk=CHUNK, overlap=True):
    """(T, h, w) of so many frames of that size in pixels."""
    return latents_of(frames, chunk, overlap), height // SPACE_STRIDE, width // SPACE_STRIDE


# The flow's path and loss


def noisy_latents(latents, noise, timestep):
    """(1 - t) * latents + t * noise, at t = timestep (B,) / 1000."""
    t = timestep.view(-1, 1, 1, 1, 1) / 1000
    return (1 - t) * latents + t * noise


def velocity_of(output, channels, sign=-1):
    """Canonical velocity (B, channels, T, h, w) of what the network gives, whose other channels
    mean nothing; another sign is for parity alone."""
    return sign * output[:, :channels]


def frame_weights(frames, mask_index, given_weight=1.0):
    """Of the squared error, (T, 1, 1): given_weight on given frames, and on the others what makes
    the mean 1."""
    given = len(mask_index)
    weights = torch.ones(frames, 1, 1)
    if 0 < given < frames:
        weights *= (frames - given * given_weight) / (frames - given)
        weights[list(mask_index)] = given_weight
    return weights


# Conditions


def given_frames(kind, latents, reference_latents, length):
    """Indices of the latents that a condition gives, of so many; `length` is that of v2v_head,
    which is no longer than the sample or the reference."""
    if kind not in KINDS:
        known = ", ".join(str(kind) for kind in KINDS)
        raise ValueError(f"condition must be one of {known}, got {kind}")
    if kind == "v2v_head":
        return list(range(min(length, latents, reference_latents)))
    first = [0] if kind in ("i2v_head", "i2v_loop") else []
    last = [latents - 1] if kind in ("i2v_tail", "i2v_loop") else []
    return list(dict.fromkeys(first + last))


def condition(kind, shape, references, length):
    """The network's mask_index, cond, and cond_mask, for latents of `shape` (B, C, T, h, w).

    references (B, C, T_ref, h, w), clean: a first given latent is their first, and one at the end
    is their last.
    """
    mask_index = given_frames(kind, shape[2], references.shape[2], length)
    cond, cond_mask = references.new_zeros(shape), references.new_zeros(shape)
    for frame in mask_index:
        at_end = frame == shape[2] - 1 and kind in ("i2v_tail", "i2v_loop")
        cond[:, :, frame] = references[:, :, -1 if at_end else frame]
    cond_mask[:, :, mask_index] = 1
    return mask_index, cond, cond_mask


# Times


def transform_time(timestep, height, width, num_frames, scale=1.0):
    """Moves times up, r * t / (1 + (r - 1) * t), for larger and longer videos: r is the root of
    pixels over 512 * 512, and of a video times the root of the latents in time, times scale."""
    ratio = math.sqrt(height * width / BASE_PIXELS)
    if num_frames > 1:
        ratio *= math.sqrt((num_frames - 1) // TIME_STRIDE) * scale
    t = timestep / 1000
    return 1000 * ratio * t / (1 + (ratio - 1) * t)


def schedule(steps):
    """Times (steps + 1,), float32, from 1000 to 0, not transformed."""
    return 1000 * torch.linspace(1, 0, steps + 1)


# Guidance


class Guidance(NamedTuple):
    """Scales of text and image guidance. oscillation: from step 10 on odd steps use 1. weighting:
    the image's, where it is more than `lowest`, grows along the latents from that, and less with
    every step. rescale: without a condition, 0.7 of what guidance makes of the deviation of the
    prompt's velocity is undone."""

    text: float = 7.5
    image: float = 7.5
    text_oscillation: bool = False
    image_oscillation: bool = False
    weighting: bool = False
    lowest: float = 1.0
    rescale: bool = False

    def at(self, step, steps, latents):
        """Text scale and image scale of a step: a number, and a number or (1, 1, T, 1, 1)."""
        pauses = step >= OSCILLATES_FROM and step % 2 == 1
        text = 1.0 if self.text_oscillation and pauses else self.text
        image = 1.0 if self.image_oscillation and pauses else self.image
        if self.weighting and image > self.lowest:
            highest = torch.linspace(image, self.lowest, steps)[step].item()
            image = torch.linspace(self.lowest, highest, latents).view(1, 1, -1, 1, 1)
        return text, image


def guide_text(prompt, null, text_scale, rescale=False):
    """Of the velocities (B, C, T, h, w) with the prompt and with the null text."""
    v = null + text_scale * (prompt - null)
    if not rescale:
        return v
    of_prompt, of_guided = (x.flatten(1).std(dim=1).view(-1, 1, 1, 1, 1) for x in (prompt, v))
    return v * (0.7 * of_prompt / of_guided + 0.3)


def guide_image(both, image, neither, text_scale, image_scale):
    """Of the velocities (B, C, T, h, w) with prompt and condition, null text and condition, and
    null text and a condition of zeros, whose mask stays."""
    if isinstance(image_scale, torch.Tensor):
        image_scale = image_scale.to(image.device)
    return neither + image_scale * (image - neither) + text_scale * (both - image)


def sample(branches, noise, times, guidance):
    """Euler's steps from noise (B, C, T, h, w) along `times`, which end at 0; branches(latents, t)
    gives the canonical velocities that guide_text (two) or guide_image (three) takes."""
    latents, steps = noise, len(times) - 1
    for i, (t, t_next) in enumerate(itertools.pairwise(times)):
        velocities = branches(latents, t)
        text, image = guidance.at(i, steps, noise.shape[2])
        if len(velocities) == 2:
            v = guide_text(*velocities, text, guidance.rescale)
        else:
            v = guide_image(*velocities, text, image)
        latents = latents + (t_next - t) / 1000 * v
    return latents


def branch_inputs(text, mask, null_text, mask_index=(), cond=None, cond_mask=None, negative=None):
    """The network's arguments for all branches of `sample` at once, so many times the batch.

    text (B, 1, L, width) with its mask (B, L) and null_text (L, width), which is cut by the same
    mask. negative: what takes the null text's place, with a mask of its own, but on given frames.
    Without given frames there are two branches, with them three.
    """
    null = null_text.expand_as(text)
    other, other_mask = negative or (null, mask)
    if not mask_index:
        return {"y": torch.cat([text, other]), "mask": torch.cat([mask, other_mask])}
    return {
        "y": torch.cat([text, other, other]), "mask": torch.cat([mask, other_mask, other_mask]),
        "cond": torch.cat([cond, cond, torch.zeros_like(cond)]),
        "cond_mask": cond_mask.repeat(3, 1, 1, 1, 1), "mask_index": mask_index,
        "y_null": null.repeat(3, 1, 1, 1),
    }  # fmt: skip
