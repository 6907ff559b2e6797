"""The transformer against numbers recorded from the official code (oracles/longcat)."""

import functools
import math
import re

import pytest
import torch
from oracles import (
    LONGCAT,
    assert_near,
    entries,
    needs_oracles,
    oracle_dit,
    oracle_model,
    table,
    tensors,
)

from backbones.longcat_dit import LongCatVideoTransformer3DModel
from backbones.longcat_layers import rotary_table, rotate, timestep_sinusoid

CASES = entries("dit_forward", "cases")
FORWARDS = [case for case in CASES if case["kind"] == "forward"]
CACHED = [case for case in CASES if case["kind"] == "kv_cache"]
ROPES = sorted({k.split(".")[0] for k in tensors("dit_primitives") if k.startswith("rope")}) if (
    LONGCAT.is_dir()
) else []  # fmt: skip
each_pad = pytest.mark.parametrize("zero_pad", [False, True])


def test_released_configuration_has_13581071424_parameters():
    with torch.device("meta"):
        dit = LongCatVideoTransformer3DModel()
    assert sum(p.numel() for p in dit.parameters()) == 13_581_071_424


@needs_oracles
def test_state_dict_keys_and_shapes_are_the_official_ones():
    dit = LongCatVideoTransformer3DModel(**table("dit_config"))
    ours = {name: tuple(value.shape) for name, value in dit.state_dict().items()}
    assert ours == {name: tuple(value.shape) for name, value in tensors("dit_weights").items()}


def inputs(keys):
    """The recorded tensors, by the names that the forward takes."""
    values = tensors("dit_forward")
    return {key.rpartition(".")[2]: values[key] for key in keys}


@needs_oracles
@each_pad
@pytest.mark.parametrize("case", FORWARDS, ids=lambda c: c["name"])
def test_forward(case, zero_pad):
    expected = tensors("dit_forward")[f"{case['name']}.output.zp{int(zero_pad)}"]
    context = case["num_cond_latents"]
    out = oracle_dit(zero_pad)(**inputs(case["inputs"]), num_cond_latents=context)
    assert_near(out, expected, 2e-5)
    if context:
        given = {"num_cond_latents": context, "noise_only": True}
        out = oracle_dit(zero_pad)(**inputs(case["inputs"]), **given)
        assert_near(out, expected[:, :, context:], 2e-5)


@needs_oracles
@each_pad
@pytest.mark.parametrize("case", CACHED, ids=lambda c: c["name"])
def test_key_value_cache(case, zero_pad):
    values, name, context = tensors("dit_forward"), case["name"], case["num_cond_latents"]
    dit = oracle_dit(zero_pad)
    first, second = (inputs(case[f"{part}_pass"]["inputs"]) for part in ("cond", "noise"))
    given = {"return_kv": True, "skip_crs_attn": True, "num_cond_latents": context}
    out, cache = dit(**first, encoder_hidden_states=None, **given)
    assert_near(out, values[f"{name}.cond.output"], 2e-5)
    assert len(cache) == table("dit_config")["depth"]
    for i, pair in cache.items():
        for part, kind in zip(pair, "kv", strict=True):
            assert_near(part, values[f"{name}.kv.{i}.{kind}"], 2e-5)
    expected = values[f"{name}.noise.output.zp{int(zero_pad)}"]
    out = dit(**second, num_cond_latents=context, kv_cache_dict=cache)
    assert_near(out, expected, 2e-5)

    batch = len(second["hidden_states"])
    whole = second | {
        "hidden_states": joined(first["hidden_states"], second["hidden_states"], batch, 2),
        "timestep": joined(first["timestep"], second["timestep"], batch, 1),
    }
    out = dit(**whole, num_cond_latents=context)[:, :, context:]
    assert_near(out, expected, 2e-5)


def joined(context, noise, batch, dim):
    return torch.cat([context.expand(batch, *context.shape[1:]), noise], dim=dim)


