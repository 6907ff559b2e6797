"""Adaptive trajectory unrolling: what the adapter reads as its state in training.

In sampling the state is the estimate of the step before. A training step at sigma t therefore walks
there first, from the low-resolution latents over one or two larger sigmas, without gradient: more
often where t is small, where a sampler has walked far.
"""

import torch

SHIFT = 3.0  # of the drawn sigmas, towards noise
PURE_NOISE = 0.15  # share of draws at sigma 1, for sampling in one step
ALONE_ABOVE = 0.85  # sigma from which nothing comes before
TWICE_BELOW, TWICE = 0.5, 0.25  # sigma below which this share has two larger ones before it
MOST = 3  # sigmas of one walk


def draw_walks(batch, alone=False, pure_noise=PURE_NOISE):
    """Sigmas (batch, MOST), falling, of which the last is the one to learn at, and how many of the
    last count (batch,): 1 where `alone`, as in the first iterations."""
    t = torch.sigmoid(torch.randn(batch))
    t = SHIFT * t / (1 + (SHIFT - 1) * t)
    t = torch.where(torch.rand(batch) < pure_noise, torch.ones(batch), t)
    counts = torch.where(t > ALONE_ABOVE, 1, 2)
    counts = torch.where((t < TWICE_BELOW) & (torch.rand(batch) < TWICE), MOST, counts)
    larger = t[:, None] + (1 - t[:, None]) * torch.rand(batch, MOST - 1)
    falling = larger.sort(1, descending=True).values
    falling[:, -1] = torch.where(counts == MOST, falling[:, -1], larger[:, -1])  # one is uniform
    walks = torch.cat([falling, t[:, None]], dim=1)
    return walks, torch.ones_like(counts) if alone else counts


@torch.no_grad()
def walked_state(restorer, latents, noise, low, text, walks, counts):
    """The state (B, C, T, h, w) at the last of each row's sigmas, of latents that are known: `low`
    where nothing comes before, else the estimate at the sigma before."""
    state = low.clone()
    for column in range(MOST - 1):
        rows = (counts >= MOST - column).nonzero()[:, 0]
        if len(rows) == 0:
            continue
        sigma = walks[rows, column]
        weight = sigma.view(-1, 1, 1, 1, 1)
        noisy = (1 - weight) * latents[rows] + weight * noise[rows]
        v = restorer.velocity(noisy, sigma, low[rows], text, state[rows])
        state[rows] = noisy - weight * v
    return state


def training_loss(restorer, latents, noise, low, text, walks, counts):
    """Mean squared error of the velocity at the end of each row's walk."""
    state = walked_state(restorer, latents, noise, low, text, walks, counts)
    sigma = walks[:, -1]
    weight = sigma.view(-1, 1, 1, 1, 1)
    v = restorer.velocity((1 - weight) * latents + weight * noise, sigma, low, text, state)
    return (v - (noise - latents)).square().mean()
