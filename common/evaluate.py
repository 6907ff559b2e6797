"""All scores of one generated clip, and the two references that a table needs beside them."""

import torch

from common.data import LATENT_FRAMES
from common.metrics import score
from common.motion import motion_scores


def evaluate(frames, truth, before, lpips=None):
    """frames and truth (F, 3, H, W) float in 0..1, which follow the frame before (3, H, W)."""
    return score(frames, truth, lpips) | motion_scores(frames, truth, before)


def references(model, clip, lpips=None):
    """Means for the same frames: of repeating the last frame before them, and of the real ones
    through the autoencoder and back (the ceiling of any method)."""
    before, truth = clip.cond_frames[-1], clip.truth
    real = torch.cat([clip.cond_frames, truth])
    more = -(len(real) - 1) % LATENT_FRAMES  # to 4k + 1, at the end: the autoencoder is causal
    real = torch.cat([real, real[-1:].expand(more, -1, -1, -1)])
    again = model.decode(model.encode(real.transpose(0, 1)[None]))[0].transpose(0, 1).cpu()
    after = again[len(clip.cond_frames) :][: len(truth)]
    shown = {"repeat_last": before.expand_as(truth), "reconstruction": after}
    return {
        name: {
            key: value
            for key, value in evaluate(frames, truth, before, lpips).items()
            if not key.endswith("_per_frame")
        }
        for name, frames in shown.items()
    }
