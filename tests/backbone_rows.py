"""Every backbone: a tiny random checkpoint, the exact answer in place of its network, and what else
differs where tests are the same for all."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
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

from backbones import opensora2_configs, opensora13_configs


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


SCHEDULER, INDEX = "scheduler/scheduler_config.json", "model_index.json"
OF_DIFFUSERS = (  # files of configuration, as diffusers saves a pipeline
    "transformer/config.json", SCHEDULER, "vae/config.json", "text_encoder/config.json", INDEX
)  # fmt: skip
OF_OPENSORA2 = (
    opensora2_configs.DIT_CONFIG, opensora2_configs.VAE_CONFIG,
    f"{opensora2_configs.T5}/config.json", f"{opensora2_configs.CLIP}/config.json", INDEX,
)  # fmt: skip
OF_OPENSORA13 = (
    *(
        f"{part}/config.json"
        for part in (opensora13_configs.DIT, opensora13_configs.VAE, opensora13_configs.T5)
    ),
    INDEX,
)


@dataclass(frozen=True)
class Row:
    make: Callable[[Path], Path]  # a tiny random checkpoint into a folder
    answers: Callable  # (model, clean latents): a context with the exact network
    files: tuple = OF_DIFFUSERS  # that configure it
    sampling: str = ""  # an option that it alone has
    frames: dict = field(default_factory=lambda: {"generated": [33, 49]})  # of its own window
    clips: int = 1  # of a run from the command line
    float8: tuple = ()  # linear layers that --weights fp8 stores so
    float32: tuple = ()  # and some that it leaves


IN_A_BLOCK = ("transformer_blocks.0.attn1.to_q",)
BACKBONES = {
    "LongCatVideoTransformer3DModel": Row(make_checkpoint, longcat_answers),
    "SkyReelsV2Transformer3DModel": Row(
        make_skyreels, skyreels_answers, sampling="context_noise=0.02", clips=2,
        float8=("blocks.0.attn1.to_q",),
        float32=("condition_embedder.time_proj", "fps_projection.net.2"),
    ),
    "MMDiT": Row(
        make_opensora2, opensora2_answers, OF_OPENSORA2, "guidance_img=2", {"generated": [33, 65]},
        float8=("double_blocks.0.img_attn.q_proj", "single_blocks.0.linear2"),
        float32=(
            "img_in", "time_in.in_layer", "double_blocks.0.img_mod.lin",
            "single_blocks.0.modulation.lin", "final_layer.linear",
        ),
    ),
    "STDiT3": Row(
        make_opensora13, opensora13_answers, OF_OPENSORA13, "guidance_img=2",
        float8=("spatial_blocks.0.attn.qkv", "temporal_blocks.3.mlp.fc2"),
        float32=(
            "x_embedder.proj", "t_block.1", "y_embedder.y_proj.fc1", "final_layer.linear",
            "spatial_blocks.0.attn.q_norm",
        ),
    ),
    "WanTransformer3DModel": Row(
        make_wan, skyreels_answers,
        float8=("blocks.0.attn1.to_q",), float32=("condition_embedder.time_proj",),
    ),
    "LTXVideoTransformer3DModel": Row(
        make_ltx, skyreels_answers, sampling="image_cond_noise_scale=0.15", clips=2,
        float8=IN_A_BLOCK, float32=("time_embed.linear",),
    ),
    "CogVideoXTransformer3DModel": Row(
        make_cogvideox, cogvideox_answers, sampling="dynamic_guidance=true",
        frames={"conditioning": [16, 17], "generated": [17, 33]},
        float8=IN_A_BLOCK, float32=("transformer_blocks.0.norm1.linear",),
    ),
}  # fmt: skip
# LongCat's own tests, and nano's, are those of test_scripts.py, test_configs.py, test_placement.py
OTHERS = [name for name in BACKBONES if name != "LongCatVideoTransformer3DModel"]
