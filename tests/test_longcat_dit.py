"""The transformer against numbers recorded from the official code (oracles/longcat)."""

import functools

import pytest
import torch
from oracles import assert_near, needs_oracles, oracle_dit, table, tensors

from backbones.longcat_dit import LongCatVideoTransformer3DModel
from backbones.longcat_layers import rotary_table, rotate, timestep_sinusoid


def test_released_configuration_has_13581071424_parameters():
    with torch.device("meta"):
        dit = LongCatVideoTransformer3DModel()
    assert sum(p.numel() for p in dit.parameters()) == 13_581_071_424


@needs_oracles
def test_state_dict_keys_and_shapes_are_the_official_ones():
    dit = LongCatVideoTransformer3DModel(**table("dit_config"))
    ours = {name: tuple(value.shape) for name, value in dit.state_dict().items()}
    assert ours == {name: tuple(value.shape) for name, value in tensors("dit_weights").items()}


@needs_oracles
@pytest.mark.parametrize("zero_pad", [False, True])
@pytest.mark.parametrize(
    "case",
    [
        "a_uncond_scalar_t",
        "a2_no_mask",
        "b_cond_frame_t",
        "b2_single_cond",
        "c_batch2_masks",
        "c2_batch2_cond",
    ],
)
def test_forward(case, zero_pad):
    values = tensors("dit_forward")
    (entry,) = [c for c in table("dit_forward")["cases"] if c["name"] == case]
    inputs = {key.rsplit(".")[-1]: values[key] for key in entry["inputs"]}
    out = oracle_dit(zero_pad)(**inputs, num_cond_latents=entry["num_cond_latents"])
    assert_near(out, values[f"{case}.output.zp{int(zero_pad)}"], 2e-5)


@needs_oracles
@pytest.mark.parametrize("zero_pad", [False, True])
@pytest.mark.parametrize("case", ["d_kv_cache", "d2_kv_cache_batch2"])
def test_key_value_cache(case, zero_pad):
    values = tensors("dit_forward")
    dit = oracle_dit(zero_pad)
    out, cache = dit(
        values[f"{case}.cond.hidden_states"],
        values[f"{case}.cond.timestep"],
        None,
        return_kv=True,
        skip_crs_attn=True,
        num_cond_latents=2,
    )
    assert_near(out, values[f"{case}.cond.output"], 2e-5)
    for i in range(4):
        for part, name in zip(cache[i], "kv", strict=True):
            assert_near(part, values[f"{case}.kv.{i}.{name}"], 2e-5)
    noise = {
        name: values[f"{case}.noise.{name}"]
        for name in (
            "hidden_states",
            "timestep",
            "encoder_hidden_states",
            "encoder_attention_mask",
        )
    }
    out = dit(**noise, num_cond_latents=2, kv_cache_dict=cache)
    assert_near(out, values[f"{case}.noise.output.zp{int(zero_pad)}"], 2e-5)


@needs_oracles
@pytest.mark.parametrize("name", ["rope0", "rope1"])
def test_rotary_embedding(name):
    values = tensors("dit_primitives")
    table_ = rotary_table(tuple(values[f"{name}.grid"].tolist()), 32, torch.device("cpu"))
    angles = values[f"{name}.angles"][:, ::2]
    assert_near(table_[0], angles.cos(), 1e-5)
    assert_near(table_[1], angles.sin(), 1e-5)
    for part in "qk":
        assert_near(rotate(values[f"{name}.{part}"], table_), values[f"{name}.{part}_out"], 1e-5)


@needs_oracles
def test_time_embedding():
    values = tensors("dit_primitives")
    times = values["timestep.values"]
    assert_near(timestep_sinusoid(times, 32), values["timestep.sinusoid"], 1e-4)
    embedding = oracle_dit(False)._embed_timestep(times[None])[0]
    assert_near(embedding, values["timestep.embedding"], 1e-4)


@needs_oracles
def test_values_inside_a_forward():
    """Every module that has a recorded value gives it: an error is located, not only seen."""
    values, forward = tensors("dit_primitives"), tensors("dit_forward")
    dit, seen = oracle_dit(False), {}

    def keep(name, _module, _inputs, output):
        output = output[0] if isinstance(output, tuple) else output
        seen[name] = output.flatten(1, 2) if name == "final_layer" else output

    names = ["attn", "attn.q_norm", "attn.k_norm", "pre_crs_attn_norm", "cross_attn", "ffn"]
    names = [f"blocks.0.{name}" for name in names] + [f"blocks.{i}" for i in range(4)]
    names.append("final_layer")
    hooks = [
        dit.get_submodule(name).register_forward_hook(functools.partial(keep, name))
        for name in names
    ]
    keys = ["hidden_states", "timestep", "encoder_hidden_states", "encoder_attention_mask"]
    dit(*(forward[f"b_cond_frame_t.{key}"] for key in keys), num_cond_latents=2)
    for hook in hooks:
        hook.remove()
    for name in names:
        expected = values[f"case_b.{name}"]
        # ours skips the context frames, for which the official values are unused or zero
        assert_near(seen[name], expected[..., -seen[name].shape[-2] :, :], 2e-5)
