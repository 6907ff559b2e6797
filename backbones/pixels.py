"""Frames and latents of a backbone with a diffusers autoencoder: `encode` and `decode` are methods
of its class."""

import contextlib

import torch


@torch.no_grad()
def encode(self, frames):
    """frames (B, 3, F, H, W) in 0..1 -> normalised latents (B, C, T, h, w), float32. Raises
    ValueError where the autoencoder would drop frames."""
    z = encoded(self, frames).latent_dist.mode()
    return (z - moment(self, "latents_mean")) / moment(self, "latents_std")


@torch.no_grad()
def decode(self, latents):
    """latents (B, C, T, h, w) -> frames (B, 3, F, H, W) in 0..1, float32."""
    z = latents.float() * moment(self, "latents_std") + moment(self, "latents_mean")
    with vae_on_device(self) as vae:
        return to_frames(vae.decode(z, return_dict=False)[0])


def encoded(model, frames):
    """What the model's autoencoder makes of frames (B, 3, F, H, W) in 0..1. Raises ValueError where
    it would drop some."""
    model.geometry.latents_of(frames.shape[2])  # or ValueError
    with vae_on_device(model) as vae:
        return vae.encode(frames.to(model.device, torch.float32) * 2 - 1)


def to_frames(x):
    """-1..1, as autoencoders decode, to 0..1, what lies outside clamped."""
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
