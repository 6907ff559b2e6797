"""What one method alone promises."""

from types import SimpleNamespace

import pytest
import torch
from oracles import arguments
from toy import copies, loss_of, new, perturb

import common
from adasteer import AdaSteer
from common.adaptation import adapt
from common.loss import beats_zero, flow_matching_loss, preflight
from delta_c import DeltaC
from film_tta import FiLM
from full_tta import FullTTA
from last_layer_tta import LastLayer
from lora_tta import LoRA


@pytest.mark.parametrize("from_zero", [True, False])  # or from an --adapter
@pytest.mark.parametrize("flags", ["--site pre-norm", "--site last-modulation"])
def test_cached_loss_and_gradient_are_those_of_the_whole_network(model, clip, flags, from_zero):
    method, _ = new(LastLayer, f"--cached-draws 3 {flags}", model, clip)
    draw = method.draws()[0]
    with method.attached():
        if from_zero:
            method.loss(draw)
        perturb(method)
        cached_loss = method.loss(draw)
        (cached_gradient,) = torch.autograd.grad(cached_loss, [method.delta])
        losses = [flow_matching_loss(model, *each) for each in draw.each()]
        loss = torch.stack(losses).mean()
        (gradient,) = torch.autograd.grad(loss, [method.delta])
    assert abs(loss - cached_loss) < 1e-6 * loss
    assert (gradient - cached_gradient).abs().max() < 1e-6 * max(1, gradient.abs().max())


def test_no_graph_goes_through_the_network(model, clip):
    cached = [f"--cached-draws 1 --site {site}" for site in ("pre-norm", "last-modulation")]
    for cls, flags in ((DeltaC, ""), *((LastLayer, flags) for flags in cached)):
        method, _ = new(cls, flags, model, clip)
        with method.attached():
            loss = method.loss(next(iter(method.draws())))
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
        (draw,) = method.draws()
        best = method.loss(draw)
        (gradient,) = torch.autograd.grad(best, [method.delta])
        assert gradient.abs().max() < 1e-5
        perturb(method)
        assert method.loss(draw) > best


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
        (DeltaC, "--cached-draws 4", "--cached-draws: adamw draws at every step"),
        (DeltaC, "--solver closed-form --draws 2", "are for draws at every step"),
        (LastLayer, "--context varying", "are for draws at every step"),
        (DeltaC, "--solver closed-form --lr 0.1", "--lr: AdamW's; closed-form has no rate"),
        (FullTTA, "--ewc 1 --context-latents 1", "--context-latents of at least 2"),
        (FullTTA, "--weights fp8", "--weights fp8: not where the weights themselves are learned"),
        (FullTTA, "--compile", "--compile: .*; give --weights fp32, or --optimizer sgd"),
    ],
)
def test_flags_that_contradict_each_other(method, flags, message):
    with pytest.raises(common.UsageError, match=message):
        arguments(method, flags)


def test_layers_that_no_chosen_block_has_are_refused(model, clip, monkeypatch):
    monkeypatch.setattr(type(model), "linears", {"attention": ["attn.of_another_stack"]})
    with pytest.raises(common.UsageError, match="--targets .*: in none of --blocks last:1"):
        new(LoRA, "--blocks last:1", model, clip)


def test_memory_that_runs_out_while_caching_leaves_what_was_learned(model, clip, monkeypatch):
    method, _ = new(LastLayer, "--cached-draws 3", model, clip)
    draw = method.draws()[0]
    perturb(method)
    learned = method.delta.detach().clone()

    def no_room(*_):
        raise torch.OutOfMemoryError

    with method.attached():
        with monkeypatch.context() as patched, pytest.raises(torch.OutOfMemoryError):
            patched.setattr(method, "before_last_layer", no_room)
            method.loss(draw)
        assert torch.equal(method.delta, learned)
        again = method.loss(draw)
    other, _ = new(LastLayer, "--cached-draws 3", model, clip)
    other.delta.data.copy_(learned)
    with other.attached():
        assert torch.equal(again, other.loss(draw))


def penalty_of(method, clip):
    return method.loss(next(common.draws(method.model, clip, method.args)))[1]


def test_penalties_act(model, clip):
    """At the start they are zero; away from it they have the value of their formula, and pull."""
    for cls, flags in ((AdaSteer, "--l2 0.5"), (FullTTA, "--l2-to-start 0.5")):
        method, _ = new(cls, flags, model, clip)
        assert penalty_of(method, clip).item() == 0
        start = copies(method)
        perturb(method)
        moved = method.named_parameters()
        square = sum((moved[name] - start[name]).square().sum() for name in start)
        assert penalty_of(method, clip).item() == pytest.approx(0.5 * square.item(), rel=1e-5)
    norms = []
    for flags in ("", "--l2-to-start 10"):  # the loss itself pulls a thousandth as much
        method, args = new(FullTTA, flags, model, clip)
        perturb(method)
        before = method.named_parameters()["final_layer.linear.bias"].detach().clone()
        with method.attached():
            record = adapt(model, method, clip, args)
        assert len(record["penalties"]) == (3 if flags else 0)
        after = method.named_parameters()["final_layer.linear.bias"].detach()
        original = model.dit.final_layer.linear.bias
        norms.append((after - original).norm() / (before - original).norm())
    assert norms[1] < norms[0] and norms[1] < 1


def test_losses_are_recorded_without_the_penalty(model, clip):
    """So that methods stay comparable; the first one is that of a method without it."""
    records = []
    for flags in ("", "--l2 100"):
        method, args = new(AdaSteer, flags, model, clip)
        with method.attached():
            records.append(adapt(model, method, clip, args))
    plain, pulled = records
    assert plain["losses"][0] == pulled["losses"][0] and plain["penalties"] == []
    assert pulled["penalties"][0] == 0 < pulled["penalties"][1]
    assert pulled["distances"]["delta.0"] < plain["distances"]["delta.0"]


def test_the_fisher_information_weighs_what_the_context_needs(model, clip):
    method, _ = new(FullTTA, "--ewc 2", model, clip)
    with method.attached():
        method.optimizer()
        fisher = method.fisher
        assert all(f.isfinite().all() and (f >= 0).all() for f in fisher.values())
        count = sum(f.numel() for f in fisher.values())
        assert sum(f.sum() for f in fisher.values()) / count == pytest.approx(1, rel=1e-3)
        perturb(method)
        originals, weights = method.copies.originals, method.named_parameters()
        expected = 2 * sum(
            (f * (weights[n] - originals[n]).square()).sum() for n, f in fisher.items()
        )
        assert penalty_of(method, clip).item() == pytest.approx(expected.item(), rel=1e-4)
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
