"""The loss on the true future and the scores of several samples, where the best answer is known."""

import math
from types import SimpleNamespace

import pytest
import torch
from test_run import QUICK, results

import adasteer
import common
import full_tta
import runs
from common.future import SIGMAS, future_loss
from common.loss import Problem
from common.metrics import psnr_db
from runs.samples import combined, scores_together

MEAN, SPREAD = 0.7, 0.5  # of the true future, each value on its own


class Gaussian:
    """Predicts the velocity exactly for a future N(mean, spread^2) of independent values."""

    device = torch.device("cpu")

    def __init__(self, mean, spread):
        self.mean, self.variance = mean, spread**2

    def context_cache(self, cond_latents):
        return None

    def velocity(self, noisy, sigma, cond_latents, text, cache=None):
        s = sigma.view(-1, 1, 1, 1, 1)
        share = (1 - s) * self.variance / ((1 - s) ** 2 * self.variance + s**2)
        latents = self.mean + share * (noisy - (1 - s) * self.mean)
        return (noisy - latents) / s


@pytest.fixture(scope="module")
def truth():
    """Latents (1, C, T, h, w) of a future, enough of them that chance hardly counts."""
    generator = torch.Generator().manual_seed(0)
    return MEAN + SPREAD * torch.randn(1, 16, 3, 48, 48, generator=generator)


def loss_of(model, truth):
    problem = Problem(torch.zeros(1, 16, 1, 48, 48), truth, None)
    noise = torch.randn(4, *truth.shape[1:], generator=torch.Generator().manual_seed(1))
    return float(future_loss(model, problem, noise).mean())


OTHERS = [(MEAN, s) for s in (0.1, 0.35, 0.7, 1.0)] + [(m, SPREAD) for m in (0.3, 0.6, 0.8, 1.5)]


def test_the_loss_on_the_future_is_least_at_the_truth(truth):
    """PSNR of one sample is not: it rewards a model without spread."""
    best = loss_of(Gaussian(MEAN, SPREAD), truth)
    assert all(best < loss_of(Gaussian(*other), truth) for other in OTHERS)
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(2))
    psnr = {spread: psnr_db(MEAN + spread * noise, truth) for spread in (0.0, 0.35, SPREAD)}
    assert psnr[0.0] > psnr[0.35] > psnr[SPREAD]


def test_the_loss_is_that_of_the_formula(truth):
    """For the true model: the variance of noise - latents given the noisy latents."""
    problem = Problem(torch.zeros(1, 16, 1, 48, 48), truth, None)
    noise = torch.randn(8, *truth.shape[1:], generator=torch.Generator().manual_seed(1))
    found = future_loss(Gaussian(MEAN, SPREAD), problem, noise)
    for sigma, row in zip(SIGMAS, found, strict=True):
        expected = SPREAD**2 / ((1 - sigma) ** 2 * SPREAD**2 + sigma**2)
        assert row.tolist() == pytest.approx([expected] * 3, rel=0.03)


@pytest.mark.parametrize(("mean", "spread"), [(MEAN, SPREAD), *OTHERS])
def test_the_kernel_score_is_the_error_of_the_predicted_mean(truth, mean, spread):
    """E|X - y|^2 - E|X - X'|^2 / 2 = spread of the truth^2 + (difference of the means)^2."""
    generator = torch.Generator().manual_seed(3)
    frames = mean + spread * torch.randn(6, *truth.shape[1:], generator=generator)
    found = scores_together(frames, truth[0])
    assert found["kernel_score"] == pytest.approx(SPREAD**2 + (mean - MEAN) ** 2, abs=0.01)
    assert found["sample_variance"] == pytest.approx(spread**2, rel=0.02)


def test_the_energy_score_is_least_at_the_truth(truth):
    def score(mean, spread):
        generator = torch.Generator().manual_seed(3)
        frames = mean + spread * torch.randn(6, *truth.shape[1:], generator=generator)
        return scores_together(frames, truth[0])["energy_score"]

    assert all(score(MEAN, SPREAD) < score(*other) for other in OTHERS)


def test_scores_of_samples_are_means_over_them():
    scores = [{"psnr_db": 20.0, "lpips": None, "psnr_db_per_frame": [19.0, 21.0]},
              {"psnr_db": 24.0, "lpips": None, "psnr_db_per_frame": [25.0, None]}]  # fmt: skip
    found = combined(scores)
    assert found["psnr_db"] == 22.0 and found["psnr_db_per_sample"] == [20.0, 24.0]
    assert found["psnr_db_per_frame"] == [22.0, 21.0] and found["lpips"] is None
    assert combined(scores[:1]) == scores[0]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """A clip of the demo, nano, and full_tta's arguments."""
    flags = [*map(str, QUICK), "--limit", "1", "--out", str(tmp_path_factory.mktemp("future"))]
    args = runs.parse_args(None, full_tta.FullTTA, flags)
    run, model = runs.Run(args), common.load_model(args)
    with run.working(model):
        return model, run.load_clip(next(run.pending())), args


