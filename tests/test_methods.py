"""What must be true of every method. A new method joins by its name in METHODS."""

from types import SimpleNamespace

import pytest
import torch
from oracles import arguments

import backbones
import common
from adasteer import AdaSteer
from backbones.longcat import LongCat
from backbones.longcat_dit import LongCatVideoTransformer3DModel
from common.adapt import adapt
from common.loss import beats_zero, flow_matching_loss, preflight
from common.results import load_adapter, save_adapter
from common.stopping import EarlyStopping
from delta_c import DeltaC
from film_tta import FiLM
from full_tta import FullTTA
from lora_tta import LoRA
from norm_tta import NormTTA

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
        "--site pre-norm --cached-draws 4",
        "--site last-modulation --cached-draws 4",
    ],
    NormTTA: ["", "--norms cross --with-delta", "--norms qk"],
    FiLM: ["--groups 3", "--mode shift-scale", "--mode scale"],
}
CASES = [(method, flags) for method, cases in METHODS.items() for flags in cases]
each_method = pytest.mark.parametrize(
    ("method", "flags"), CASES, ids=lambda x: x.__name__ if isinstance(x, type) else x
)


@pytest.fixture(scope="module")
def model(toy_checkpoint):
    return backbones.load(toy_checkpoint)


@pytest.fixture(scope="module")
def clip(model):
    torch.manual_seed(0)
    text = model.embed(["a red ball", ""])
    return SimpleNamespace(
        context=torch.randn(1, 16, 2, 4, 6), target=torch.randn(1, 16, 2, 4, 6),
        held_out=torch.randn(1, 16, 1, 4, 6), cond_latents=torch.randn(1, 16, 2, 4, 6),
        text=text[:1], negative_text=text[1:], seed=1, video=SimpleNamespace(id="toy"),
    )  # fmt: skip


def new(method, flags, model, clip):
    """The method at its start, and three steps' arguments."""
    args = arguments(method, f"--steps 3 {flags}")
    return method(model, clip, args), args


def loss_of(model, clip):
    return flow_matching_loss(model, clip, torch.tensor([0.5]), torch.ones_like(clip.target))


@torch.no_grad()
def sample(model, clip, **options):
    noise = torch.linspace(-2, 2, clip.cond_latents.numel()).view_as(clip.cond_latents)
    return model.generate(
        clip.cond_latents, clip.text, clip.negative_text, noise, steps=2, **options
    )


@torch.no_grad()
def perturb(method):
    for p in method.named_parameters().values():
        p.add_(0.1 * torch.randn(p.shape))


