"""A frozen video model with a State-Aware Adapter, as a model that restores: its context is the
low-resolution clip."""

import itertools
import math

import torch

from common.errors import MisfitError
from litevsr.adapter import StateAwareAdapter


class Restorer:
    """What the methods need of a backbone (backbones/contract.py), where context means the latents
    of the low-resolution clip, enlarged to the size of the result: as many as are predicted.

    All but the velocity is the model's own. `velocity` runs the frozen blocks on twice the batch:
    the first half is the noisy latents, the second the low-resolution ones with what the adapter
    adds to their tokens; after each block the first half is changed by the second.
    """

    def __init__(self, model, adapter):
        refuse_misfit(model)
        self.model, self.adapter = model, adapter

    def __getattr__(self, name):
        return getattr(self.model, name)

    def velocity(self, noisy_latents, sigma, cond_latents, text, state=None):
        """(B, C, T, h, w) of noisy latents of that shape at sigma (B,), given cond_latents (1 or B,
        C, T, h, w) and the latest estimate of the clean latents, at first (None) the same."""
        low = cond_latents.expand_as(noisy_latents)
        tokens = self.adapter(low, low if state is None else state, sigma)

        def enter(i, x):
            first, second = x.chunk(2)
            return torch.cat([first, second + tokens.to(x.dtype)])

        both = torch.cat([noisy_latents, low])
        with self.model.block_input(enter), self.model.block_output(self.adapter.inject):
            v = self.model.velocity(both, sigma.repeat(2), both[:, :, :0], text)
        return v[: len(noisy_latents)]

    @torch.no_grad()
    def generate(self, cond_latents, text, noise, steps=1, shift=1.0):
        """Latents (1, C, T, h, w): `steps` Euler steps from noise, at sigmas shifted by `shift`.
        The state is the estimate of the step before."""
        latents, state = noise, None
        for sigma, following in itertools.pairwise(sigmas(steps, shift)):
            at = torch.full((len(noise),), sigma, device=noise.device)
            v = self.velocity(latents, at, cond_latents, text, state)
            state = latents - sigma * v
            latents = latents + (following - sigma) * v
        return latents


def sigmas(steps, shift):
    """1 .. 0 in so many steps: s t / (1 + (s - 1) t) of evenly spaced t."""
    spaced = [1 - i / steps for i in range(steps + 1)]
    return [shift * t / (1 + (shift - 1) * t) for t in spaced]


def new_adapter(model, latents, size, heads, **options):
    """An adapter of the model's measures; `latents` (..., h, w) are those of frames of that size in
    pixels."""
    height, width = latents.shape[-2:]
    patch = math.isqrt(height * width // model.tokens_per_latent(*size))
    return StateAwareAdapter(
        model.latent_channels, model.hidden_width, model.depth, heads, patch, **options
    )


def refuse_misfit(model):
    lengths = model.geometry.context_lengths
    if lengths is not None and 0 not in lengths:
        raise MisfitError(
            f"{model.geometry.class_name} predicts nothing without context; restoring needs a "
            "model that does, as LongCat-Video, SkyReels-V2-DF and Wan 2.1"
        )
