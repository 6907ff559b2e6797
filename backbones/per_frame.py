"""What models with a timestep for each latent frame share (SkyReels, Wan, LTX): latents that follow
a clean context, and one projection of the timestep embedding for all blocks.

The functions with `self` become methods of a backbone's class, as those of sites.py. Of a model
they read `network_sign`, `velocity_site`, `text_for_dit` (text, batch) and `dit`, which is called
with (latents, timestep (B, T) in 0..1000, what text_for_dit gave, number of context latents) and
has `sites`, `blocks`, `config.patch_size` and `head`.
"""

import functools

import torch
import torch.nn.functional as F

from backbones import sites
from backbones.blocks import apply, run_block
from devices import parallel


def through_blocks(dit, x, e, m, sigma, weight, **more):
    """Tokens x (B, N, C) after all blocks, and the final layer's embedding (B, T, width).

    e (B, T, width) at sigma (B, T) is the embedding of all blocks, m (B, T, parts * C) its
    projection `weight` silu(e) + ..., to which each block adds a table of its own. Where a function
    makes e' of e for block i, that one gets m + weight (silu(e') - silu(e)): what else is in m
    (SkyReels' frame rate) stays.
    """
    x = at_site(dit, "block_input", 0, x)
    for i in range(len(dit.blocks)):
        given, steered = m, at_site(dit, "timestep_embedding", i, e, sigma)
        if steered is not e:
            given = m + F.linear(F.silu(steered) - F.silu(e), weight)
        x = run_block(dit, i, x, given, **more)
        x = at_site(dit, "block_output", i, x)
    return x, at_site(dit, "timestep_embedding", len(dit.blocks), e, sigma)


def at_site(dit, name, i, value, *more):
    return apply(tuple(dit.sites[name]), i, value, *more)


def velocity(self, noisy_latents, sigma, cond_latents, text, cache=None, context_noise=0.0):
    """Velocity noise - latents, float32, of noisy_latents (B, C, T, h, w) at sigma (B,), after
    cond_latents (1 or B, C, T_cond, h, w), which have noise at context_noise."""
    batch, context = len(noisy_latents), cond_latents.shape[2]
    x = torch.cat([cond_latents.expand(batch, -1, -1, -1, -1), noisy_latents], dim=2)
    timestep = (1000 * sigma.to(x))[:, None].repeat(1, x.shape[2])
    timestep[:, :context] = 1000 * context_noise
    velocity = self.network_sign * self.dit(x, timestep, self.text_for_dit(text, batch), context)
    for function in self.velocity_site:
        velocity = function(velocity)
    return velocity


@torch.no_grad()
def before_head(self, noisy_latents, sigma, cond_latents, text):
    """What `head` takes, of the noisy frames, on the way to `velocity` of the same arguments:
    tokens (B, T, S, C) and embedding (B, T, C)."""
    x, e = sites.last(self, noisy_latents, sigma, cond_latents, text)
    frames = noisy_latents.shape[2]
    return x.unflatten(1, (e.shape[1], -1))[:, -frames:].clone(), e[:, -frames:].clone()


def head(self, x, e, noisy_latents, sigma):
    """Velocity of noisy_latents at sigma, of what `before_head` gave; no velocity site."""
    shape, (_, height, width) = noisy_latents.shape, self.dit.config.patch_size
    grid = (shape[2], shape[3] // height, shape[4] // width)
    return self.network_sign * self.dit.head(x, e, grid)


def denoise(model, scheduler, sigmas, latents, contexts, texts, guidance_scale, context_noise=0.0):
    """latents (1, C, T, h, w) after the steps of a scheduler, whose evaluations are at `sigmas`,
    each after the next of `contexts`. texts: the negative and the positive one, or that alone."""
    for t, sigma in zip(scheduler.timesteps, sigmas, strict=True):
        given = latents, sigma.view(1).to(model.device), next(contexts)
        velocity = functools.partial(model.velocity, *given, context_noise=context_noise)
        v = parallel.each(velocity, texts)
        v = v[0] + guidance_scale * (v[-1] - v[0]) if len(v) > 1 else v[0]
        latents = scheduler.step(v, t, latents, return_dict=False)[0]
    return latents
