"""Statistics of paired differences between videos."""

import numpy as np
from scipy.stats import bootstrap


def clustered_interval(differences, clusters, confidence=0.95):
    """(mean, low, high) of paired differences: BCa bootstrap over clusters, not over videos.

    Videos of one source look alike, so whole clusters are drawn; the statistic is the mean over the
    videos of the clusters drawn. With fewer than two clusters there is no interval: None.
    """
    sums = {}
    for difference, cluster in zip(differences, clusters, strict=True):
        total, count = sums.get(cluster, (0.0, 0))
        sums[cluster] = total + difference, count + 1
    totals, counts = np.array(list(sums.values())).T
    mean = totals.sum() / counts.sum()
    if len(sums) < 2 or np.ptp(differences) == 0:
        return mean, None, None
    interval = bootstrap(
        (totals, counts),
        lambda t, c, axis=-1: t.sum(axis) / c.sum(axis),
        paired=True,
        vectorized=True,
        confidence_level=confidence,
        random_state=np.random.default_rng(0),
    ).confidence_interval
    return mean, interval.low, interval.high
