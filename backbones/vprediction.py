"""Variance-preserving diffusion with v-prediction in this house's terms, sigma and velocity.

With a = sqrt(abar_t) and s = sqrt(1 - abar_t), a^2 + s^2 = 1, such a process has

    x_t = a x0 + s eps,    and its network approximates    v = a eps - s x0

(Salimans and Ho, arXiv 2202.00512, appendix D). Set sigma = s / (a + s). Then a = (1 - sigma) c and
s = sigma c with c = a + s = ((1 - sigma)^2 + sigma^2)^(-1/2), so that

    x_t = c ((1 - sigma) x0 + sigma eps):    noisy latents of this house, scaled by c.

x0 = a x_t - s v and eps = s x_t + a v are the inverse of the two equations above, hence

    eps - x0 = c v + (s - a) x_t,

which nothing divides by a: it holds at zero terminal SNR (arXiv 2305.08891), a = 0, too.
"""

import torch


def coefficients(sigma, like):
    """a and s of sigma (B,), each (B, 1, ...) as many dimensions as `like` has, in its type."""
    sigma = sigma.double()
    scale = ((1 - sigma).square() + sigma.square()).rsqrt()
    parts = ((1 - sigma) * scale, sigma * scale)
    return [part.to(like).view(-1, *[1] * (like.ndim - 1)) for part in parts]


def scaled(noisy_latents, sigma):
    """x_t (B, ...) of noisy latents (1 - sigma) * latents + sigma * noise at sigma (B,)."""
    a, s = coefficients(sigma, noisy_latents)
    return (a + s) * noisy_latents


def velocity_of(v, x_t, sigma):
    """noise - latents of the network's v, at x_t (B, ...) and sigma (B,)."""
    a, s = coefficients(sigma, x_t)
    return (a + s) * v + (s - a) * x_t


def v_of(velocity, x_t, sigma):
    """The inverse of velocity_of."""
    a, s = coefficients(sigma, x_t)
    return (velocity - (s - a) * x_t) / (a + s)


def sigmas_of(alphas_cumprod):
    """sigma of every timestep 0, 1, ... of a schedule abar (steps,), float64; it rises."""
    a, s = alphas_cumprod.double().sqrt(), (1 - alphas_cumprod.double()).sqrt()
    return s / (a + s)


def timestep_of(sigma, sigmas):
    """The timestep at sigma (B,), float64, among `sigmas` of whole ones.

    Between two it is interpolated, as the embedding of it takes fractions: a network told the
    nearest would be told of another noise than its input has. At those it is whole, exactly. Below
    the first it is 0, the lowest level that the network knows.
    """
    sigma = sigma.double().contiguous()
    above = torch.searchsorted(sigmas, sigma).clamp(1, len(sigmas) - 1)
    low, high = sigmas[above - 1], sigmas[above]
    return (above - 1 + (sigma - low) / (high - low)).clamp(min=0)
