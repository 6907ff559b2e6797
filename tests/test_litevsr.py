"""LiteVSR's adapter on frozen models: what it starts as, what learns, and what its loss is."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from oracles import assert_near
from toy import make_checkpoint, make_skyreels, make_wan, toy_clip

import backbones
from backbones.wan_dit import WanTransformer3DModel
from common.errors import MisfitError
from common.loss import Problem, flow_matching_loss
from litevsr import unrolling
from litevsr.adapter import StateAwareAdapter
from litevsr.restorer import Restorer, new_adapter

MODELS = {"longcat": make_checkpoint, "skyreels": make_skyreels, "wan": make_wan}


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory):
    return backbones.load(MODELS[request.param](tmp_path_factory.mktemp("vsr") / "checkpoint"))


@pytest.fixture
def given(model):
    """(noisy (2, C, T, h, w), sigma (2,), low-resolution latents, text)."""
    clip = toy_clip(model)
    noisy = torch.randn(2, *clip.target.shape[1:])
    return noisy, torch.tensor([0.3, 0.9]), torch.randn_like(noisy), clip.text


@pytest.fixture
def restorer(model, given):
    torch.manual_seed(1)
    return Restorer(model, new_adapter(model, given[0], model.geometry.size, heads=2))


def trained(restorer):
    """The same with weights that are not zero, as after training."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in restorer.adapter.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return restorer


def test_it_starts_as_the_frozen_model_and_learns_at_the_injections_first(model, restorer, given):
    noisy, sigma, low, text = given
    plain = model.velocity(noisy, sigma, noisy[:, :, :0], text)
    found = restorer.velocity(*given)
    assert_near(found, plain, 1e-6 * max(1, plain.abs().max().item()))
    found.square().mean().backward()
    moved = {
        n for n, p in restorer.adapter.named_parameters() if p.grad is not None and p.grad.any()
    }
    weights = {f"injections.{i}.{kind}" for i in range(model.depth) for kind in ("weight", "bias")}
    assert moved == weights
    assert all(p.grad is None for p in model.dit.parameters())


def test_everything_learns_once_it_is_not_zero(model, restorer, given):
    trained(restorer).velocity(*given).square().mean().backward()
    still = [
        n for n, p in restorer.adapter.named_parameters() if p.grad is None or not p.grad.any()
    ]
    assert not still
    assert all(p.grad is None for p in model.dit.parameters())


def test_a_doubled_batch_is_two_passes(model, restorer, given):
    """The low-resolution half alone, its tokens kept after every block; then the other half, with
    what those give it."""
    noisy, sigma, low, text = given
    adapter = trained(restorer).adapter
    together = restorer.velocity(noisy, sigma, low, text)
    tokens, kept = adapter(low, low, sigma), {}

    def keep(i, x):
        kept[i] = x
        return x

    nothing = noisy[:, :, :0]
    with model.block_input(lambda i, x: x + tokens), model.block_output(keep):
        model.velocity(low, sigma, nothing, text)

    def inject(i, x):
        layer = adapter.injections[str(i)]
        return x + layer(kept[i])

    with model.block_output(inject):
        apart = model.velocity(noisy, sigma, nothing, text)
    assert_near(together, apart, 1e-5 * max(1, apart.abs().max().item()))
    assert (apart - model.velocity(noisy, sigma, nothing, text)).abs().max() > 1e-3


def test_the_state_is_read_and_is_the_low_resolution_at_first(restorer, given):
    noisy, sigma, low, text = given
    first = trained(restorer).velocity(*given)
    assert torch.equal(first, restorer.velocity(*given, state=low))
    assert not torch.equal(first, restorer.velocity(*given, state=torch.randn_like(low)))


def test_attention_is_shared_out_between_the_streams(restorer, given, monkeypatch):
    """As an explicit softmax has it; keys that are alike have half each."""
    noisy, sigma, low, _ = given
    masses = []
    trained(restorer).adapter(low, noisy, sigma, masses)
    assert len(masses) == 2 and all(((m > 0) & (m < 1)).all() for m in masses)
    monkeypatch.setattr("litevsr.adapter.SCORES", 1)  # a query at a time
    restorer.adapter(low, noisy, sigma, one_by_one := [])
    for mass, same in zip(masses, one_by_one, strict=True):
        assert_near(mass, same, 1e-6)
    alike = []
    with torch.no_grad():
        restorer.adapter.kinds.zero_()
        restorer.adapter.state.load_state_dict(restorer.adapter.structure.state_dict())
    restorer.adapter(low, low, sigma, alike)
    for mass in alike:
        assert_near(mass, torch.full_like(mass, 0.5), 1e-5)


