"""Draws of (sigma, noise), the loss on them, and early stopping on a clip."""

from types import SimpleNamespace

import pytest
import torch
from oracles import arguments

from adasteer import AdaSteer
from common.adaptation import adapt, constant
from common.loss import Problem, all_sigmas, draws, flow_matching_loss, noises
from common.stopping import early_stopping


class Truthful:
    """A model that knows the latents: its velocity is (noisy - latents) / sigma, plus `off`."""

    sigma_min, device, stacks = 0.001, torch.device("cpu"), (("blocks.0",),)
    geometry = SimpleNamespace(context_lengths=None, context_alone=False)

    def __init__(self, latents, off=0.0):
        self.latents, self.off, self.seen = latents, off, []

    def velocity(self, noisy, sigma, context, text):
        start = context.shape[2]
        truth = self.latents[:, :, start : start + noisy.shape[2]]
        self.seen.append((start, noisy.shape, sigma))
        return (noisy - truth) / sigma.view(-1, 1, 1, 1, 1) + self.off


@pytest.fixture
def clip():
    latents = torch.randn(1, 4, 6, 2, 2, generator=torch.Generator().manual_seed(0))
    context, target, held_out = latents.split([2, 3, 1], dim=2)
    return SimpleNamespace(
        latents=latents, context=context, target=target, held_out=held_out, text=None, seed=3,
        video=SimpleNamespace(id="a clip"),
    )  # fmt: skip


def flags(text=""):
    return arguments(AdaSteer, text)


def test_one_draw_a_step_does_not_depend_on_the_number_of_steps(clip):
    few, many = (flags(f"--steps {n}") for n in (3, 40))
    assert torch.equal(all_sigmas(Truthful, clip, few), all_sigmas(Truthful, clip, many)[:3])
    for (_, a), (_, b) in zip(noises(clip, few), noises(clip, many), strict=False):
        assert torch.equal(a, b) and a.shape == clip.target.shape


@pytest.mark.parametrize("draws", ["", "--draws 8"])
def test_sigmas_reach_from_a_thousandth_to_1(clip, draws):
    """So many draws of U(0, 1) would go lower."""
    sigmas = all_sigmas(Truthful, clip, flags(f"--steps 20000 {draws}"))
    assert 0.001 <= sigmas.min() < 0.002 and 0.999 < sigmas.max() <= 1
    assert sigmas.double().mean() == pytest.approx(0.5005, abs=0.01)


def test_no_sigma_lies_below_the_model_s_own(clip):
    """As of a model whose schedule ends early."""
    for text in ("--steps 2000", "--steps 500 --draws 4"):
        sigmas = all_sigmas(SimpleNamespace(sigma_min=0.2), clip, flags(text))
        assert 0.2 <= sigmas.min() < 0.21 and sigmas.max() > 0.99


def test_several_draws_are_stratified_over_the_run(clip):
    sigmas = all_sigmas(Truthful, clip, flags("--steps 5 --draws 8"))
    assert sigmas.shape == (5, 8)
    strata = ((sigmas.flatten() - 0.001) / 0.999 * 40).floor().int().sort().values
    assert strata.tolist() == list(range(40))
    assert all(row.max() - row.min() > 0.3 for row in sigmas)  # not in order


def test_antithetic_draws_come_in_pairs(clip):
    args = flags("--steps 3 --draws 4 --antithetic")
    assert torch.equal(
        all_sigmas(Truthful, clip, args)[:, ::2], all_sigmas(Truthful, clip, args)[:, 1::2]
    )
    for _, noise in noises(clip, args):
        assert noise.shape == (4, *clip.target.shape[1:])
        assert torch.equal(noise[0], -noise[1]) and torch.equal(noise[2], -noise[3])
        assert not torch.equal(noise[0], noise[2])


def test_the_length_of_the_context_varies(clip):
    model = Truthful(clip.latents)
    for draw in draws(model, clip, flags("--steps 40 --context varying --draws 2")):
        assert flow_matching_loss(model, *draw) < 1e-6
    assert {start for start, *_ in model.seen} == {1, 2, 3, 4}
    assert all(start + shape[2] == 5 and shape[0] == 2 for start, shape, _ in model.seen)


def test_the_right_velocity_has_no_loss_and_the_negated_one_has(clip):
    sigma, noise = torch.tensor([0.3]), torch.ones_like(clip.target)
    assert flow_matching_loss(Truthful(clip.latents), clip, sigma, noise) < 1e-10
    off = Truthful(clip.latents, 0.5)
    assert flow_matching_loss(off, clip, sigma, noise).item() == pytest.approx(0.25, rel=1e-5)


def test_the_temporal_loss_is_that_of_differences(clip):
    """A velocity that is off by the same everywhere shifts all latents by -sigma * off: of the
    differences only that to the last context latent is wrong, which weighs as the first target."""
    sigma, noise = torch.tensor([0.3]), torch.ones_like(clip.target)
    loss = flow_matching_loss(Truthful(clip.latents, 0.5), clip, sigma, noise, temporal_loss=2.0)
    assert loss.item() == pytest.approx(0.25 + 2 * (0.3 * 0.5) ** 2 / 3, rel=1e-5)
    weights = torch.tensor([0.3, 0.9, 1.8]).view(1, 1, 3, 1, 1)
    weighed = Problem(clip.context, clip.target, clip.text, weights)
    loss = flow_matching_loss(Truthful(clip.latents, 0.5), weighed, sigma, noise, temporal_loss=2.0)
    assert loss.item() == pytest.approx(0.25 + 0.3 * 2 * (0.3 * 0.5) ** 2 / 3, rel=1e-5)


def test_held_out_latents_are_predicted_at_their_own_place(clip):
    """All draws in one pass."""
    args = flags("--stop-every 2 --stop-draws 3 --stop-sigmas 0.2,0.4")
    model = Truthful(clip.latents)
    stopper = early_stopping(model, clip, args, [torch.zeros(1)])
    ((place, shape, sigma),) = model.seen
    assert place == 5 and shape == (6, *clip.held_out.shape[1:])
    assert sigma.tolist() == pytest.approx([0.2] * 3 + [0.4] * 3)
    assert stopper.history[0][1] < 1e-6


def test_the_check_is_the_same_every_time_and_for_every_method(clip):
    args = flags("--stop-every 1 --patience 2 --steps 9")
    model = Truthful(clip.latents, 0.5)
    delta = torch.zeros(1, requires_grad=True)
    sgd = torch.optim.SGD([delta], lr=0.1)
    still = SimpleNamespace(
        named_parameters=lambda: {"delta": delta},
        optimizer=lambda: (sgd, constant(sgd)),
        loss=lambda draw: (delta - 1).square().sum(),
    )
    record = adapt(model, still, clip, args)
    assert record["anchor_losses"] == [[step, record["anchor_losses"][0][1]] for step in range(3)]
    assert record["stop_step"] == 2 and record["kept"] == "baseline" and delta.item() == 0
