"""Every backbone, with a tiny random checkpoint and the exact answer in place of its network."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from toy import (
    make_checkpoint,
    make_cogvideox,
    make_ltx,
    make_opensora2,
    make_opensora13,
    make_skyreels,
    make_wan,
)


@contextlib.contextmanager
def answering(model, forward):
    """The model's DiT with another forward."""
    own, model.dit.forward = model.dit.forward, forward
    try:
        yield
    finally:
        model.dit.forward = own


def longcat_answers(model, clean):
    """The DiT replaced by what it approximates, latents - noise, of its own input: flow matching
    has x_t = (1 - t / 1000) latents + t / 1000 noise at timestep t; context is at t = 0."""

    def forward(x, timestep, *_, num_cond_latents=0, noise_only=False, return_kv=False, **more):
        if return_kv:
            return x, {}
        if x.shape[2] > clean.shape[2]:
            x, timestep = x[:, :, num_cond_latents:], timestep[:, num_cond_latents:]
        return (clean - x) / (timestep / 1000).view(len(x), 1, -1, 1, 1)

    return answering(model, forward)


def skyreels_answers(model, clean):
    """As longcat_answers; this network predicts noise - latents."""

    def forward(x, timestep, text, context=0):
        x, timestep = x[:, :, context:], timestep[:, context:]
        return (x - clean) / (timestep / 1000).view(len(x), 1, -1, 1, 1)

    return answering(model, forward)


def opensora2_answers(model, clean):
    """As skyreels_answers; its tokens are all places of the latents, and the context's come first,
    with an answer that nobody may read."""

    def forward(img, timesteps, **more):
        wanted = clean.flatten(2).transpose(1, 2)
        x = img[:, -wanted.shape[1] :]
        answer = (x - wanted) / timesteps.view(-1, 1, 1)
        return torch.cat([torch.full_like(img[:, : -wanted.shape[1]], 7.0), answer], dim=1)

    return answering(model, forward)


def cogvideox_answers(model, clean):
    """The v of x_t = a latents + s noise, a = sqrt(abar): v = a noise - s latents = (a x_t -
    latents) / s. abar is the schedule's; between two timesteps s / (a + s) lies on a line. The
    context's places come first, with an answer that nobody may read."""
    bars = model.scheduler.alphas_cumprod.double().numpy()
    levels = np.sqrt(1 - bars) / (np.sqrt(bars) + np.sqrt(1 - bars))

    def forward(x, timestep, *given):
        level = np.interp(timestep.numpy(), np.arange(len(levels)), levels)
        length = np.sqrt(level**2 + (1 - level) ** 2)
        a, s = (torch.tensor(part / length).view(-1, 1, 1, 1, 1) for part in (1 - level, level))
        own = slice(x.shape[2] - clean.shape[2], None)
        v = torch.full_like(x[:, : clean.shape[1]], 7.0)
        v[:, :, own] = (a * x[:, : clean.shape[1], own] - clean) / s
        return v

    return answering(model, forward)


def opensora13_answers(model, clean):
    """As longcat_answers; this network has one time for all frames and channels that mean nothing,
    and answers for the context's places too, which nobody may read."""

    def forward(x, timestep, **more):
        known = x.shape[2] - clean.shape[2]
        answer = (clean - x[:, :, known:]) / (timestep / 1000).view(-1, 1, 1, 1, 1)
        answer = torch.cat([torch.full_like(x[:, :, :known], 7.0), answer], dim=2)
        return torch.cat([answer, torch.full_like(answer, 5.0)], dim=1)

    return answering(model, forward)


@dataclass(frozen=True)
class Row:
    make: Callable[[Path], Path]  # a tiny random checkpoint into a folder
    answers: Callable  # (model, clean latents): a context with the exact network


BACKBONES = {
    "LongCatVideoTransformer3DModel": Row(make_checkpoint, longcat_answers),
    "SkyReelsV2Transformer3DModel": Row(make_skyreels, skyreels_answers),
    "MMDiT": Row(make_opensora2, opensora2_answers),
    "STDiT3": Row(make_opensora13, opensora13_answers),
    "WanTransformer3DModel": Row(make_wan, skyreels_answers),
    "LTXVideoTransformer3DModel": Row(make_ltx, skyreels_answers),
    "CogVideoXTransformer3DModel": Row(make_cogvideox, cogvideox_answers),
}
