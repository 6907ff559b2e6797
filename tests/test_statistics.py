"""Intervals that a reader can believe."""

import numpy as np
import pytest

from report.statistics import clustered_interval


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
