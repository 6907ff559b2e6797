"""The Open-Sora v1.3 backbone and the methods on it, through their public classes, against the
numbers recorded from the official code."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from opensora13_oracles import (
    LOSS_LIMIT,
    OUTPUT_LIMIT,
    SAMPLE_LIMIT,
    entries,
    given,
    needs_opensora13,
    network,
    table,
    tensors,
)
from oracles import arguments, assert_near

from adasteer import AdaSteer
from backbones import opensora13
from backbones.opensora13 import OpenSora13
from backbones.opensora13_configs import geometry
from backbones.opensora13_dit import STDiT3
from common import adaptation
from common.adaptation import adapt
from common.loss import Draw
from delta_c import DeltaC
from film_tta import FiLM
from full_tta import FullTTA
from last_layer_tta import LastLayer
from lora_tta import LoRA
from norm_tta import NormTTA

pytestmark = needs_opensora13
FINETUNED, RUNS = entries("finetune"), entries("sampling")


def recorded_model(case, file="forward"):
    """Of the recorded frame rate and length; five latents were 21 frames, in no chunks."""
    start = f"{case}.in" if file == "forward" else f"{case}.args" if case else "args"
    args = given(file, f"{start}.", ("fps", "num_frames", "height", "width"))
    assert all(len(set(value.tolist())) == 1 for value in args.values())
    fps, frames, *size = (value[0].item() for value in args.values())
    own = geometry({}, table("config"))
    assert size == [48, 64] and frames > 1
    return OpenSora13(
        network(), None, None, "cpu", replace(own, fps=fps, k=int(frames) - 1)
    )  # fmt: skip


# What the methods change


def forward(model, case, monkeypatch):
    """The velocity of the recorded inputs; what is shown comes first, its places as recorded."""
    values = given("forward", f"{case}.in.")
    known = len(entries("forward")[case].get("mask_index", []))
    sigma, x = values["timestep"] / 1000, values["x"]
    cond = values["cond"][:, :, :known] if known else x[:, :, :0]
    weight = sigma.view(-1, 1, 1, 1, 1)
    noise = (x[:, :, :known] - (1 - weight) * cond) / weight
    drawn = itertools.cycle(noise.split(1))
    monkeypatch.setattr(opensora13, "noise_beside", lambda latents, count: next(drawn))
    text = {"embeds": values["y"], "mask": values["mask"]}
    with torch.no_grad():
        return model.velocity(x[:, :, known:], sigma, cond, text)


def expected(values, known):
    channels = values.shape[1] // 2
    return -values[:, :channels, known:]


def changes(values):
    """{recorded output: (method, flags, its parameters)}."""
    groups = values["delta.groups"]
    own = torch.cat([groups, values["delta.final"][None]])
    return {
        "delta_t": (AdaSteer, "--groups 1 --final-layer", values["delta.t"][None]),
        "delta_groups": (AdaSteer, f"--groups {len(groups)} --final-layer own", own),
        "hidden_before_final_layer": (LastLayer, "--site pre-norm", values["delta.hidden"][None]),
    }


def method_with(cls, flags, model, rows):
    method = cls(model, SimpleNamespace(), arguments(cls, flags))
    parameters = list(method.named_parameters().values())
    assert len(parameters) == len(rows)
    with torch.no_grad():
        for p, value in zip(parameters, rows, strict=True):
            p.copy_(value)
    return method


@pytest.mark.parametrize("case", ["t2v", "v2v_head"])
def test_recorded_outputs(case, monkeypatch):
    """By prompt alone, and after given frames; of samples of two lengths of text."""
    model, values = recorded_model(case), given("forward", f"{case}.")
    known = len(entries("forward")[case].get("mask_index", []))
    plain = forward(model, case, monkeypatch)
    assert_near(plain, expected(values["out"], known), OUTPUT_LIMIT)
    made = changes(values)
    names = [name for name in made if f"out.{name}" in values]
    assert "delta_t" in names
    for name in names:
        cls, flags, rows = made[name]
        with method_with(cls, flags, model, rows).attached():
            found = forward(model, case, monkeypatch)
        wanted = expected(values[f"out.{name}"], known)
        assert (wanted - plain).abs().max() > 10 * OUTPUT_LIMIT
        assert_near(found, wanted, OUTPUT_LIMIT)


# Fine-tuning


def test_full_tuning_is_the_recorded_fine_tuning(monkeypatch):
    """By prompt alone: with given frames the recorded losses are over those too."""
    name, values = "t2v", tensors("finetune")
    told, model = FINETUNED[name], recorded_model("", "finetune")
    x0, text = values["x0"], {"embeds": values["y"], "mask": values["mask"]}
    clip = SimpleNamespace(
        context=x0[:, :, :0], target=x0, text=text, seed=1, video=SimpleNamespace(id="oracle")
    )
    flags = f"--steps {told['steps']} --lr {told['lr']} --weight-decay {told['weight_decay']}"
    args = arguments(FullTTA, f"{flags} --warm-up 0")
    monkeypatch.setattr(adaptation, "MAX_GRAD_NORM", told["max_grad_norm"])
    method = FullTTA(model, clip, args)
    pairs = zip(values["t"] / 1000, values["noise"], strict=True)
    draws = [Draw(clip, sigma, noise) for sigma, noise in pairs]
    method.draws = lambda: draws
    with method.attached():
        losses = adapt(model, method, clip, args)["losses"]
        with torch.no_grad():
            losses.append(method.loss(draws[0]).item())
    recorded = [*values[f"{name}.losses"].tolist(), values[f"{name}.loss_first_draw_after"].item()]
    assert losses == pytest.approx(recorded, rel=LOSS_LIMIT)


def test_parameters():
    """Of the release, 1152 wide with 28 pairs, as the README states them."""
    with torch.device("meta"):
        dit = STDiT3()
    model = OpenSora13(dit, None, None, "meta", geometry({}, dit.config))
    clip = SimpleNamespace(seed=1, video=SimpleNamespace(id="none"))
    assert model.depth == 28 and model.embedding_width == model.hidden_width == 1152
    for cls, flags, count in (
        (AdaSteer, "--groups 4 --final-layer own", 5 * 1152),
        (FiLM, "", 12 * 1152),
        (NormTTA, "", 8_064),
        (LoRA, "", 838_656),
        (DeltaC, "", 16),
        (LastLayer, "", 1152),
        (FullTTA, "", 1_207_959_680),
    ):
        method = cls(model, clip, arguments(cls, flags))
        assert sum(p.numel() for p in method.named_parameters().values()) == count


# Samples


@pytest.mark.parametrize("run", ["t2v", "v2v_head"])
def test_sampling(run, monkeypatch):
    """The context's places begin with the recorded noise; ours draws its own there. The third
    recorded run has no transformed times, which `generate` always has."""
    model, values, told = recorded_model(run, "sampling"), given("sampling", f"{run}."), RUNS[run]
    known, z = len(told["mask_index"]), values["z"]
    monkeypatch.setattr(opensora13, "noise_beside", lambda x, count: z[:, :, :count])
    text = {"embeds": values["y"], "mask": values["mask"]}
    nothing = {"embeds": values["y"] + 7, "mask": torch.eye(values["y"].shape[2])[:1].long()}
    scheduler, more = told["scheduler"], told["sample"]
    both = scheduler.get("use_oscillation_guidance", False)
    found = model.generate(
        values["ref"][:, :, :known], text, nothing, z[:, :, known:],
        scheduler["num_sampling_steps"], scheduler["cfg_scale"],
        guidance_img=more.get("image_cfg_scale", 1.0),
        oscillation=more.get("use_oscillation_guidance_for_text", both),
        temporal_scaling=scheduler.get("scale_image_weight", False), sdedit=False,
    )  # fmt: skip
    assert_near(found, values["out"][:, :, known:], SAMPLE_LIMIT)


def test_a_negative_prompt_with_words_is_read_where_the_null_text_was():
    """With its own mask, but not on given frames."""
    run = "v2v_head"
    model, values = recorded_model(run, "sampling"), given("sampling", f"{run}.")
    text = {"embeds": values["y"], "mask": values["mask"]}
    noise, reference = values["z"][:, :, 2:], values["ref"][:, :, :2]
    negative = {"embeds": values["y"].flip(2), "mask": torch.ones_like(values["mask"])}
    seen = []
    hook = model.dit.register_forward_pre_hook(
        lambda module, args, more: seen.append(more), with_kwargs=True
    )
    model.generate(reference, text, negative, noise, steps=1)
    hook.remove()
    (call,) = seen
    assert torch.equal(call["y"], torch.cat([values["y"], *2 * [negative["embeds"]]]))
    assert torch.equal(call["mask"], torch.cat([values["mask"], *2 * [negative["mask"]]]))
    null = model.dit.y_embedder.y_embedding
    assert torch.equal(call["y_null"], null.expand_as(call["y"]))
