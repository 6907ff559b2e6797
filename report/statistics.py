"""Statistics of paired differences between videos."""

import numpy as np
from scipy.stats import bootstrap, wilcoxon

# sources that an interval needs: of simulated "95 %" intervals 46 % missed the truth at 2 sources,
# 18 % at 4, 13 % at 8, 7 % at 24
FEWEST = 8
EQUAL = 1e-9  # means of sources that differ by less, as a share of the largest, are the same


def clustered_interval(differences, clusters, confidence=0.95):
    """(mean, low, high) of paired differences: BCa bootstrap over clusters, not over videos.

    Videos of one source look alike, so whole clusters are drawn; the statistic is the mean over the
    videos of the clusters drawn. From fewer than FEWEST clusters there is no interval: None. Where
    all clusters have the same mean every draw has it too, and the interval is that point, whatever
    the differences within them: these say nothing about how clusters differ.
    """
    totals, counts = sums(differences, clusters)
    mean = totals.sum() / counts.sum()
    if len(totals) < FEWEST:
        return mean, None, None
    means = totals / counts
    if np.ptp(means) <= EQUAL * np.abs(means).max():
        return mean, mean, mean
    scale = np.abs(totals).max()  # the cube of the smallest difference is a number as well
    interval = bootstrap(
        (totals / scale, counts),
        lambda t, c, axis=-1: t.sum(axis) / c.sum(axis),
        paired=True,
        vectorized=True,
        confidence_level=confidence,
        random_state=np.random.default_rng(0),
    ).confidence_interval
    return mean, float(interval.low * scale), float(interval.high * scale)


def clustered_band(differences, clusters, confidence=0.95, draws=2000):
    """(mean, low, high) of each column of differences (videos, columns), NaN where one is missing:
    percentiles of a bootstrap over clusters, the same draws for all columns; from fewer than FEWEST
    clusters there are no low and high: None."""
    there = np.isfinite(differences)
    names, places = np.unique(clusters, return_inverse=True)
    member = np.eye(len(names))[places].T  # (clusters, videos)
    totals, counts = member @ np.where(there, differences, 0.0), member @ there
    mean = totals.sum(axis=0) / counts.sum(axis=0)
    if len(names) < FEWEST:
        return mean, None, None
    shares = np.full(len(names), 1 / len(names))
    weights = np.random.default_rng(0).multinomial(len(names), shares, size=draws)
    with np.errstate(invalid="ignore"):
        means = (weights @ totals) / (weights @ counts)
    tail = 50 * (1 - confidence)
    return mean, *np.nanpercentile(means, [tail, 100 - tail], axis=0)


def harmed(differences):
    """Share of videos whose gain, of (seeds, videos) the mean over the seeds, lies below zero by
    more than a video's gain changes from seed to seed: the standard deviation, pooled over the
    videos. Of a single seed below zero at all."""
    values = np.asarray(differences)
    spread = np.sqrt(values.var(axis=0, ddof=1).mean()) if len(values) > 1 else 0.0
    return float((values.mean(axis=0) < -spread).mean())


def sums(differences, clusters):
    """The sum of each cluster and how many it has."""
    found = {}
    for difference, cluster in zip(differences, clusters, strict=True):
        total, count = found.get(cluster, (0.0, 0))
        found[cluster] = total + difference, count + 1
    return np.array(list(found.values())).T


def cluster_means(differences, clusters):
    """The mean of each cluster: independent numbers, for tests that need them."""
    totals, counts = sums(differences, clusters)
    return totals / counts


def signed_rank(differences, clusters):
    """(p, the smallest p possible) of Wilcoxon's two-sided signed-rank test on the clusters' means
    that are not zero. n of them that all point one way have p = 2 / 2^n; 1 without any."""
    means = cluster_means(differences, clusters)
    means = means[means != 0]
    if not len(means):
        return 1.0, 1.0
    return float(wilcoxon(means).pvalue), 2.0 ** (1 - len(means))


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
