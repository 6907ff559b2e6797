"""Sigmas that are spread otherwise, noise on the context, weights of the latents, and the gate."""

import math

import pytest
import torch
from test_start import adapted, carried_state, on
from test_vjepa_carried import flat
from toy import copies, new

import adasteer
from adasteer import AdaSteer
from common.loss import all_sigmas, flow_matching_loss, noises
from common.start import Start


class Model:
    sigma_min = 0.1


def drawn(model, clip, flags):
    """What noises gives for three steps."""
    return list(noises(clip, new(AdaSteer, flags, model, clip)[1]))


@pytest.mark.parametrize("draws", ["", "--draws 2"])
def test_logit_normal_sigmas(draws, model, clip):
    """Half of them within the sigmoid of the quartiles, 0.675 on either side of the middle."""
    flags = f"--steps 20000 --sigmas logit-normal {draws}"
    args = new(AdaSteer, flags, model, clip)[1]
    found = (all_sigmas(Model, clip, args).flatten() - 0.1) / 0.9
    quartile = 1 / (1 + math.exp(-0.6745))
    assert 0 <= found.min() and found.max() <= 1
    for part, value in ((0.25, 1 - quartile), (0.5, 0.5), (0.75, quartile)):
        assert found.quantile(part).item() == pytest.approx(value, abs=0.01)
    even = new(AdaSteer, f"--steps 20000 {draws}", model, clip)[1]
    even = (all_sigmas(Model, clip, even).flatten() - 0.1) / 0.9
    assert even[found.argsort()].diff().min() > -1e-5  # the same draws, spread otherwise


def test_noise_on_the_context_is_the_steps_own(model, clip):
    plain, noisy = drawn(model, clip, ""), drawn(model, clip, "--context-noise 0.5")
    contexts = [problem.context for problem, _ in noisy]
    assert not torch.equal(contexts[0], contexts[1])
    for (problem, noise), (_, other) in zip(noisy, plain, strict=True):
        assert torch.equal(noise, other) and torch.equal(problem.target, clip.target)
        added = 2 * problem.context - clip.context  # as (1 - 0.5) context + 0.5 noise
        assert added.std().item() == pytest.approx(1, abs=0.2)


def test_later_latents_weigh_more(model, clip):
    (problem, noise), *_ = drawn(model, clip, "--recency 0.7")
    weights = problem.weights.flatten()
    assert weights.mean().item() == pytest.approx(1)
    torch.testing.assert_close(
        weights[1:] / weights[:-1], torch.full((len(weights) - 1,), 0.7).exp()
    )
    with torch.no_grad():
        sigma = torch.tensor([0.5])
        found = flow_matching_loss(model, problem, sigma, noise)
        each = model.velocity(0.5 * clip.target + 0.5 * noise, sigma, clip.context, clip.text) - (
            noise - clip.target
        )
    expected = (weights * each.square().mean((0, 1, 3, 4))).mean()
    torch.testing.assert_close(found, expected)


class Harmful(AdaSteer):
    """It climbs."""

    def loss(self, draw):
        return -super().loss(draw)


Harmful.__module__ = AdaSteer.__module__


def gated(cls, model, clip, flags, start=None):
    """Its gate looks at the very latents that it learns from."""
    return adapted(cls, flags, model, on(clip, start, held_out=clip.held_out[:, :, :0]))


def test_a_gate_keeps_what_lowers_the_loss_and_nothing_else(model, clip):
    kept, record = gated(AdaSteer, model, clip, "--gate 0 --lr 0.01 --steps 10 --draws 4")
    assert record["gate"]["rise"] < 0 and record["kept"] == "adapted"
    plain, other = gated(AdaSteer, model, clip, "--lr 0.01 --steps 10 --draws 4")
    assert "gate" not in other and torch.equal(copies(kept)["delta.0"], copies(plain)["delta.0"])
    for cls, limit, sign in ((AdaSteer, 1e6, -1), (Harmful, 0, 1)):
        flags = f"--gate {limit} --lr 0.01 --steps 10 --draws 4"
        method, refused = gated(cls, model, clip, flags)
        assert refused["kept"] == "baseline" and sign * refused["gate"]["rise"] > 0
        assert not copies(method)["delta.0"].any() and len(refused["losses"]) == 10
        assert refused["fixed_loss_after"] == refused["fixed_loss_before"]


def test_what_a_gate_refuses_does_not_go_on(model, clip):
    start = Start()
    _, record = gated(AdaSteer, model, clip, "--gate 1e6 --carry-over 1", start)
    assert record["kept"] == "baseline" and start.leaves is None
    left = carried_state(model, clip, 0.1)
    start, before = Start(left), flat(left)
    gated(AdaSteer, model, clip, "--gate 1e6 --carry-over 1", start)
    assert flat(start.leaves) == before


def test_a_gate_holds_latents_out(script, tmp_path, capsys):
    assert script(adasteer, "--gate", 1, "--context-latents", 7, "--out", tmp_path) == 2
    assert "--gate holds out a target latent and needs one more" in capsys.readouterr().err
    flags = ["--gate", 1, "--stop-draws", 1, "--stop-sigmas", 0.5]
    assert script(adasteer, *flags, "--out", tmp_path) == 2
    assert "--gate 1: one loss has no standard error" in capsys.readouterr().err
    assert script(adasteer, "--gate", 1, "--adapter", "nano", "--out", tmp_path) == 2
    assert "--gate 1: with --adapter and --steps 0, its default" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--sigmas", "logit-normal"], ["--recency", 1]])
def test_a_method_with_draws_of_its_own_refuses_them(flags, script, tmp_path, capsys):
    import last_layer_tta

    assert script(last_layer_tta, *flags, "--out", tmp_path) == 2
    assert f"{flags[0]} are for draws at every step" in capsys.readouterr().err
