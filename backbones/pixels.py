"""Frames and latents of a backbone with a diffusers autoencoder: `encode` and `decode` are methods
of its class."""

import contextlib

import torch


@torch.no_grad()
def encode(self, frames):
    """frames (B, 3, F, H, W) in 0..1 -> normalised latents (B, C, T, h, w), float32. Raises
    ValueError where the autoencoder would drop frames."""
    self.geometry.latents_of(frames.shape[2])  # or ValueError
    with vae_on_device(self) as vae:
        x = frames.to(self.device, torch.float32) * 2 - 1
        z = vae.encode(x).latent_dist.mode()
    return (z - moment(self, "latents_mean")) / moment(self, "latents_std")


@torch.no_grad()
def decode(self, latents):
    """latents (B, C, T, h, w) -> frames (B, 3, F, H, W) in 0..1, float32."""
    z = latents.float() * moment(self, "latents_std") + moment(self, "latents_mean")
    with vae_on_device(self) as vae:
        x = vae.decode(z, return_dict=False)[0]
    return (x / 2 + 0.5).clamp(0, 1)


def moment(model, name):
    return torch.tensor(model.vae.config[name], device=model.device).view(1, -1, 1, 1, 1)


@contextlib.contextmanager
def vae_on_device(model):
    try:
        yield model.vae.to(model.device)
    finally:
        if model.placed != "none":
            model.vae.to("cpu")
