"""What must be true of every method. A new method joins by its name in METHODS."""

from types import SimpleNamespace

import pytest
import torch
from oracles import assert_near
from toy import copies, loss_of, new, perturb, sample

import backbones
import common
from adasteer import AdaSteer
from backbones.longcat import LongCat
from backbones.longcat_dit import LongCatVideoTransformer3DModel
from common.adaptation import adapt
from common.stopping import EarlyStopping
from delta_c import DeltaC
from film_tta import FiLM
from full_tta import FullTTA
from last_layer_tta import LastLayer
from lora_tta import LoRA
from norm_tta import NormTTA
from runs.results import save_adapter

METHODS = {
    AdaSteer: [
        "--groups 1",
        "--groups 3 --dims 5 --l2 0.1",
        "--groups 4 --final-layer --time-slope",
        "--groups 2 --target hidden --blocks last:3",
    ],
    FullTTA: ["", "--optimizer sgd --lr 0.1", "--l2-to-start 0.1 --ewc 10"],
    LoRA: ["", "--rank 2 --ffn --blocks 0,3"],
    DeltaC: [
        "",
        "--solver closed-form --cached-draws 4",
    ],
    LastLayer: ["--cached-draws 4", "--site last-modulation --cached-draws 4"],
    NormTTA: ["", "--norms cross --with-delta", "--norms qk"],
    FiLM: ["--groups 3", "--mode shift-scale", "--mode scale"],
}
CASES = [(method, flags) for method, cases in METHODS.items() for flags in cases]
each_method = pytest.mark.parametrize(
    ("method", "flags"), CASES, ids=lambda x: x.__name__ if isinstance(x, type) else x
)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def registered_functions(model):
    return [*model.velocity_site, *(f for site in model.dit.sites.values() for f in site)]


def state(model):
    """What attaching must leave as it was: weights, their order, modules, gradients, functions."""
    weights = [(name, p, p.clone()) for name, p in model.dit.named_parameters()]
    return weights, [type(m) for m in model.dit.modules()], registered_functions(model)


def assert_untouched(model, before):
    weights, kinds, functions = state(model)
    assert kinds == before[1] and functions == before[2] == []
    assert [(name, id(p)) for name, p, _ in weights] == [(name, id(p)) for name, p, _ in before[0]]
    assert all(torch.equal(a, b) for (*_, a), (*_, b) in zip(weights, before[0], strict=True))
    assert all(p.grad is None and not p.requires_grad for p in model.dit.parameters())
    assert not hasattr(model.dit, "peft_config")


@each_method
def test_identity_at_start_is_bit_exact(model, clip, method, flags):
    with torch.no_grad():
        plain, plain_sample = loss_of(model, clip), sample(model, clip)
        with new(method, flags, model, clip)[0].attached():
            assert torch.equal(loss_of(model, clip), plain)
            assert torch.equal(sample(model, clip), plain_sample)


@each_method
def test_training_and_sampling_see_the_adaptation(model, clip, method, flags):
    with torch.no_grad():
        plain, plain_sample = loss_of(model, clip), sample(model, clip)
        adapted, _ = new(method, flags, model, clip)
        perturb(adapted)
        with adapted.attached():
            assert not torch.equal(loss_of(model, clip), plain)
            assert not torch.equal(sample(model, clip), plain_sample)


@each_method
def test_the_cache_changes_nothing(model, clip, method, flags):
    adapted, _ = new(method, flags, model, clip)
    perturb(adapted)
    with adapted.attached():
        cached = sample(model, clip, guidance_scale=1.0)
        whole = sample(model, clip, guidance_scale=1.0, use_cache=False)
    assert_near(cached, whole, 4e-6)  # as oracles/longcat has it


@each_method
def test_gradients_are_finite_and_the_same_with_recompute(model, clip, method, flags):
    adapted, _ = new(method, flags, model, clip)
    found = []
    perturb(adapted)
    parameters = adapted.named_parameters().values()
    with adapted.attached():
        for blocks in (0, 2, None):
            model.recompute(blocks)
            loss_of(model, clip).backward()
            found.append([p.grad.clone() for p in parameters])
            for p in parameters:
                p.grad = None
    model.recompute(0)
    for gradients in found:
        assert all(g.isfinite().all() and g.any() for g in gradients)
        assert all(torch.equal(a, b) for a, b in zip(gradients, found[0], strict=True))


@each_method
def test_only_its_own_parameters_move_and_leaving_restores(model, clip, method, flags):
    before, plain = state(model), sample(model, clip)
    adapted, args = new(method, flags, model, clip)
    start = copies(adapted)
    with adapted.attached():
        record = adapt(model, adapted, clip, args)
        own = sample(model, clip)
    assert record["kept"] == "adapted" and not record["diverged"]
    assert len(record["losses"]) == len(record["sigmas"]) >= 1
    assert record["adapted_parameters"] == sum(p.numel() for p in start.values())
    moved = adapted.named_parameters()
    assert all(not torch.equal(moved[name], start[name]) for name in start)
    assert all(distance > 0 for distance in record["distances"].values())
    assert_untouched(model, before)
    assert torch.equal(sample(model, clip), plain) and not torch.equal(own, plain)


