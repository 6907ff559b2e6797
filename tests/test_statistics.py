"""Intervals that a reader can believe."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.strategies import floats, integers, lists, tuples
from scipy.stats import wilcoxon

from report.statistics import clustered_interval, holm, signed_rank, spread_over_seeds


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


@pytest.mark.parametrize("count", [1, 2, 7])
def test_too_few_sources_have_no_interval(count):
    values = np.random.default_rng(0).normal(0.3, 1.0, 21)
    assert clustered_interval(values, np.arange(21) % count)[1:] == (None, None)
    assert None not in clustered_interval(values, np.arange(21) % 8)


@pytest.mark.parametrize("gains", [(0.0, 0.0), (0.5, 0.5), (0.1, 0.4), (1.1, -0.9), (-7e30, 9e30)])
def test_sources_of_one_mean_have_it_as_interval(gains):
    """Whatever the differences within them, and in whichever order their videos come."""
    mean = sum(gains) / 2
    values = np.concatenate([gains if i % 2 else gains[::-1] for i in range(9)])
    found = clustered_interval(values, np.repeat(range(9), 2))
    assert found == pytest.approx((mean, mean, mean))


@settings(max_examples=60, deadline=None)
@given(lists(tuples(floats(-1e59, 1e59), integers(0, 12)), min_size=1, max_size=40))
def test_an_interval_is_never_nan(pairs):
    gains, sources = zip(*pairs, strict=True)
    mean, low, high = clustered_interval(gains, sources)
    assert np.isfinite(mean)
    if len(set(sources)) < 8:
        assert low is None and high is None
    else:
        assert np.isfinite([low, high]).all() and low <= high
    p, smallest = signed_rank(gains, sources)
    assert 0 < smallest <= p * 1.0001 and p <= 1


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_signed_rank_is_scipys_on_the_means_of_sources():
    x = np.random.default_rng(0).normal(0.3, 1, 20)
    assert signed_rank(x, range(20)) == (wilcoxon(x).pvalue, 2 / 2**20)
    twice = np.repeat(x, 5)
    found = signed_rank(twice, np.repeat(range(20), 5))
    assert found == pytest.approx((wilcoxon(x).pvalue, 2 / 2**20))
    assert signed_rank(np.zeros(5), range(5)) == (1.0, 1.0)


@pytest.mark.parametrize("zeros", [0, 3, 30])
@pytest.mark.parametrize("count", [1, 2, 5, 10])
def test_the_smallest_p_is_that_of_sources_that_all_gain(count, zeros):
    """Sources without a difference say nothing, however many they are."""
    gains = [*np.linspace(0.1, 1, count), *np.zeros(zeros)]
    p, smallest = signed_rank(gains, range(len(gains)))
    assert p == pytest.approx(smallest) == 2 / 2**count


def test_a_null_keeps_its_error_rate():
    """1,000 experiments without an effect, 24 sources of 2 alike videos: p below 0.05 in 5 %, and
    the interval leaves zero out about as often (the bootstrap is a little too narrow at 24)."""
    generator, rejected, left_out = np.random.default_rng(1), 0, 0
    clusters = np.repeat(range(24), 2)
    for trial in range(1000):
        gains = np.repeat(generator.normal(size=24), 2) + 0.3 * generator.normal(size=48)
        rejected += signed_rank(gains, clusters)[0] < 0.05
        if trial < 200:
            _, low, high = clustered_interval(gains, clusters)
            left_out += low > 0 or high < 0
    assert 0.035 <= rejected / 1000 <= 0.065
    assert 0.02 <= left_out / 200 <= 0.11


def test_spread_over_seeds():
    assert spread_over_seeds([[1.0, 3.0]]) is None
    assert spread_over_seeds([[1.0, 3.0], [3.0, 5.0]]) == pytest.approx(np.sqrt(2))
