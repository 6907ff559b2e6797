"""Whether a video's gain can be foretold: with a signal, without one, and with a leak."""

import numpy as np
import pytest
import torch
from folders import make_run
from sklearn.metrics import roc_auc_score

import report.predict
from common.video import write_video
from report.comparison import compare
from report.predict import (
    area_under_curve,
    auc_interval,
    features,
    headline,
    lines,
    of_frames,
    predict,
)
from report.runs import read_runs


@pytest.fixture
def predicted(tmp_path, monkeypatch):
    """The prediction for gains whose only known features are the given columns."""

    def call(gains, columns, sources=None):
        base = make_run(tmp_path / "base", [0] * len(gains), steps=0, sources=sources)
        run = make_run(tmp_path / "run", list(gains), sources=sources)
        comparison = compare(read_runs([base, run]))
        monkeypatch.setattr(
            report.predict,
            "features",
            lambda _, method, video: dict(enumerate(columns[int(video[1:])])),
        )
        return predict(comparison, comparison.methods[0], "psnr_db")

    return call


def test_a_feature_that_tells_is_found(predicted):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(80, 3))
    found = predicted(x[:, 0] + 0.2 * generator.normal(size=80), x)
    assert found["auc"] > 0.9 and found["auc_low"] > 0.8
    rules = found["rules"]
    assert rules["ridge"]["gain"] > rules["always"]["gain"] + 0.2
    assert 0.3 < rules["ridge"]["share"] < 0.7 and rules["logistic"]["low"] > 0


def test_noise_tells_nothing(predicted):
    generator = np.random.default_rng(1)
    found = predicted(generator.normal(size=80), generator.normal(size=(80, 3)))
    assert found["auc_low"] < 0.5 and found["auc"] < 0.65


def test_what_only_names_the_source_does_not_count(predicted):
    """Videos of one source gain alike and look alike; other sources say nothing about it."""
    generator = np.random.default_rng(2)
    gains = np.repeat(generator.normal(size=16), 5)
    looks = np.repeat(generator.normal(size=(16, 4)), 5, axis=0)
    found = predicted(gains, looks, [f"s{i // 5}" for i in range(80)])
    assert found["auc_low"] < 0.5 and found["auc_high"] - found["auc_low"] > 0.2


def test_too_few_videos_say_so(predicted):
    assert (
        "0 of 12 videos gain"
        in predicted([-1.0 - i for i in range(12)], np.ones((12, 1)))["why not"]
    )


@pytest.mark.parametrize("count", [7, 8])
def test_too_few_sources_have_no_interval(count, predicted):
    generator = np.random.default_rng(5)
    sources = [f"s{i % count}" for i in range(40)]
    found = predicted(generator.normal(size=40), generator.normal(size=(40, 2)), sources)
    intervals = [(found["auc_low"], found["auc_high"])]
    intervals += [(rule["low"], rule["high"]) for rule in found["rules"].values()]
    shown = [headline(found), *(line["95 %"] for line in lines(found))]
    assert found["sources"] == count and f"over {count} sources" in shown[0]
    for numbers, text in zip(intervals, shown, strict=True):
        assert (numbers == (None, None)) == ("too few" in text) == (count < 8)


def test_the_interval_is_wider_over_sources():
    generator = np.random.default_rng(3)
    truth, scores = generator.random(100) > 0.5, generator.random(100)
    once, often = (
        auc_interval(np.tile(truth, n), np.tile(scores, n), np.tile(np.arange(100), n))
        for n in (1, 3)
    )
    assert often == pytest.approx(once)


def test_the_area_is_scikit_learns():
    generator = np.random.default_rng(4)
    truth, scores = generator.random(50) > 0.4, generator.integers(0, 9, 50)  # with ties
    assert area_under_curve(truth, scores) == pytest.approx(roc_auc_score(truth, scores))


def test_features_of_frames():
    still = np.full((5, 8, 8, 3), 0.5)
    assert of_frames(still) == pytest.approx((0, 0, 0, 1))
    steps = still + np.arange(5)[:, None, None, None] * 0.1
    assert of_frames(steps) == pytest.approx((0.1, 0, 0.02, 1))
    halves = still.copy()
    halves[:, :, 4:] = 1
    motion, edges, variance, _ = of_frames(halves)
    assert motion == 0 and 0.2 < edges < 0.5 and variance == pytest.approx(0.0625)


def test_features_see_the_conditioning_frames_only(tmp_path):
    base = make_run(tmp_path / "base", [0, 0], steps=0)
    comparison = compare(read_runs([base, make_run(tmp_path / "run", [0.5, 1])]))
    (method,) = comparison.methods
    assert features(comparison, method, "v001") is None
    frames = np.full((27, 3, 32, 64), 0.5, np.float32)
    frames[13:, :, 8:24] = 1  # after the anchor, and the right half is what was generated
    frames[:, :, ::2, 32:] = 0
    write_video(base / "videos" / "v000.mp4", torch.from_numpy(frames), 24)
    found = features(comparison, method, "v000")
    assert found["motion"] < 0.01 and found["edge density"] < 0.05
    assert found["preflight loss"] == 0.4 and found["anchored loss before"] == 0.5
    assert found["anchored loss after"] == 0.4
