"""Intervals that a reader can believe."""

import numpy as np
import pytest
from scipy.stats import wilcoxon

from report.statistics import clustered_interval, holm, signed_rank_p, spread_over_seeds


def test_the_interval_of_independent_videos_is_the_textbook_one():
    values = np.random.default_rng(0).normal(0.3, 1.0, 200)
    mean, low, high = clustered_interval(values, range(200))
    error = 1.96 * values.std(ddof=1) / 200**0.5
    assert mean == pytest.approx(values.mean())
    assert (low, high) == pytest.approx((mean - error, mean + error), abs=0.03)


def test_copies_of_a_video_add_no_evidence():
    values = np.random.default_rng(1).normal(0.0, 1.0, 30)
    once = clustered_interval(values, range(30))
    often = clustered_interval(np.tile(values, 5), list(range(30)) * 5)
    assert often == pytest.approx(once)


def test_one_source_or_no_difference_has_no_interval():
    assert clustered_interval([0.1, 0.4], ["a", "a"]) == (0.25, None, None)
    assert clustered_interval([0.0, 0.0], ["a", "b"]) == (0.0, None, None)


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_signed_rank_is_scipys_on_the_means_of_sources():
    x = np.random.default_rng(0).normal(0.3, 1, 20)
    assert signed_rank_p(x, range(20)) == wilcoxon(x).pvalue
    twice = np.repeat(x, 5)
    assert signed_rank_p(twice, np.repeat(range(20), 5)) == pytest.approx(wilcoxon(x).pvalue)
    assert signed_rank_p(np.zeros(5), range(5)) == 1.0


def test_a_null_keeps_its_error_rate():
    """1,000 experiments without an effect, 24 sources of 2 alike videos: p below 0.05 in 5 %, and
    the interval leaves zero out about as often (the bootstrap is a little too narrow at 24)."""
    generator, rejected, left_out = np.random.default_rng(1), 0, 0
    clusters = np.repeat(range(24), 2)
    for trial in range(1000):
        gains = np.repeat(generator.normal(size=24), 2) + 0.3 * generator.normal(size=48)
        rejected += signed_rank_p(gains, clusters) < 0.05
        if trial < 200:
            _, low, high = clustered_interval(gains, clusters)
            left_out += low > 0 or high < 0
    assert 0.035 <= rejected / 1000 <= 0.065
    assert 0.02 <= left_out / 200 <= 0.11


def test_spread_over_seeds():
    assert spread_over_seeds([[1.0, 3.0]]) is None
    assert spread_over_seeds([[1.0, 3.0], [3.0, 5.0]]) == pytest.approx(np.sqrt(2))