@each_method
def test_nothing_stays_after_an_exception(model, clip, method, flags):
    before = state(model)
    adapted, _ = new(method, flags, model, clip)
    perturb(adapted)
    with pytest.raises(KeyError), adapted.attached():
        raise KeyError
    assert_untouched(model, before)


@each_method
def test_no_adaptation_can_win(model, clip, method, flags):
    """The held-out loss rises at every check: the first state is put back."""
    plain, rising = sample(model, clip), iter(range(100))
    adapted, args = new(method, flags, model, clip)
    start = copies(adapted)
    stopping = EarlyStopping(adapted.named_parameters().values(), lambda: next(rising), 1, 3)
    with adapted.attached():
        record = adapt(model, adapted, clip, args, stopping=stopping)
        assert torch.equal(sample(model, clip), plain)
    assert record["kept"] == "baseline" and record["best_step"] == 0 and not record["diverged"]
    assert len(record["anchor_losses"]) == 1 + len(record["losses"])
    assert same(copies(adapted), start)


@each_method
def test_divergence_is_recorded_and_the_start_restored(model, clip, method, flags):
    bad = SimpleNamespace(**vars(clip) | {"target": clip.target * float("inf")})
    adapted, args = new(method, flags, model, bad)
    start = copies(adapted)
    with adapted.attached():
        record = adapt(model, adapted, bad, args)
    assert record["diverged"] and record["kept"] == "baseline" and record["losses"] == [None]
    assert same(copies(adapted), start)


@each_method
def test_what_is_saved_loads_again(model, clip, method, flags, tmp_path):
    adapted, args = new(method, flags, model, clip)
    perturb(adapted)
    with adapted.attached():
        own = sample(model, clip)
    again, _ = new(method, flags, model, clip)
    common.load_adapter(save_adapter(tmp_path / "video.1", adapted, args), again, args)
    with again.attached():
        assert torch.equal(sample(model, clip), own)


@each_method
def test_bfloat16_weights_are_read_but_never_adapted(toy_checkpoint, clip, method, flags):
    """Adapted parameters are float32, but for those of the study's SGD."""
    model = backbones.load(toy_checkpoint, dtype=torch.bfloat16)
    before, plain = state(model), sample(model, clip)
    adapted, args = new(method, flags, model, clip)
    own = torch.bfloat16 if "sgd" in flags else torch.float32
    assert {p.dtype for p in adapted.named_parameters().values()} == {own}
    with adapted.attached():
        assert torch.equal(sample(model, clip), plain)
        record = adapt(model, adapted, clip, args)
        assert record["kept"] == "adapted" and not torch.equal(sample(model, clip), plain)
    assert_untouched(model, before)


@each_method
def test_a_video_is_a_new_start(model, clip, method, flags):
    assert same(*(copies(new(method, flags, model, clip)[0]) for _ in range(2)))


def test_a_gradient_that_is_not_finite_is_divergence_too(model, clip):
    method, args = new(AdaSteer, "", model, clip)
    calls = []
    method.delta[0].register_hook(
        lambda g: calls.append(1) or (g * float("nan") if len(calls) == 2 else g)
    )
    falling = iter(range(0, -100, -1))
    better = EarlyStopping(method.delta, lambda: next(falling), 1, 3)
    for stopping, kept, best in ((None, "baseline", None), (better, "adapted", 1)):
        calls.clear()
        with method.attached():
            record = adapt(model, method, clip, args, stopping=stopping)
        assert record["diverged"] and len(record["losses"]) == 2
        assert record["kept"] == kept and record["best_step"] == best
        assert method.delta[0].any() == (kept == "adapted")


@pytest.fixture(scope="module")
def released():
    with torch.device("meta"):
        dit = LongCatVideoTransformer3DModel(text_tokens_zero_pad=True)
    return LongCat(dit.to(torch.bfloat16))


@pytest.mark.parametrize(
    ("method", "flags", "count"),
    [
        *((AdaSteer, f"--groups {g}", 512 * g) for g in (1, 4, 12, 48)),
        (LoRA, "", 2_555_904),
        (LoRA, "--targets attn.qkv --blocks last:4", 65_536),
        (NormTTA, "--norms cross", 393_216),
        (NormTTA, "--norms qk", 24_576),
        (NormTTA, "--norms all", 417_792),
        *((FiLM, f"--groups {g}", 24_576 * g) for g in (1, 4, 48)),
        (FiLM, "--mode shift-scale", 16_384),
        (FiLM, "--mode scale", 8_192),
        (DeltaC, "", 16),
        (LastLayer, "", 4_096),
        (LastLayer, "--site last-modulation", 512),
        (FullTTA, "--optimizer sgd", 13_581_071_424),
    ],
)
def test_counts_at_the_released_size(released, method, flags, count):
    clip = SimpleNamespace(
        target=torch.empty(1, 16, 4, 60, 104, device="meta"),
        context=torch.empty(1, 16, 4, 60, 104, device="meta"),
        seed=1, video=SimpleNamespace(id="any"),
    )  # fmt: skip
    adapted, _ = new(method, flags, released, clip)
    parameters = adapted.named_parameters().values()
    assert sum(p.numel() for p in parameters) == count
    wanted = torch.bfloat16 if "sgd" in flags else torch.float32
    assert {p.dtype for p in parameters} == {wanted}
