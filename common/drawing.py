"""What the loss of each step is taken of: how many draws, their sigmas, context and latents."""

import torch

from common.errors import UsageError
from common.values import at_least, not_negative, share

USUAL = {  # of the flags that say what is drawn at every step
    "draws": 1, "context": "fixed", "temporal_loss": 0.0, "sigmas": "uniform",
    "context_noise": 0.0, "recency": 0.0,
}  # fmt: skip
GOLDEN = (5**0.5 - 1) / 2  # whose multiples are spread over 0..1 however many they are


def add_arguments(group):
    group.add_argument(
        "--draws", type=at_least(1, 1024), default=1, metavar="K", changes="adaptation",
        help="draws of (sigma, noise) per step, in one batch: less noise in the update, K times "
        "the activations",
    )  # fmt: skip
    group.add_argument(
        "--antithetic", action="store_true", changes="adaptation",
        help="draws in pairs of one sigma, the second with the noise negated",
    )  # fmt: skip
    group.add_argument(
        "--context", choices=("fixed", "varying"), default="fixed", changes="adaptation",
        help="varying: each step keeps another number of leading latents clean",
    )  # fmt: skip
    group.add_argument(
        "--temporal-loss", type=not_negative, default=0.0, metavar="W", changes="adaptation",
        help="adds W times the error of the differences between successive predicted latents",
    )  # fmt: skip
    group.add_argument(
        "--sigmas", choices=("uniform", "logit-normal", "sampler"), default="uniform",
        changes="adaptation",
        help="of the draws; logit-normal: more in the middle; sampler: those at which the "
        "continuation asks the model, in turn",
    )  # fmt: skip
    group.add_argument(
        "--context-noise", type=share, default=0.0, metavar="SIGMA", changes="adaptation",
        help="of the context that adaptation sees, noise of its own in each step",
    )  # fmt: skip
    group.add_argument(
        "--recency", type=not_negative, default=0.0, metavar="R", changes="adaptation",
        help="a target latent weighs exp(R) times as much in the loss as the one before it",
    )  # fmt: skip


def check(args):
    if args.antithetic and args.draws % 2:
        raise UsageError(f"--antithetic needs an even number of --draws, got {args.draws}")


def refuse_other_draws(args):
    """For a method that learns on a `fixed_draw`."""
    for name, usual in USUAL.items():
        flag, value = f"--{name.replace('_', '-')}", getattr(args, name)
        if value != usual:
            raise UsageError(
                f"{flag} are for draws at every step; here --cached-draws are drawn once: leave "
                f"{flag} {value} out"
            )


def spread(kind, uniform, lowest):
    """sigma of `uniform`, which are drawn evenly from 0..1: from lowest to 1, evenly or as the
    sigmoid of a standard normal number (Esser et al. 2024, arXiv 2403.03206, eq. 19 at m 0, s 1).
    """
    if kind == "logit-normal":
        uniform = torch.special.ndtri(uniform).sigmoid()
    return lowest + (1 - lowest) * uniform


def of_sampler(model, clip, args):
    """(S,) from model.sigma_min to 1: at which args.sampling_steps and args.sampling have the model
    asked when it continues the clip, in that order."""
    _, _, known, *sides = clip.cond_latents.shape
    shape = (known + clip.window.new_latents, *sides)
    sigmas = model.sampling_sigmas(args.sampling_steps, shape, **args.sampling)
    return sigmas[sigmas >= model.sigma_min]


def in_turn(values, count, generator):
    """count of `values` (S,): any S in a row are all of them and any few in a row are spread, from
    a drawn one on. The first do not depend on how many there are."""
    size = len(values)
    places = (GOLDEN * torch.arange(size, dtype=torch.float64)).frac().argsort().argsort()
    first = torch.randint(size, (), generator=generator)
    return values[(first + places[torch.arange(count) % size]) % size]


def weights(latents, recency):
    """(1, 1, T, 1, 1) of latents (1, C, T, h, w), of mean 1; None where all weigh the same."""
    if not recency:
        return None
    count = latents.shape[2]
    found = torch.arange(count, device=latents.device, dtype=torch.float32).mul(recency)
    return (found.softmax(0) * count).view(1, 1, count, 1, 1)