@needs_oracles
@pytest.mark.parametrize("name", ROPES)
def test_rotary_embedding(name):
    values = tensors("dit_primitives")
    head = values[f"{name}.q"].shape[-1]
    table_ = rotary_table(tuple(values[f"{name}.grid"].tolist()), head, torch.device("cpu"))
    angles = values[f"{name}.angles"][:, ::2]
    assert_near(table_[0], angles.cos(), 1e-5)
    assert_near(table_[1], angles.sin(), 1e-5)
    for part in "qk":
        assert_near(rotate(values[f"{name}.{part}"], table_), values[f"{name}.{part}_out"], 1e-5)


@pytest.mark.parametrize("width", [80, 96, 256])
def test_the_sinusoid_is_the_official_one_bit_for_bit(width):
    """GLIDE's timestep_embedding: the product is divided, which rounds otherwise than a product
    with the quotient where half the width is no power of two."""
    half, times = width // 2, torch.linspace(0, 1000, 501)
    frequencies = torch.exp(-math.log(10000) * torch.arange(0, half, dtype=torch.float32) / half)
    angles = times[:, None] * frequencies[None]
    expected = torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)
    assert torch.equal(timestep_sinusoid(times, width), expected)


@needs_oracles
def test_time_embedding():
    values, width = tensors("dit_primitives"), table("dit_config")["frequency_embedding_size"]
    times = values["timestep.values"]
    assert_near(timestep_sinusoid(times, width), values["timestep.sinusoid"], 1e-5)
    model, seen, config = oracle_model(), [], table("dit_config")
    frames = torch.zeros(1, config["in_channels"], len(times), 2, 2)
    text = torch.zeros(1, 1, 1, config["caption_channels"])
    with model.timestep_embedding(lambda i, e, sigma: seen.append(e) or e):
        model.dit(frames, times[None], text)
    assert_near(seen[0][0], values["timestep.embedding"], 1e-5)


def hooked(dit, names, seen):
    """Keeps the outputs of the modules, laid out as they are recorded."""

    def keep(name, _module, _inputs, output):
        output = output[0] if isinstance(output, tuple) else output
        if name == "x_embedder":
            output = output.flatten(2).transpose(1, 2)
        seen[name] = output.flatten(1, 2) if name == "final_layer" else output

    modules = {"x_embedder": "x_embedder.proj", "y_embedder": "y_embedder.y_proj"}
    return [
        dit.get_submodule(modules.get(name, name)).register_forward_hook(
            functools.partial(keep, name)
        )
        for name in names
    ]


@needs_oracles
def test_values_inside_a_forward():
    """Every module that has a recorded value gives it: an error is located, not only seen."""
    values = {
        key.removeprefix("case_b."): value
        for key, value in tensors("dit_primitives").items()
        if key.startswith("case_b.")
    }
    (case,) = [case for case in FORWARDS if case["name"].startswith("b_")]
    model, seen = oracle_model(table("dit_config")["text_tokens_zero_pad"]), {}
    # the layers that are read as weights have no forward of their own: their sites see the values
    read = [name for name in values if re.search(r"adaLN_modulation$|^t_embedder$", name)]
    hooks = hooked(model.dit, values.keys() - set(read), seen)

    def embedding(i, e, sigma):
        seen.setdefault("t_embedder", e[0])
        return e

    def modulation(i, m):
        seen[f"blocks.{i}.adaLN_modulation"] = torch.cat([*m.values()], dim=-1)
        return m

    with model.timestep_embedding(embedding), model.modulation(modulation):
        model.dit(**inputs(case["inputs"]), num_cond_latents=case["num_cond_latents"])
    for hook in hooks:
        hook.remove()
    tokens = values["x_embedder"].shape[1]
    context = tokens * case["num_cond_latents"] // seen["t_embedder"].shape[0]
    for name, expected in values.items():
        skipped = re.search(r"\.(pre_crs_attn_norm|cross_attn)$", name)
        # the context frames, for which the official values are unused or exactly zero
        large = max(1, expected.abs().max().item() / 8)  # the limit is for values up to about 8
        assert_near(seen[name], expected[:, context:] if skipped else expected, 2e-5 * large)
        assert not name.endswith(".cross_attn") or not expected[:, :context].any()
