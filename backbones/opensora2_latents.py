"""Packed latents of Open-Sora v2.0: from and to pixels, as the network's tokens, and its condition.

A packed latent (B, C * p * p, T, h / p, w / p) has a channel for each place of a p x p patch of the
autoencoder's (B, C, T, h, w): in the order channel, row, column, as in opensora2_sampling.pack.
"""

import torch
import torch.nn.functional as F

from backbones.pixels import encoded, to_frames, vae_on_device


@torch.no_grad()
def encode(self, frames):
    """frames (B, 3, F, H, W) in 0..1 -> packed latents, float32, the posterior's mode. Raises
    ValueError where the autoencoder would drop frames."""
    z = encoded(self, frames).latent_dist.mode() * self.vae.config.scaling_factor
    return F.pixel_unshuffle(z.transpose(1, 2), self.dit.config.patch_size).transpose(1, 2)


@torch.no_grad()
def decode(self, latents):
    """packed latents -> frames (B, 3, F, H, W) in 0..1, float32."""
    z = F.pixel_shuffle(latents.float().transpose(1, 2), self.dit.config.patch_size)
    with vae_on_device(self) as vae:
        z = z.transpose(1, 2) / vae.config.scaling_factor
        return to_frames(vae.decode(z, return_dict=False)[0])


def tokens(x):  # (B, C, T, h, w) -> (B, T * h * w, C)
    return x.flatten(2).transpose(1, 2)


def latents(tokens, shape):  # (B, T * h * w, C) -> `shape` (B, C, T, h, w)
    return tokens.transpose(1, 2).unflatten(2, shape[2:])


def context_alone(x, cond_latents):
    """Mask and reference, as opensora2_sampling.condition gives them, that show the context, which
    x (B, C, T, h, w) begins with."""
    known = cond_latents.shape[2]
    mask, reference = torch.zeros_like(x[:, :1]), torch.zeros_like(x)
    mask[:, :, :known], reference[:, :, :known] = 1, cond_latents
    return mask, reference


def condition_of(mask, reference, patch):
    """(B, p * p + C, T, h, w), whose tokens are the network's condition."""
    return torch.cat([mask.expand(-1, patch**2, -1, -1, -1), reference], dim=1)
