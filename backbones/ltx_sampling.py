"""The schedules of LTX-Video's samplers, and noise on the context (diffusers' LTXPipeline and
LTXConditionPipeline, 0.42.1)."""

import torch

from backbones.sampling import generator_of

THRESHOLD = 0.025  # how far the slow half of linear_quadratic comes


def schedule(scheduler, steps, tokens):
    """Sigmas from 1 to 0, one more than evaluations, of a diffusers flow-matching Euler scheduler.

    One that shifts dynamically (0.9.0, 0.9.1) moves even sigmas up, further for more video
    `tokens`. Another (from 0.9.5 on) leaves linear_quadratic's as they are.
    """
    config = scheduler.config
    if not config.use_dynamic_shifting:
        return torch.cat([linear_quadratic(steps), torch.zeros(1)])
    span = config.max_image_seq_len - config.base_image_seq_len
    slope = (config.max_shift - config.base_shift) / span
    mu = config.base_shift + slope * (tokens - config.base_image_seq_len)
    scheduler = type(scheduler).from_config(config)
    even = [1 - i / steps for i in range(steps)]
    scheduler.set_timesteps(sigmas=even, mu=mu, device="cpu")
    return scheduler.sigmas


def linear_quadratic(steps):
    """Sigmas (steps,) from 1: half of the steps down to 1 - THRESHOLD evenly, the others
    quadratically from there on, at first as fast as those, towards 0."""
    if steps < 2:
        return torch.ones(steps)
    slow = steps // 2
    slope, fast = THRESHOLD / slow, steps - slow
    curve = (1 - THRESHOLD - slope * fast) / fast**2
    passed = [slope * i + curve * max(0, i - slow) ** 2 for i in range(steps)]
    return 1 - torch.tensor(passed, dtype=torch.float64).float()


def held(cond_latents, noise, strength, scale):
    """The context at `strength` as a function of sigma: at 1 it is clean but for scale * sigma² of
    noise (image_cond_noise_scale), new each time; else mixed once with 1 - strength of noise. The
    initial noise alone decides which noise that is."""
    generator = generator_of(noise)

    def drawn():
        return torch.randn(cond_latents.shape, generator=generator).to(cond_latents)

    if strength != 1:
        mixed = torch.lerp(drawn(), cond_latents, strength)
        return lambda sigma: mixed
    if not scale:
        return lambda sigma: cond_latents
    return lambda sigma: cond_latents + scale * drawn() * sigma**2