def test_batches_and_the_cache_change_nothing(loaded):
    model, clip, _ = loaded
    problem = Problem(clip.cond_latents, clip.future, clip.text)
    noise = torch.randn(4, *clip.future.shape[1:], generator=torch.Generator().manual_seed(0))
    whole = future_loss(model, problem, noise)
    assert whole.shape == (len(SIGMAS), clip.future.shape[2]) and whole.isfinite().all()
    assert torch.allclose(whole, future_loss(model, problem, noise, cached=False), atol=1e-6)
    single = torch.stack([future_loss(model, problem, noise[i : i + 1]) for i in range(4)])
    assert torch.allclose(whole, single.mean(0), atol=1e-6)


def test_the_adapted_model_is_measured_with_the_cache_too(loaded):
    """What a method changes reaches the context as well: read with it, not before."""
    model, clip, args = loaded
    method = adasteer.AdaSteer(model, clip, runs.parse_args(None, adasteer.AdaSteer, []))
    problem = Problem(clip.cond_latents, clip.future, clip.text)
    noise = torch.ones(1, *clip.future.shape[1:])
    plain = future_loss(model, problem, noise)
    with torch.no_grad():
        method.delta[0].fill_(0.3)
    with method.attached():
        found = [future_loss(model, problem, noise, cached=cached) for cached in (True, False)]
    assert torch.allclose(*found, atol=1e-5) and not torch.allclose(found[0], plain, atol=1e-3)
    assert torch.equal(future_loss(model, problem, noise), plain)


def test_the_future_is_what_followed(loaded):
    """Three whole latents of 14 frames, encoded after the conditioning frames."""
    model, clip, _ = loaded
    frames = torch.cat([clip.cond_frames, clip.truth[:12]]).transpose(0, 1)[None]
    latents = model.encode(frames)
    assert torch.equal(clip.future, latents[:, :, 4:]) and clip.future.shape[2] == 3
    assert torch.allclose(latents[:, :, :4], clip.cond_latents, atol=1e-5)


def test_measuring_changes_nothing_else(tmp_path, script):
    """The same run with it, without it, and traced."""
    for name, flags in {
        "with": [],
        "without": ["--future-draws", 0],
        "traced": ["--trace-future", 1],
    }.items():
        assert script(full_tta, *QUICK, *flags, "--limit", 2, "--out", tmp_path / name) == 0
    found = {name: results(tmp_path / name) for name in ("with", "without", "traced")}
    for video, record in found["with"].items():
        others = {k: v for k, v in record.items() if not k.startswith("future_")}
        for name in ("without", "traced"):
            other = found[name][video]
            assert {k: v for k, v in other.items() if not k.startswith("future_")} == others
        assert found["without"][video]["future_loss"] is None
        traced = found["traced"][video]
        assert [step for step, _ in traced["future_losses"]] == [1, 2]
        assert traced["future_losses"][-1][1] == traced["future_loss"] == record["future_loss"]
        assert record["future_loss"] != record["future_loss_before"]
        assert (
            record["future_loss"]
            == pytest.approx(sum(record["future_loss_per_sigma"]) / 5)
            == pytest.approx(sum(record["future_loss_per_latent"]) / 3)
        )


def test_a_baseline_has_the_loss_of_before(tmp_path, script):
    for name, module, steps in (("base", adasteer, 0), ("full", full_tta, 2)):
        flags = ["--steps", steps, "--no-generate", "--limit", 1, "--out", tmp_path / name]
        assert script(module, *flags) == 0
    (base,), (full,) = (results(tmp_path / name).values() for name in ("base", "full"))
    assert base["future_loss"] == base["future_loss_before"] == full["future_loss_before"]
    assert base["psnr_db"] is None and not list(tmp_path.rglob("*.mp4"))


def test_too_few_frames_for_a_latent_have_no_future_loss(tmp_path, script):
    flags = ["--gen-frames", 3, "--limit", 1, "--out", tmp_path]
    assert script(adasteer, *QUICK, *flags) == 0
    (record,) = results(tmp_path).values()
    assert record["future_loss"] is None and record["psnr_db"] > 0


def test_the_first_of_several_samples_is_the_only_one_of_one(tmp_path, script):
    for samples in (1, 3):
        flags = ["--samples", samples, "--limit", 1, "--out", tmp_path / str(samples)]
        assert script(adasteer, *QUICK, *flags) == 0
    (one,), (three,) = (results(tmp_path / name).values() for name in ("1", "3"))
    assert three["psnr_db_per_sample"][0] == one["psnr_db"]
    assert len(set(three["psnr_db_per_sample"])) == 3 and three["sample_variance"] > 0
    assert three["psnr_db"] == pytest.approx(sum(three["psnr_db_per_sample"]) / 3)
    assert math.isfinite(three["kernel_score"]) and one["kernel_score"] is None


def test_a_diverged_model_has_no_number(loaded):
    model, clip, args = loaded
    broken = SimpleNamespace(
        context_cache=lambda latents: None, device=model.device,
        velocity=lambda noisy, *more: noisy * float("nan"),
    )  # fmt: skip
    record = common.future.Future(broken, clip, args).record(updated=True)
    assert record["future_loss"] is None and record["future_loss_per_sigma"] == [None] * 5
