"""Where methods and placement act on a backbone: functions that become methods of its class, as
backbones/contract.py has them. Of a model they read `dit`, `depth`, `geometry` and `velocity_site`,
the list of functions on its velocity."""

import torch

from backbones.parts import registered


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


def recompute(self, blocks):
    """How many blocks are recomputed in backward: memory for time. All where None."""
    self.dit.recompute_blocks = self.depth if blocks is None else blocks
