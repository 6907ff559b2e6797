"""What must be true of every method. A new method joins by its name in METHODS."""

from types import SimpleNamespace

import pytest
import torch

import adasteer
import backbones
import common
from common.adapt import adapt
from common.loss import beats_zero, flow_matching_loss, preflight

METHODS = {adasteer.AdaSteer: [{"groups": 1}, {"groups": 3}, {"groups": 4, "final_layer": True}]}
CASES = [(method, options) for method, cases in METHODS.items() for options in cases]
each_method = pytest.mark.parametrize(
    ("method", "options"), CASES, ids=lambda x: x.__name__ if isinstance(x, type) else str(x)
)


@pytest.fixture(scope="module")
def model(toy_checkpoint):
    return backbones.load(toy_checkpoint)


def arguments(**options):
    defaults = {"groups": 1, "final_layer": False, "weight_decay": 0.01, "lr": 1e-2, "steps": 3}
    return SimpleNamespace(**defaults | options)


@pytest.fixture(scope="module")
def clip(model):
    torch.manual_seed(0)
    text = model.embed(["a red ball", ""])
    return SimpleNamespace(
        context=torch.randn(1, 16, 2, 4, 6), target=torch.randn(1, 16, 2, 4, 6),
        cond_latents=torch.randn(1, 16, 2, 4, 6), text=text[:1], negative_text=text[1:],
        seed=1, video=SimpleNamespace(id="toy"),
    )  # fmt: skip


def loss_of(model, clip):
    return flow_matching_loss(model, clip, torch.tensor([0.5]), torch.ones_like(clip.target))


def sample(model, clip):
    noise = torch.linspace(-2, 2, clip.cond_latents.numel()).view_as(clip.cond_latents)
    return model.generate(clip.cond_latents, clip.text, clip.negative_text, noise, steps=2)


def perturb(method):
    with torch.no_grad():
        for p in method.parameters():
            p.add_(torch.randn_like(p))


def registered_functions(model):
    return [*model._velocity_site, *(f for site in model.dit.sites.values() for f in site)]


@each_method
def test_identity_at_start_is_bit_exact(model, clip, method, options):
    with torch.no_grad():
        plain, plain_sample = loss_of(model, clip), sample(model, clip)
        with method(model, clip, arguments(**options)).attached():
            assert torch.equal(loss_of(model, clip), plain)
            assert torch.equal(sample(model, clip), plain_sample)


@each_method
def test_training_and_sampling_see_the_adaptation(model, clip, method, options):
    with torch.no_grad():
        plain, plain_sample = loss_of(model, clip), sample(model, clip)
        adapted = method(model, clip, arguments(**options))
        perturb(adapted)
        with adapted.attached():
            assert not torch.equal(loss_of(model, clip), plain)
            assert not torch.equal(sample(model, clip), plain_sample)


@each_method
def test_gradients_are_finite_and_the_same_with_recompute(model, clip, method, options):
    adapted, found = method(model, clip, arguments(**options)), []
    perturb(adapted)
    with adapted.attached():
        for blocks in (0, 2, None):
            model.recompute(blocks)
            loss_of(model, clip).backward()
            found.append([p.grad.clone() for p in adapted.parameters()])
            for p in adapted.parameters():
                p.grad = None
    model.recompute(0)
    for gradients in found:
        assert all(g.isfinite().all() and g.any() for g in gradients)
        assert all(torch.equal(a, b) for a, b in zip(gradients, found[0], strict=True))


@each_method
def test_only_its_own_parameters_move_and_leaving_restores(model, clip, method, options):
    before = {k: v.clone() for k, v in model.dit.state_dict().items()}
    with torch.no_grad():
        plain = sample(model, clip)
    adapted = method(model, clip, arguments(**options))
    start = [p.detach().clone() for p in adapted.parameters()]
    with adapted.attached():
        record = adapt(model, adapted, clip, arguments(**options))
    assert record["kept"] == "adapted" and not record["diverged"]
    assert len(record["losses"]) == len(record["sigmas"]) == 3
    assert all(not torch.equal(p, q) for p, q in zip(adapted.parameters(), start, strict=True))
    assert all(torch.equal(before[k], v) for k, v in model.dit.state_dict().items())
    assert all(p.grad is None for p in model.dit.parameters())
    assert not registered_functions(model)
    with torch.no_grad():
        assert torch.equal(sample(model, clip), plain)


@each_method
def test_nothing_stays_after_an_exception(model, clip, method, options):
    with pytest.raises(KeyError), method(model, clip, arguments(**options)).attached():
        assert registered_functions(model)
        raise KeyError
    assert not registered_functions(model)


@each_method
def test_divergence_is_recorded_and_the_start_restored(model, clip, method, options):
    adapted = method(model, clip, arguments(**options))
    bad = SimpleNamespace(**vars(clip) | {"target": clip.target * float("inf")})
    with adapted.attached():
        record = adapt(model, adapted, bad, arguments(**options))
    assert record["diverged"] and record["kept"] == "baseline" and record["losses"] == [None]
    start = method(model, clip, arguments(**options)).parameters()
    assert all(torch.equal(a, b) for a, b in zip(adapted.parameters(), start, strict=True))


@pytest.mark.parametrize("groups", [0, 5, -1])
def test_impossible_numbers_of_groups(model, clip, groups):
    with pytest.raises(common.UsageError, match=rf"--groups must be in 1..4, got {groups}"):
        adasteer.AdaSteer(model, clip, arguments(groups=groups))


def test_groups_are_floor_i_g_over_depth(model, clip):
    """G = 3 of 4 blocks: 0, 0, 1, 2; the final layer only with --final-layer, with the last
    group."""
    for final_layer in (False, True):
        method = adasteer.AdaSteer(model, clip, arguments(groups=3, final_layer=final_layer))
        for g, vector in enumerate(method.delta):
            vector.data.fill_(g + 1)
        seen = [method.steer(i, torch.zeros(1, 1, 16), None)[0, 0, 0].item() for i in range(5)]
        assert seen == [1, 1, 2, 3, 3 if final_layer else 0]


def test_a_site_sees_each_frame_s_sigma(model, clip):
    seen = []
    with model.timestep_embedding(lambda i, e, sigma: seen.append((i, e.shape, sigma)) or e):
        loss_of(model, clip)
    assert [i for i, _, _ in seen] == [0, 1, 2, 3, 4]
    assert all(shape == (1, 4, 16) and s.tolist() == [[0, 0, 0.5, 0.5]] for _, shape, s in seen)


def test_a_preflight_that_is_not_finite_does_not_pass(model, clip):
    bad = SimpleNamespace(**vars(clip) | {"context": clip.context * float("nan")})
    losses = preflight(model, bad)
    assert losses["loss"] is None and losses["zero_loss"] > 0 and not beats_zero(losses)
