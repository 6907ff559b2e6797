"""Several continuations of one clip: what they say together that one of them cannot."""

import itertools

import torch

from common.metrics import METRICS, mean


def combined(scores):
    """The scores of each sample as means over the samples; of several also each sample's own."""
    if len(scores) == 1:
        return scores[0]
    found = {}
    for key, first in scores[0].items():
        values = [score[key] for score in scores]
        if isinstance(first, list):
            found[key] = [mean(frame) for frame in zip(*values, strict=True)]
        else:
            found[key] = mean(values)
        if METRICS.get(key):  # of which more or less is better
            found[f"{key}_per_sample"] = values
    return found


def scores_together(frames, truth):
    """Of samples (N, F, 3, H, W) in 0..1 against truth (F, 3, H, W); none of a single sample.

    kernel_score: mean squared error of a sample less half the mean squared difference of two, which
    is, without bias, the squared error of the predicted mean: a spread that is lost gains nothing.
    energy_score: the same of root mean squares (Gneiting and Raftery 2007), which the true
    distribution minimises. sample_variance: half the mean squared difference of two samples.
    """
    if len(frames) == 1:
        return {}
    samples, truth = frames.flatten(1).double(), truth.flatten().double()
    errors = (samples - truth).square().mean(1)
    pairs = itertools.combinations(samples, 2)
    spreads = torch.stack([(one - other).square().mean() for one, other in pairs])
    return {
        "kernel_score": float(errors.mean() - spreads.mean() / 2),
        "energy_score": float(errors.sqrt().mean() - spreads.sqrt().mean() / 2),
        "sample_variance": float(spreads.mean() / 2),
    }