def test_its_share_of_wan_1_3b():
    """178.4 million weights, 11.17 % of the whole."""
    with torch.device("meta"):
        frozen = WanTransformer3DModel(
            num_attention_heads=12, attention_head_dim=128, num_layers=30, ffn_dim=8960
        )
        adapter = StateAwareAdapter(16, 1536, 30, heads=12)
    own = sum(p.numel() for p in adapter.parameters())
    total = own + sum(p.numel() for p in frozen.parameters())
    assert own == pytest.approx(178.4e6, abs=0.05e6)
    assert own / total == pytest.approx(0.1117, abs=5e-5)


def test_a_model_that_needs_context_is_refused(model):
    other = SimpleNamespace(geometry=replace(model.geometry, context_lengths=(1,)))
    with pytest.raises(MisfitError, match="predicts nothing without context"):
        Restorer(other, None)


# Training and sampling


def test_a_walk_of_one_sigma_is_plain_flow_matching(restorer, given):
    noise, sigma, low, text = given
    latents = torch.randn(1, *noise.shape[1:])
    walks = torch.cat([torch.rand(2, unrolling.MOST - 1), sigma[:, None]], dim=1)
    alone = torch.ones(2, dtype=torch.long)
    both = latents.expand_as(noise)
    found = unrolling.training_loss(
        trained(restorer), both, noise, low[:1].expand_as(noise), text, walks, alone
    )
    problem = Problem(low[:1], latents, text)
    assert found.item() == pytest.approx(
        flow_matching_loss(restorer, problem, sigma, noise).item(), rel=1e-5
    )


def test_the_state_of_a_walk_is_the_estimate_of_the_step_before(restorer, given):
    """Of rows with one, two and three sigmas in one batch, as by hand."""
    trained(restorer)
    _, _, low, text = given
    latents, noise, low = (torch.randn(3, *low.shape[1:]) for _ in range(3))
    walks = torch.tensor([[0.9, 0.8, 0.7], [0.9, 0.6, 0.5], [0.8, 0.6, 0.2]])
    counts = torch.tensor([1, 2, 3])
    found = unrolling.walked_state(restorer, latents, noise, low, text, walks, counts)
    assert torch.equal(found[:1], low[:1]) and not found.requires_grad

    def estimate(row, sigma, state):
        one = [x[row : row + 1] for x in (latents, noise, low)]
        noisy = (1 - sigma) * one[0] + sigma * one[1]
        with torch.no_grad():
            v = restorer.velocity(noisy, torch.tensor([sigma]), one[2], text, state)
        return noisy - sigma * v

    assert_near(found[1:2], estimate(1, 0.6, low[1:2]), 1e-4)
    assert_near(found[2:], estimate(2, 0.6, estimate(2, 0.8, low[2:])), 1e-4)


def test_drawn_walks():
    torch.manual_seed(0)
    walks, counts = unrolling.draw_walks(4000)
    last = walks[:, -1]
    assert (walks[:, :-1].diff(dim=1) <= 0).all() and (walks >= last[:, None]).all()
    assert (last == 1).float().mean().item() == pytest.approx(unrolling.PURE_NOISE, abs=0.02)
    assert (counts[last > unrolling.ALONE_ABOVE] == 1).all()
    between = (last < unrolling.ALONE_ABOVE) & (last > unrolling.TWICE_BELOW)
    assert (counts[between] == 2).all()
    low = counts[last < unrolling.TWICE_BELOW]
    assert (low == 3).float().mean().item() == pytest.approx(unrolling.TWICE, abs=0.06)
    assert (unrolling.draw_walks(100, alone=True)[1] == 1).all()


def test_one_step_is_noise_minus_velocity_and_more_are_eulers(restorer, given):
    _, _, low, text = given
    low, noise = low[:1], torch.randn(1, *low.shape[1:])
    trained(restorer)

    def velocity(x, sigma, state):
        with torch.no_grad():
            return restorer.velocity(x, torch.tensor([sigma]), low, text, state)

    first = velocity(noise, 1.0, None)
    assert_near(restorer.generate(low, text, noise, 1), noise - first, 1e-5)
    half = noise - 0.5 * first
    second = velocity(half, 0.5, noise - first)
    assert_near(restorer.generate(low, text, noise, 2), half - 0.5 * second, 1e-4)
