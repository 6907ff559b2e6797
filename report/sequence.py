"""Clips in the order of a run whose adaptation goes on from one to the next."""

import numpy as np

from report.figures import INK, as_svg, colour, grid, label
from runs.identity import goes_on
from runs.latent_summary import ROLLING, rolling

SCORES = ("pre_adapt_loss", "future_loss_online")  # of latent clips, of videos


def in_sequence(comparison):
    """The error before adapting to each clip, and its rolling mean, beside the baseline's on the
    same clips; a panel for each method whose adaptation goes on. None without any."""
    methods = [m for m in comparison.methods if goes_on(m.runs[0].arguments)]
    metric = next(filter(comparison.scored, SCORES), SCORES[0])
    videos = comparison.scored(metric)
    if not methods or not videos:
        return None
    figure, axes = grid(len(methods))
    for axis, method in zip(axes, methods, strict=True):
        order = sorted(videos, key=lambda video: method.record(video)["place"])
        places = [method.record(video)["place"] + 1 for video in order]
        own = colour(comparison.methods.index(method))
        for each, color in ((comparison.baseline, INK), (method, own)):
            values = np.array([each.record(video)[metric] for video in order])
            axis.plot(places, values, ".", color=color, alpha=0.35)
            axis.plot(places, rolling(list(values)), color=color, label=label(each.name))
        axis.set(title=label(method.name), xlabel="clip, in the order of the run")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend()
    axes[0].set_ylabel(f"{metric}, lines: mean of the last {ROLLING}")
    return as_svg(figure)
