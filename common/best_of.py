"""The best of several continuations of a clip, chosen without the truth.

The one that is nearest to the others: the least mean squared difference from them, in latents. If
the truth were one more draw of what the model expects, this is the sample of least expected squared
error, |x - mean|^2 + spread^2 (minimum Bayes risk, Kumar and Byrne 2004), so it is what more time
without adaptation can do for PSNR. Nothing but the samples is read, and only the chosen is decoded.
"""

import torch

from common.errors import UsageError
from common.values import at_least
from devices.agreement import said_by_all


def add_arguments(group):
    group.add_argument(
        "--best-of", type=at_least(3, 1024), metavar="N", changes="generation", effort=True,
        help="of N continuations the one nearest to the others: the least expected squared error",
    )  # fmt: skip


def check(args):
    if args.best_of is None:
        return
    if args.samples > 1:
        raise UsageError(
            f"--best-of {args.best_of}: gives one continuation; leave out --samples {args.samples}"
        )
    if not args.generate:
        raise UsageError(f"--best-of {args.best_of}: nothing is sampled with --no-generate")


def nearest_to_others(samples, record):
    """The one of several latents (1, C, T, h, w). Adds to record its index and of each sample the
    mean squared difference from the others; that of one that is not finite is None and counts for
    nobody. Where fewer than two are finite the first is taken."""
    finite = [i for i, sample in enumerate(samples) if sample.isfinite().all()]
    found = [None] * len(samples)
    if len(finite) > 1:
        values = torch.stack([samples[i].flatten() for i in finite]).double()
        squares = (values - values.mean(dim=0)).square().mean(dim=1)
        share = len(finite) / (
            len(finite) - 1
        )  # of all pairs |x - y|^2 by the distance to the mean
        for i, own in zip(finite, squares.tolist(), strict=True):
            found[i] = share * own + float(squares.mean()) * share
    found = said_by_all(found)[0]
    chosen = min(range(len(found)), key=lambda i: (found[i] is None, found[i] or 0.0))
    record |= {"sample_differences": found, "best_sample": chosen}
    return samples[chosen]
