"""Every backbone, with a tiny random checkpoint and the exact answer in place of its network."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from toy import make_checkpoint, make_ltx, make_opensora2, make_skyreels, make_wan


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


@dataclass(frozen=True)
class Row:
    make: Callable[[Path], Path]  # a tiny random checkpoint into a folder
    answers: Callable  # (model, clean latents): a context with the exact network


BACKBONES = {
    "LongCatVideoTransformer3DModel": Row(make_checkpoint, longcat_answers),
    "SkyReelsV2Transformer3DModel": Row(make_skyreels, skyreels_answers),
    "MMDiT": Row(make_opensora2, opensora2_answers),
    "WanTransformer3DModel": Row(make_wan, skyreels_answers),
    "LTXVideoTransformer3DModel": Row(make_ltx, skyreels_answers),
}
