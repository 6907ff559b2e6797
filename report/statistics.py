"""Statistics of paired differences between videos."""

import numpy as np
from scipy.stats import bootstrap, wilcoxon


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


def cluster_means(differences, clusters):
    """The mean of each cluster: independent numbers, for tests that need them."""
    groups = {}
    for difference, cluster in zip(differences, clusters, strict=True):
        groups.setdefault(cluster, []).append(difference)
    return np.array([np.mean(group) for group in groups.values()])


def signed_rank_p(differences, clusters):
    """Two-sided p of Wilcoxon's signed-rank test on the clusters' means; 1 where all are zero."""
    means = cluster_means(differences, clusters)
    return float(wilcoxon(means).pvalue) if means.any() else 1.0


def holm(p_values):
    """Holm's correction: p values that keep the chance of any false finding among them all."""
    count, adjusted, largest = len(p_values), {}, 0.0
    for rank, index in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (count - rank) * p_values[index]))
        adjusted[index] = largest
    return [adjusted[index] for index in range(count)]


def spread_over_seeds(values):
    """Standard deviation of the mean score from one seed to another, values (seeds, videos); None
    of a single seed."""
    means = np.asarray(values).mean(axis=1)
    return float(means.std(ddof=1)) if len(means) > 1 else None
