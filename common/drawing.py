"""What the draws of an adaptation may have in place of even sigmas, a clean context and alike
latents."""

import torch

from common.values import not_negative, share


def add_arguments(group):
    group.add_argument(
        "--sigmas", choices=("uniform", "logit-normal"), default="uniform", changes="adaptation",
        help="how the sigmas of steps are spread; logit-normal: more in the middle",
    )  # fmt: skip
    group.add_argument(
        "--context-noise", type=share, default=0.0, metavar="SIGMA", changes="adaptation",
        help="of the context that adaptation sees, noise of its own in each step",
    )  # fmt: skip
    group.add_argument(
        "--recency", type=not_negative, default=0.0, metavar="R", changes="adaptation",
        help="a target latent weighs exp(R) times as much in the loss as the one before it",
    )  # fmt: skip


def given(args):
    """The first of these flags that is not as usual, or None."""
    usual = {"--sigmas": "uniform", "--context-noise": 0.0, "--recency": 0.0}
    values = (args.sigmas, args.context_noise, args.recency)
    found = zip(usual.items(), values, strict=True)
    return next((flag for (flag, value), own in found if own != value), None)


def spread(kind, uniform, lowest):
    """sigma of `uniform`, which are drawn evenly from 0..1: from lowest to 1, evenly or as the
    sigmoid of a standard normal number (Esser et al. 2024, arXiv 2403.03206, eq. 19 at m 0, s 1).
    """
    if kind == "logit-normal":
        uniform = torch.special.ndtri(uniform).sigmoid()
    return lowest + (1 - lowest) * uniform


def weights(latents, recency):
    """(1, 1, T, 1, 1) of latents (1, C, T, h, w), of mean 1; None where all weigh the same."""
    if not recency:
        return None
    count = latents.shape[2]
    found = torch.arange(count, device=latents.device, dtype=torch.float32).mul(recency)
    return (found.softmax(0) * count).view(1, 1, count, 1, 1)
