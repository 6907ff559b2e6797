"""Where methods and placement act on a backbone, and its prompts: functions that become methods of
its class, as backbones/contract.py has them. Of a model they read what parts.set_up gives it, such
as `velocity_site`, the list of functions on its velocity, and `placed`, its plan."""

import torch

from backbones.parts import registered
from devices import offload
from devices.paths import all_paths


def block_input(self, function):
    """function(0, x) -> x: the video tokens (B, N, hidden) before the first block."""
    return registered(self.dit.sites["block_input"], function)


def timestep_embedding(self, function):
    """function(i, e, sigma) -> e (B, T, width) for block i; sigma (B, T), 0 on context."""
    return registered(self.dit.sites["timestep_embedding"], function)


def modulation(self, function):
    """function(i, m) -> m: what modulates block i, {"attn.shift": (B, T, hidden), ...}."""
    return registered(self.dit.sites["modulation"], function)


def block_output(self, function):
    """function(i, x) -> x: the video tokens (B, N, hidden) after block i."""
    return registered(self.dit.sites["block_output"], function)


def predicted_velocity(self, function):
    """function(v) -> v: the velocity (B, C, T, h, w) of each guidance branch, before guidance."""
    return registered(self.velocity_site, function)


def at_velocity(model, velocity, known):
    """velocity (B, C, T, h, w) as the functions at its site make it, which get all latents but the
    `known` first."""
    context, velocity = velocity[:, :, :known], velocity[:, :, known:]
    for function in model.velocity_site:
        velocity = function(velocity)
    return torch.cat([context, velocity], dim=2)


def last(model, *given):
    """Video tokens that leave the last block, and the final layer's embedding, on the way to
    model.velocity(*given)."""
    found = {}

    def keep(i, value, *sigma):
        found["e" if sigma else "x"] = value
        return value

    with model.block_output(keep), model.timestep_embedding(keep):
        model.velocity(*given)
    return found["x"], found["e"]


def tokens_per_latent(self, height, width):
    """Video tokens of one latent of frames of this size."""
    return height * width // self.geometry.size_multiple**2


def embed_each(self, prompts):
    """Of each prompt {"embeds": (1, 1, L, width), "mask": (1, L)}, on the CPU; L is the model's
    `prompt_tokens`."""
    return self.prompt_encoder(prompts, self.device, self.prompt_tokens)


def prompt_settings(self):
    return self.prompt_encoder.dtype, self.device.type, self.prompt_tokens


def context_cache(self, cond_latents):
    """None: the context sees what follows it, so that it is another at every step."""
    return None


def place(self, plan):
    """The "vae" visits the device only while it works; "blocks" are streamed from host. Of their
    matrices those stay on the device whose names begin with `stays`, of the model's class."""
    dit, device, shards = self.dit, self.device, getattr(self, "shards", None)
    if shards:
        shards.place(self.stays)
    elif plan == "blocks" and self.placed != "blocks":
        dit.to("cpu")
        streamed = {path.partition(".")[0] for path in all_paths(self.stacks)}
        for name, part in dit.named_children():
            if name not in streamed:
                part.to(device)
        for p in (*dit.parameters(recurse=False), *dit.buffers(recurse=False)):
            p.data = p.data.to(device)
        offload.stream_blocks(dit, dit.blocks, device, self.stays)
    elif plan != "blocks":
        dit.to(device)
    self.vae.to("cpu" if plan != "none" else device)
    self.placed = plan


def recompute(self, blocks):
    """How many blocks are recomputed in backward: memory for time. All where None."""
    self.dit.recompute_blocks = self.depth if blocks is None else blocks
