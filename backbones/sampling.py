"""Noise schedule and guidance of LongCat-Video's sampler (pipeline_longcat_video.py, 6b3f4b8), and
noise on the context, which any sampler may add."""

import hashlib
import itertools

import torch


def schedule(scheduler, steps, enhance_hf=True, distill=False):
    """Sigmas from 1 to 0, one more than evaluations, with the shift of a diffusers flow-matching
    Euler scheduler.

    enhance_hf keeps those above 0.5 and goes on with 0.5, 0.45, ..., 0.05: 50 steps become 56 at
    shift 12. distill is the schedule of the distilled weights.
    """
    if distill and enhance_hf:
        raise ValueError("distill has its own schedule: pass enhance_hf=False")
    if distill:  # 20, 40, ..., 1000, every (50 / steps)-th from the top
        base = torch.arange(50, 0, -1, dtype=torch.float32) / 50
        base = base[torch.arange(steps) * 50 // steps]
    else:
        base = torch.linspace(1, 0.001, steps)
    scheduler.set_timesteps(sigmas=base.tolist(), device="cpu")
    sigmas = scheduler.sigmas
    if not enhance_hf:
        return sigmas
    tail = torch.arange(500, -1, -50, dtype=torch.float32) / 1000
    return torch.cat([sigmas[sigmas > 0.5], tail])


def guide(v, scale):
    """Classifier-free guidance with the optimised scale of the negative branch (CFG-Zero*).

    v (2, C, T, h, w) holds the negative, then the positive branch; gives (1, C, T, h, w).
    """
    negative, positive = v[:1].flatten(1), v[1:].flatten(1)
    weight = (negative * positive).sum(1) / (negative.square().sum(1) + 1e-8)
    scaled = weight.view(-1, 1, 1, 1, 1) * v[:1]
    return scaled + scale * (v[1:] - scaled)


def generator_of(noise):
    """A CPU generator that the values of `noise` alone decide."""
    digest = hashlib.sha256(noise.cpu().contiguous().numpy().tobytes()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def noise_beside(latents, known):
    """(1, C, known, h, w), drawn by a generator that the values of `latents` (1, C, T, h, w)
    decide."""
    shape = (*latents.shape[:2], known, *latents.shape[3:])
    return torch.randn(shape, generator=generator_of(latents.detach())).to(latents.device)


def with_context(cond_latents, noise, sigma, x):
    """cond_latents with noise at sigma (B,), and x after them."""
    weight = sigma.view(-1, 1, 1, 1, 1)
    return torch.cat([(1 - weight) * cond_latents + weight * noise, x], dim=2)


def contexts(cond_latents, noise, sigma):
    """cond_latents with noise at sigma, a new one each time, without end. The initial noise alone
    decides which, so that two methods that continue from one see the same contexts."""
    if not sigma:
        yield from itertools.repeat(cond_latents)
    generator = generator_of(noise)
    while True:
        drawn = torch.randn(cond_latents.shape, generator=generator).to(cond_latents.device)
        yield (1 - sigma) * cond_latents + sigma * drawn
