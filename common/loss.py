"""Random streams, the flow-matching loss, and the preflight that guards its sign."""

import hashlib
import math

import torch

PREFLIGHT_SIGMAS, PREFLIGHT_DRAWS = (0.25, 0.5, 0.75), 2


def stream(seed, video_id, name):
    """A CPU generator for one purpose on one video: neither order, sharding nor device changes a
    draw."""
    digest = hashlib.sha256(f"{seed}\n{video_id}\n{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def draw_noise(generator, latents):
    return torch.randn(latents.shape, generator=generator).to(latents.device)


def velocity_target(latents, noise):
    return noise - latents


def add_noise(latents, noise, sigma):  # sigma (B,)
    weight = sigma.view(-1, 1, 1, 1, 1)
    return (1 - weight) * latents + weight * noise


def flow_matching_loss(model, clip, sigma, noise):
    """Mean squared error of the velocity of clip.target at sigma (1,), given clip.context. float32.

    noisy = (1 - sigma) * latents + sigma * noise, target = noise - latents (oracles/longcat,
    "Adaptation", sign `consistent`).
    """
    noisy = add_noise(clip.target, noise, sigma)
    velocity = model.velocity(noisy, sigma, clip.context, clip.text)
    return (velocity - velocity_target(clip.target, noise)).square().mean()


@torch.no_grad()
def preflight(model, clip):
    """Is there something to adapt? `loss` of the model, `zero_loss` of predicting zero and
    `negated_loss` of the negated prediction on the adaptation's own problem, as means over fixed
    sigmas and draws; None where not finite."""
    generator = stream(clip.seed, clip.video.id, "preflight")
    losses = torch.zeros(3, dtype=torch.float64)
    for _ in range(PREFLIGHT_DRAWS):
        noise = draw_noise(generator, clip.target)
        target = velocity_target(clip.target, noise)
        for value in PREFLIGHT_SIGMAS:
            sigma = torch.tensor([value], device=model.device)
            noisy = add_noise(clip.target, noise, sigma)
            velocity = model.velocity(noisy, sigma, clip.context, clip.text)
            errors = [x.square().mean() for x in (velocity - target, target, -velocity - target)]
            losses += torch.stack(errors).cpu()
    losses /= PREFLIGHT_DRAWS * len(PREFLIGHT_SIGMAS)
    found = [value if math.isfinite(value) else None for value in losses.tolist()]
    return dict(zip(("loss", "zero_loss", "negated_loss"), found, strict=True))


def beats_zero(losses):
    """Whether a preflight's model predicts better than predicting zero does."""
    loss, zero_loss = losses["loss"], losses["zero_loss"]
    return loss is not None and zero_loss is not None and loss < zero_loss