def copies(method):
    return {name: p.detach().clone() for name, p in method.named_parameters().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def registered_functions(model):
    return [*model._velocity_site, *(f for site in model.dit.sites.values() for f in site)]


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
    assert torch.allclose(cached, whole, atol=1e-4, rtol=1e-4)


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
    adapted, args = new(method, flags, model, clip)
    start = copies(adapted)
    bad = SimpleNamespace(**vars(clip) | {"target": clip.target * float("inf")})
    with adapted.attached():
        record = adapt(model, adapted, bad, args)
    assert record["diverged"] and record["kept"] == "baseline" and record["losses"] == [None]
    assert same(copies(adapted), start)


@each_method
def test_what_is_saved_loads_again(model, clip, method, flags, tmp_path):
    adapted, _ = new(method, flags, model, clip)
    perturb(adapted)
    with adapted.attached():
        own = sample(model, clip)
    again, _ = new(method, flags, model, clip)
    load_adapter(save_adapter(tmp_path / "video.1", adapted), again)
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


@pytest.mark.parametrize("flags", ["--site pre-norm", "--site last-modulation"])
def test_cached_loss_and_gradient_are_those_of_the_whole_network(model, clip, flags):
    method, args = new(DeltaC, f"--cached-draws 3 {flags}", model, clip)
    with method.attached():
        (_, cached), *_ = method.losses(model, clip, args)
        perturb(method)
        cached_loss = cached()
        (cached_gradient,) = torch.autograd.grad(cached_loss, [method.delta])
        losses = [flow_matching_loss(model, clip, s, n) for s, n in method.draws(clip)]
        loss = torch.stack(losses).mean()
        (gradient,) = torch.autograd.grad(loss, [method.delta])
    assert abs(loss - cached_loss) < 1e-6 * loss
    assert (gradient - cached_gradient).abs().max() < 1e-6 * max(1, gradient.abs().max())


def test_delta_c_builds_no_graph_through_the_network(model, clip):
    for flags in ("", *(f"--site {s} --cached-draws 1" for s in ("pre-norm", "last-modulation"))):
        method, args = new(DeltaC, flags, model, clip)
        with method.attached():
            if flags:
                _, compute_loss = next(iter(method.losses(model, clip, args)))
                loss = compute_loss()
            else:
                loss = loss_of(model, clip)
        seen, todo = set(), [loss.grad_fn]
        while todo:
            node = todo.pop()
            if node is not None and node not in seen:
                seen.add(node)
                todo += [n for n, _ in node.next_functions]
        assert not any("Attention" in type(node).__name__ for node in seen)
        assert len(seen) < 60  # one block alone has more


def test_the_closed_form_is_the_best_constant(model, clip):
    """On its draws the gradient is zero there, and a step away is worse."""
    method, args = new(DeltaC, "--solver closed-form --cached-draws 4", model, clip)
    with method.attached():
        adapt(model, method, clip, args)
        draws = list(method.draws(clip))

        def loss():
            return torch.stack([flow_matching_loss(model, clip, s, n) for s, n in draws]).mean()

        best = loss()
        (gradient,) = torch.autograd.grad(best, [method.delta])
        assert gradient.abs().max() < 1e-5
        perturb(method)
        assert loss() > best


@pytest.mark.parametrize(
    ("method", "flags", "message"),
    [
        (AdaSteer, "--groups 5", r"--groups must be in 1..4, got 5"),
        (AdaSteer, "--groups 3 --blocks last:2", r"--groups must be in 1..2, got 3"),
        (AdaSteer, "--dims 17", r"--dims must be in 1..16, got 17"),
        (AdaSteer, "--blocks last:5", r"--blocks last:K needs K in 1..4, got last:5"),
        (AdaSteer, "--blocks 0,4", r"--blocks must be in 0..3, got 0,4"),
        (LoRA, "--targets attn.qvk", r"--targets: attn.qvk is not one of attn.qkv attn.proj"),
        (LoRA, "--targets adaLN_modulation.1", "is not one of"),
        (FiLM, "--groups 9", r"--groups must be in 1..4, got 9"),
    ],
)
def test_impossible_flags(model, clip, method, flags, message):
    with pytest.raises(common.UsageError, match=message):
        new(method, flags, model, clip)


@pytest.mark.parametrize(
    ("method", "flags", "message"),
    [
        (AdaSteer, "--target hidden --final-layer", "need --target timestep"),
        (DeltaC, "--solver closed-form --site pre-norm", "closed-form needs --site output"),
        (DeltaC, "--cached-draws 4", "--cached-draws: the output with adamw draws at every step"),
        (DeltaC, "--site pre-norm --draws 2", "are for draws at every step"),
        (FullTTA, "--ewc 1 --context-latents 1", "--context-latents of at least 2"),
    ],
)
def test_flags_that_contradict_each_other(method, flags, message, capsys):
    with pytest.raises(SystemExit):
        arguments(method, flags)
    assert message in capsys.readouterr().err


def test_rates_of_full_tuning():
    assert arguments(FullTTA).lr == 1e-4 and arguments(FullTTA, "--optimizer sgd").lr == 1e-5
    assert arguments(FullTTA, "--optimizer sgd --lr 0.5").lr == 0.5


def test_penalties_act(model, clip):
    """At the start they are zero; away from it they have the value of their formula, and pull."""
    for cls, flags in ((AdaSteer, "--l2 0.5"), (FullTTA, "--l2-to-start 0.5")):
        method, args = new(cls, flags, model, clip)
        assert method.penalty().item() == 0
        start = copies(method)
        perturb(method)
        moved = method.named_parameters()
        square = sum((moved[name] - start[name]).square().sum() for name in start)
        assert method.penalty().item() == pytest.approx(0.5 * square.item(), rel=1e-5)
    zero = torch.zeros((), requires_grad=True)
    norms = []
    for flags in ("", "--l2-to-start 10"):  # nothing but the penalty has a gradient
        method, args = new(FullTTA, flags, model, clip)
        perturb(method)
        method.losses = lambda *_: (([0.5], lambda: 1 + 0 * zero) for _ in range(3))
        before = method.named_parameters()["final_layer.linear.bias"].detach().clone()
        with method.attached():
            adapt(model, method, clip, args)
        after = method.named_parameters()["final_layer.linear.bias"].detach()
        original = model.dit.final_layer.linear.bias
        norms.append((after - original).norm() / (before - original).norm())
    assert norms[0] == 1 and norms[1] < 1


def test_the_fisher_information_weighs_what_the_context_needs(model, clip):
    method, args = new(FullTTA, "--ewc 2", model, clip)
    with method.attached():
        method.optimizer(args)
        fisher = method.fisher
        assert all(f.isfinite().all() and (f >= 0).all() for f in fisher.values())
        count = sum(f.numel() for f in fisher.values())
        assert sum(f.sum() for f in fisher.values()) / count == pytest.approx(1, rel=1e-3)
        perturb(method)
        originals, weights = method.copies.originals, method.named_parameters()
        expected = 2 * sum(
            (f * (weights[n] - originals[n]).square()).sum() for n, f in fisher.items()
        )
        assert method.penalty().item() == pytest.approx(expected.item(), rel=1e-4)
    assert all(p.grad is None for p in weights.values())


def test_groups_are_floor_i_g_over_depth(model, clip):
    """G = 3 of 4 blocks: 0, 0, 1, 2; the final layer only with --final-layer, with the last
    group."""
    for flags, last in (("", 0), ("--final-layer", 3)):
        method, _ = new(AdaSteer, f"--groups 3 {flags}", model, clip)
        for g, vector in enumerate(method.delta):
            vector.data.fill_(g + 1)
        seen = [method.steer(i, torch.zeros(1, 1, 16), None)[0, 0, 0].item() for i in range(5)]
        assert seen == [1, 1, 2, 3, last]


def test_the_slope_is_zero_on_context(model, clip):
    method, _ = new(AdaSteer, "--time-slope", model, clip)
    method.delta[0].data[16:] = 2.0
    sigma = torch.tensor([[0.0, 0.5, 1.0]])
    assert method.steer(0, torch.zeros(1, 3, 16), sigma)[0, :, 0].tolist() == [0, 1, 2]


def test_groups_from_the_size_of_the_clip(model, clip):
    """768 target values: floor(768 / (R * 16)) groups, at least one, at most the depth."""
    for ratio, groups in ((100, 1), (20, 2), (16, 3), (1, 4)):
        flags = f"--groups auto --values-per-parameter {ratio}"
        method, args = new(AdaSteer, flags, model, clip)
        assert len(method.delta) == groups
        with method.attached():
            record = adapt(model, method, clip, args)
        assert record["capacity"] == {
            "target_values": 768, "values_per_parameter": ratio, "blocks": 4,
            "group_parameters": 16, "groups": groups,
        }  # fmt: skip


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
        (DeltaC, "--site pre-norm", 4_096),
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
