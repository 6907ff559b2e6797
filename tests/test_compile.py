"""Compiled blocks: sites act in them, and a video is no reason to compile again."""

import pytest
import torch
from oracles import arguments, assert_near
from toy import loss_of, new, perturb, sample

import backbones
from adasteer import AdaSteer
from common.adaptation import adapt
from common.loading import load_model
from delta_c import DeltaC
from devices.compiling import compile_blocks
from devices.placement import Placement
from film_tta import FiLM
from lora_tta import LoRA
from norm_tta import NormTTA

CASES = [
    (AdaSteer, "--groups 3"), (AdaSteer, "--target hidden"), (DeltaC, ""), (FiLM, ""),
    (NormTTA, ""), (LoRA, ""),
]  # fmt: skip


@pytest.fixture
def compiled(toy_checkpoint):
    """Traced as for a compiler, then run as it is: what a compiler makes of a trace is tested where
    it is slow."""
    torch._dynamo.reset()
    model = backbones.load(toy_checkpoint)
    traces = []

    def backend(graph, inputs):
        traces.append(len(inputs))
        return graph.forward

    compile_blocks(model, backend)
    torch._dynamo.config.suppress_errors = False  # here an error is an error
    yield model, traces
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize(("method", "flags"), CASES)
def test_nothing_is_compiled_again_for_the_next_video(compiled, clip, method, flags):
    model, traces = compiled
    counts = []
    for _ in range(3):
        adapted, args = new(method, flags, model, clip)
        with adapted.attached():
            adapt(model, adapted, clip, args)
            sample(model, clip)
        counts.append(len(traces))
    assert 0 < counts[0] == counts[1] == counts[2]


@pytest.mark.parametrize(("method", "flags"), CASES)
def test_sites_act_in_compiled_blocks(compiled, toy_checkpoint, clip, method, flags):
    """After a plain call, whose trace must not be taken for the one with the method."""
    plain = backbones.load(toy_checkpoint)
    outcomes = []
    for model in (compiled[0], plain):
        before = loss_of(model, clip).item()
        adapted, _ = new(method, flags, model, clip)
        torch.manual_seed(0)
        perturb(adapted)
        with adapted.attached():
            loss = loss_of(model, clip)
            loss.backward()
            drawn = sample(model, clip)
        gradients = [p.grad for p in adapted.named_parameters().values()]
        assert loss.item() != before
        outcomes.append([loss.detach(), drawn, *gradients])
    for ours, theirs in zip(*outcomes, strict=True):
        assert_near(ours, theirs, 1e-5 * max(1, theirs.abs().max().item()))


def test_blocks_share_what_is_compiled(compiled, clip):
    model, traces = compiled
    with torch.no_grad():
        loss_of(model, clip)
    assert len(traces) == 2  # and the last block, which leaves the context out


def test_what_is_not_compiled_is_not_recorded_as_compiled(toy_checkpoint, clip):
    def broken(graph, inputs):
        raise RuntimeError("no such instruction")

    model = backbones.load(toy_checkpoint)
    model.frame_size, model.compiled = (32, 48), True
    placement = Placement(model, arguments(AdaSteer, ""))
    for backend, recorded in (("eager", True), (broken, False)):
        torch._dynamo.reset()
        compile_blocks(model, backend)
        assert placement.describe()["compiled"] is False  # nothing has run yet
        with torch.no_grad():
            loss_of(model, clip)
        assert placement.describe()["compiled"] is recorded
    torch._dynamo.reset()


def test_without_a_compiler_it_goes_on(toy_checkpoint, monkeypatch, capsys):
    def broken(function):
        raise RuntimeError("no C++ compiler\nand more")

    monkeypatch.setattr(torch, "compile", broken)
    args = arguments(AdaSteer, f"--compile --device cpu --checkpoint {toy_checkpoint}")
    model = load_model(args)
    assert model.compiled is False and model.dit.blocks[0]._compiled_call_impl is None
    said = capsys.readouterr().err
    assert "--compile: not possible here" in said and "(no C++ compiler)" in said


@pytest.mark.slow
def test_the_real_compiler_gives_the_same_numbers(toy_checkpoint, clip):
    torch._dynamo.reset()
    outcomes = []
    for compiles in (False, True):
        model = backbones.load(toy_checkpoint)
        if compiles:
            compile_blocks(model)
        adapted, args = new(AdaSteer, "--groups 3", model, clip)
        with adapted.attached():
            record = adapt(model, adapted, clip, args)
            outcomes.append((record["losses"], sample(model, clip)))
    torch._dynamo.reset()
    assert outcomes[0][0] == pytest.approx(outcomes[1][0], rel=1e-5)
    assert_near(outcomes[1][1], outcomes[0][1], 1e-4)
