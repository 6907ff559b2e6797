"""Where methods and placement act on a backbone: functions that become methods of its class, as
backbones/contract.py has them. Of a model they read `dit`, `depth`, `geometry` and `velocity_site`,
the list of functions on its velocity."""

from backbones.parts import registered


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


def tokens_per_latent(self, height, width):
    """Video tokens of one latent of frames of this size."""
    return height * width // self.geometry.size_multiple**2


def recompute(self, blocks):
    """How many blocks are recomputed in backward: memory for time. All where None."""
    self.dit.recompute_blocks = self.depth if blocks is None else blocks
