"""A linear video autoencoder: what `nano/checkpoint` has in place of the Wan VAE.

The first frame is cut into 8x8 patches, every following group of four frames into 4x8x8 patches;
each patch is projected on the principal axes of its kind. Causal in time like AutoencoderKLWan,
with the same `encode`/`decode` interface: 1 + 4k frames give 1 + k latents, 8 times smaller in
height and width.
"""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

PATCH, GROUP = 8, 4  # pixels on a side, frames
STILL = GROUP**0.5  # a group of equal frames has this many times the coefficients of one frame


class LinearVideoAutoencoder(ModelMixin, ConfigMixin):
    """`latents_mean` and `latents_std` (one value per channel) normalise the latents, as in Wan's
    config."""

    @register_to_config
    def __init__(self, z_dim=16, latents_mean=None, latents_std=None):
        super().__init__()
        for kind, size in (("first", 3 * PATCH**2), ("group", 3 * GROUP * PATCH**2)):
            self.register_parameter(f"{kind}_axes", nn.Parameter(torch.zeros(z_dim, size)))
            self.register_parameter(f"{kind}_mean", nn.Parameter(torch.zeros(size)))

    def encode(self, x, return_dict=True):
        """x (B, 3, 1 + 4k, H, W) in -1..1 -> `latent_dist` whose mode is (B, z_dim, 1 + k, H / 8, W
        / 8)."""
        first, groups = patches(x[:, :, :1]), patches(x[:, :, 1:])
        z = torch.cat(
            [
                (first - self.first_mean) @ self.first_axes.T * STILL,
                (groups - self.group_mean) @ self.group_axes.T,
            ],
            dim=1,
        ).permute(0, 4, 1, 2, 3)
        moments = torch.cat([z, torch.full_like(z, -30.0)], dim=1)  # no spread about the mean
        dist = DiagonalGaussianDistribution(moments, deterministic=True)
        return AutoencoderKLOutput(latent_dist=dist) if return_dict else (dist,)

    def decode(self, z, return_dict=True):
        """z (B, z_dim, 1 + k, h, w) -> x (B, 3, 1 + 4k, 8h, 8w)."""
        z = z.permute(0, 2, 3, 4, 1)
        first = unpatch(z[:, :1] / STILL @ self.first_axes + self.first_mean, 1)
        groups = unpatch(z[:, 1:] @ self.group_axes + self.group_mean, GROUP)
        x = torch.cat([first, groups], dim=2)
        return DecoderOutput(sample=x) if return_dict else (x,)


def patches(x):
    """(B, 3, F, H, W) -> (B, F / length, H / 8, W / 8, 3 * length * 64); length is 1 for a single
    frame."""
    length = 1 if x.shape[2] == 1 else GROUP
    x = x.unflatten(2, (-1, length)).unflatten(4, (-1, PATCH)).unflatten(6, (-1, PATCH))
    return x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)


def unpatch(x, length):
    """The inverse of `patches`."""
    x = x.unflatten(4, (3, length, PATCH, PATCH)).permute(0, 4, 1, 5, 2, 6, 3, 7)
    return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)
