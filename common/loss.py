"""Random streams, draws of (sigma, noise), the flow-matching loss, and the preflight that guards
its sign."""

import hashlib
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

from common import drawing
from devices.placement import within_memory

PREFLIGHT_SIGMAS, PREFLIGHT_DRAWS = (0.25, 0.5, 0.75), 2


def add_arguments(group):
    group.add_argument(
        "--seed", type=int, default=42, changes="generation",
        help="of every random stream, with the video's id",
    )  # fmt: skip
    group.add_argument(
        "--no-preflight", dest="preflight", action="store_false",
        changes="adaptation", baseline=True,  # which videos there are
        help="adapt even where the model does not beat predicting zero",
    )  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """What is predicted from what: target (1, C, T, h, w) follows context. A Clip is one."""

    context: torch.Tensor
    target: torch.Tensor
    text: dict
    weights: torch.Tensor | None = None  # of the target's latents in the loss, mean 1


class Draw(NamedTuple):
    """What one loss is taken of: a problem, sigma (K,) and noise (K, C, T, h, w) shaped like its
    target."""

    problem: Problem
    sigma: torch.Tensor
    noise: torch.Tensor

    def each(self):
        """Its K parts, of one noise each."""
        for sigma, noise in zip(self.sigma.split(1), self.noise.split(1), strict=True):
            yield Draw(self.problem, sigma, noise)


def random_stream(seed, video_id, name):
    """A CPU generator for one purpose on one video: neither order, sharding nor device changes a
    draw."""
    digest = hashlib.sha256(f"{seed}\n{video_id}\n{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def draw_noise(generator, latents, count=1):
    """(count, C, T, h, w) shaped like latents (1, C, T, h, w)."""
    return torch.randn(count, *latents.shape[1:], generator=generator).to(latents.device)


def velocity_target(latents, noise):
    return noise - latents


def add_noise(latents, noise, sigma):  # sigma (B,)
    weight = sigma.view(-1, 1, 1, 1, 1)
    return (1 - weight) * latents + weight * noise


def flow_matching_loss(model, problem, sigma, noise, temporal_loss=0.0):
    """Mean squared error of the velocity of problem.target at sigma (K,) and noise (K, C, T, h, w),
    given problem.context. float32.

    noisy = (1 - sigma) * latents + sigma * noise, target = noise - latents (oracles/longcat,
    "Adaptation", sign `consistent`). temporal_loss weighs the error of the differences between
    successive latents that the velocity implies, the last of the context included. Where the
    problem weighs its latents, a difference weighs as the later of its two.
    """
    noisy = add_noise(problem.target, noise, sigma)
    velocity = model.velocity(noisy, sigma, problem.context, problem.text)
    error = velocity - velocity_target(problem.target, noise)
    weights = getattr(problem, "weights", None)
    loss = mean_square(error, weights)
    if temporal_loss:
        of_latents = sigma.view(-1, 1, 1, 1, 1) * error  # latents = noisy - sigma * velocity
        steps = F.pad(of_latents, (0, 0, 0, 0, 1, 0)).diff(dim=2)
        loss = loss + temporal_loss * mean_square(steps, weights)
    return loss


def mean_square(error, weights=None):
    squares = error.square()
    return (squares if weights is None else weights * squares).mean()


def draws(model, clip, args):
    """For each step the Draw of args.draws noises that its loss is taken of.

    They are the video's own: the same for every method, and for every number of steps where a step
    has one draw or the sigmas are the sampler's.
    """
    sigmas = all_sigmas(model, clip, args)
    for (problem, noise), sigma in zip(noises(clip, args), sigmas, strict=True):
        yield Draw(problem, sigma.to(clip.target.device), noise)


def fixed_draw(model, clip, count):
    """One Draw of `count` noises, stratified over sigma: for methods that learn on the same ones at
    every step."""
    generator = random_stream(clip.seed, clip.video.id, "cached draws")
    sigma = stratified_sigmas(count, generator, model.sigma_min)
    noise = torch.cat([draw_noise(generator, clip.target) for _ in range(count)])
    return Draw(clip, sigma.to(clip.target.device), noise)


def all_sigmas(model, clip, args):
    """From model.sigma_min to 1 as args.sigmas says, shaped (steps, draws); with several draws
    stratified over the whole run, those of the sampler always. Antithetic pairs have one sigma."""
    generator = random_stream(clip.seed, clip.video.id, "adaptation sigma")
    times = 2 if args.antithetic else 1
    count = args.steps * args.draws // times
    if args.sigmas == "sampler":
        sigmas = drawing.in_turn(drawing.of_sampler(model, clip, args), count, generator)
    elif args.draws == 1:
        uniform = torch.rand(count, generator=generator)
        sigmas = drawing.spread(args.sigmas, uniform, model.sigma_min)
    else:
        sigmas = stratified_sigmas(count, generator, model.sigma_min, args.sigmas)
    return sigmas.repeat_interleave(times).view(args.steps, args.draws)


def stratified_sigmas(count, generator, lowest, kind="uniform"):
    """count sigmas, one in each of as many equally likely parts of lowest..1, in random order."""
    places = torch.randperm(count, generator=generator)
    uniform = (places + torch.rand(count, generator=generator)) / count
    return drawing.spread(kind, uniform, lowest)


def noises(clip, args):
    """For each step the problem (one of its own where the flags say so) and its noise."""
    generator = random_stream(clip.seed, clip.video.id, "adaptation noise")
    prefixes = random_stream(clip.seed, clip.video.id, "adaptation context")
    of_context = random_stream(clip.seed, clip.video.id, "adaptation context noise")
    known = torch.cat([clip.context, clip.target], dim=2)
    for _ in range(args.steps):
        problem = clip
        if args.context == "varying":
            prefix = int(torch.randint(1, known.shape[2], (), generator=prefixes))
            problem = Problem(known[:, :, :prefix], known[:, :, prefix:], clip.text)
        if args.context_noise or args.recency:
            context, target = problem.context, problem.target
            noise, sigma = draw_noise(of_context, context), torch.tensor([args.context_noise])
            context = add_noise(context, noise, sigma.to(context.device))
            problem = Problem(context, target, clip.text, drawing.weights(target, args.recency))
        if args.antithetic:
            half = draw_noise(generator, problem.target, args.draws // 2)
            yield problem, torch.stack([half, -half], dim=1).flatten(0, 1)
        else:
            yield problem, draw_noise(generator, problem.target, args.draws)


@torch.no_grad()
def anchored_loss(model, problem, sigmas, noise):
    """Mean loss over all pairs of the given sigmas and noise (K, C, T, h, w), in one batch."""
    sigma = torch.tensor(sigmas, device=noise.device).repeat_interleave(len(noise))
    noise = noise.repeat(len(sigmas), 1, 1, 1, 1)
    return within_memory(model, lambda: flow_matching_loss(model, problem, sigma, noise).item())


@torch.no_grad()
def preflight(model, clip):
    """Is there something to adapt? `loss` of the model, `zero_loss` of predicting zero and
    `negated_loss` of the negated prediction on the adaptation's own problem, as means over fixed
    sigmas and draws; None where not finite."""
    generator = random_stream(clip.seed, clip.video.id, "preflight")
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
