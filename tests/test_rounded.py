"""Weights in bfloat16 and compiled blocks change what a method finds by rounding alone; LongCat's
are in test_methods.py and test_compile.py."""

import functools
import itertools

import pytest
import torch
from oracles import assert_near
from toy import new, sample, toy_clip

import backbones
from adasteer import AdaSteer
from common.adaptation import adapt
from devices.compiling import compile_blocks
from film_tta import FiLM
from full_tta import FullTTA
from lora_tta import LoRA
from norm_tta import NormTTA

COMPILED = [(AdaSteer, "--groups 3 --final-layer"), (FiLM, ""), (LoRA, "")]
MIXED = [*COMPILED, (FullTTA, ""), (NormTTA, "--norms qk")]
CROSS = (NormTTA, "--norms cross")  # float32 weights between bfloat16, which one model has
MODELS = {
    "SkyReelsV2Transformer3DModel": ([*MIXED, CROSS], 2e-3),
    "MMDiT": (MIXED, 5e-3),
    "STDiT3": (MIXED, 5e-3),
    "WanTransformer3DModel": ([*MIXED, CROSS], 2e-3),
    "LTXVideoTransformer3DModel": (MIXED, 5e-3),
    "CogVideoXTransformer3DModel": (MIXED, 2e-3),
}


@functools.cache
def clip_of(checkpoint):
    return toy_clip(backbones.load(checkpoint))


@pytest.mark.parametrize(
    ("name", "method", "flags"),
    [(name, *case) for name, (cases, _) in MODELS.items() for case in cases],
)
def test_bfloat16_stays_close(checkpoint_of, name, method, flags):
    """As on a GPU, with the layers that diffusers keeps in float32."""
    checkpoint, tolerance = checkpoint_of(name), MODELS[name][1]
    clip, outcomes = clip_of(checkpoint), []
    for dtype in (torch.bfloat16, torch.float32):
        model = backbones.load(checkpoint, dtype=dtype)
        adapted, args = new(method, flags, model, clip)
        with adapted.attached():
            losses = adapt(model, adapted, clip, args)["losses"]
            outcomes.append((losses, sample(model, clip)))
    (losses, latents), (exact, exact_latents) = outcomes
    assert losses == pytest.approx(exact, rel=tolerance) and losses != exact
    assert (latents - exact_latents).square().mean() < 1e-3 * exact_latents.square().mean()


def compiled_cases():
    """Each model is traced with one method in the fast tests, and two models with all of them: one
    with two kinds of blocks, one that projects the embedding once."""
    for name, (method, flags) in itertools.product(MODELS, COMPILED):
        long = method is not AdaSteer and name not in ("MMDiT", "WanTransformer3DModel")
        yield pytest.param(name, method, flags, marks=[pytest.mark.slow] * long)


@pytest.mark.parametrize(("name", "method", "flags"), [*compiled_cases()])
def test_methods_act_in_compiled_blocks(checkpoint_of, name, method, flags):
    """Traced as for a compiler, in as many graphs as there are kinds of calls, then run."""
    torch._dynamo.reset()
    checkpoint = checkpoint_of(name)
    compiled, model = backbones.load(checkpoint), backbones.load(checkpoint)
    clip, traces = clip_of(checkpoint), []

    def backend(graph, inputs):
        traces.append(graph)
        return graph.forward

    compile_blocks(compiled, backend)
    torch._dynamo.config.suppress_errors = False  # here an error is an error
    outcomes = []
    for each in (compiled, model):
        counts = []
        for _ in range(2):
            adapted, args = new(method, flags, each, clip)
            with adapted.attached():
                losses = adapt(each, adapted, clip, args)["losses"]
                outcomes.append(torch.cat([torch.tensor(losses), sample(each, clip).flatten()]))
            counts.append(len(traces))
        assert counts[0] == counts[1] > 0  # nothing again for the next video
    assert_near(outcomes[0], outcomes[2], 1e-4)
    torch._dynamo.reset()
