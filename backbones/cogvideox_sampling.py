"""Steps and guidance of CogVideoX's pipelines in diffusers, from v and x_t of vprediction.py."""

import math

from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler

SCHEDULERS = {False: CogVideoXDDIMScheduler, True: CogVideoXDPMScheduler}  # by whether it is DPM


def stepper(kind, config, steps, generator):
    """step(v, t, x_t) -> x_t (B, C, T, h, w) of a new scheduler of that kind, and its timesteps.
    DPM-Solver++ is the stochastic one, which draws from the generator as for (B, T, C, h, w)."""
    scheduler = kind.from_config(config)
    scheduler.set_timesteps(steps)
    clean, before = None, None  # latents as they were predicted, and at which timestep

    def ddim(v, t, x_t):
        return scheduler.step(v, t, x_t, return_dict=False)[0]

    def dpm(v, t, x_t):
        nonlocal clean, before
        more = {"generator": generator, "return_dict": False}
        v, x_t = v.transpose(1, 2), x_t.transpose(1, 2)
        x_t, clean = scheduler.step(v, clean, t, before, x_t, **more)
        before = t
        return x_t.transpose(1, 2)

    return dpm if kind is CogVideoXDPMScheduler else ddim, scheduler.timesteps


def dynamic(scale, t, steps):
    """Guidance's scale at timestep t, from 1 to 1 + scale. diffusers counts timesteps of 1000 where
    the authors' code counts steps, so that it jumps; kept, as users of its pipelines have it."""
    return 1 + scale * (1 - math.cos(math.pi * ((steps - int(t)) / steps) ** 5.0)) / 2
