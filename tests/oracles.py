"""Numbers recorded from the official code, and the tiny model they belong to."""

import functools
import json
import os
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from adasteer import AdaSteer
from backbones.longcat import LongCat
from backbones.longcat_dit import LongCatVideoTransformer3DModel
from backbones.text import Text
from common.cli import parse_args
from delta_c import DeltaC
from film_tta import FiLM
from full_tta import FullTTA
from lora_tta import PREFIX, LoRA
from norm_tta import NormTTA

SHARED = Path(os.environ.get("ADASTEER_SHARED", Path(__file__).resolve().parents[2] / "shared"))
LONGCAT = SHARED / "oracles" / "longcat"

needs_oracles = pytest.mark.skipif(
    not LONGCAT.is_dir(), reason=f"recorded numbers not found at {LONGCAT}"
)


@functools.cache
def tensors(name):
    return load_file(LONGCAT / f"{name}.safetensors")


def table(name):
    return json.loads((LONGCAT / f"{name}.json").read_text())


def entries(name, key):
    """For parametrize, which is evaluated also where the files are absent."""
    return table(name)[key] if LONGCAT.is_dir() else []


@functools.cache
def oracle_dit(zero_pad=False):
    config = table("dit_config") | {"text_tokens_zero_pad": zero_pad}
    dit = LongCatVideoTransformer3DModel(**config)
    dit.load_state_dict(tensors("dit_weights"), strict=True)
    return dit.eval().requires_grad_(False)


def oracle_model(zero_pad=False, network_sign=-1):
    model = LongCat(oracle_dit(zero_pad))
    model.network_sign = network_sign
    return model


def prompt(name, prefix=""):
    values = tensors(name)
    return Text(values[f"{prefix}prompt_embeds"], values[f"{prefix}prompt_mask"])


def assert_near(actual, expected, limit):
    assert actual.shape == expected.shape
    assert (actual.double() - expected.double()).abs().max().item() <= limit


def arguments(method, flags=""):
    return parse_args(None, method, shlex.split(flags))


FLAGS = {
    "delta_a": (AdaSteer, "--lr 1e-2 --final-layer"),
    "delta_a_lr1e-1": (AdaSteer, "--lr 1e-1 --final-layer"),
    "delta_b_g1": (AdaSteer, "--lr 1e-2"),
    "delta_b_g2": (AdaSteer, "--lr 1e-2 --groups 2"),
    "delta_b_g4": (AdaSteer, "--lr 1e-2 --groups 4"),
    "delta_b_g1_dim8": (AdaSteer, "--lr 1e-2 --dims 8"),
    "delta_b_g2_last2": (AdaSteer, "--lr 1e-2 --groups 2 --blocks last:2"),
    "delta_c": (DeltaC, "--lr 1e-2"),
    "norm_all_norm": (NormTTA, ""),
    "norm_cross_attn_norm": (NormTTA, "--norms cross"),
    "norm_qk_norm": (NormTTA, "--norms qk"),
    "film_full_g2": (FiLM, "--lr 1e-2 --groups 2"),
    "film_full_g4": (FiLM, "--lr 1e-2 --groups 4"),
    "film_shift_scale_g1": (FiLM, "--lr 1e-2 --mode shift-scale"),
    "film_scale_only_g1": (FiLM, "--lr 1e-2 --mode scale"),
    "lora_r1": (LoRA, ""),
    "lora_r1_lr1e-2": (LoRA, "--lr 1e-2"),
    "lora_r2_ffn_last2_lr1e-2": (LoRA, "--lr 1e-2 --rank 2 --alpha 1 --ffn --blocks last:2"),
    "full_sgd_lr1e-2": (FullTTA, "--optimizer sgd --lr 1e-2"),
    "full_sgd_lr1e-5": (FullTTA, "--optimizer sgd --lr 1e-5"),
    "full_adamw_lr1e-4": (FullTTA, ""),
}


def oracle_clip(name="tta_baselines"):
    values = tensors(name)
    return SimpleNamespace(
        context=values["cond_latents"], target=values["train_latents"],
        held_out=values["val_latents"], text=prompt(name), seed=1,
        video=SimpleNamespace(id="oracle"),
    )  # fmt: skip


def oracle_method(model, name):
    """The method of a recorded trajectory, at its start, and its arguments."""
    cls, flags = FLAGS[name]
    args = arguments(cls, flags)
    method = cls(model, oracle_clip(), args)
    if name == "delta_b_g2_last2":  # the study's map: the first vector is never used
        method.group_of = {2: 1, 3: 1}
    put(method, recorded(model, name, "init"))
    return method, args


def recorded(model, name, state):
    """Our parameters' names and values in a recorded state: "init", "consistent" ..."""
    values = tensors("tta_adasteer") | tensors("tta_baselines")
    found = {}
    for key in (f"{name}.{state}.delta.step5", f"{name}.{state}.final"):
        if key in values:
            # Delta-C is recorded on the raw output
            sign = model.network_sign if name == "delta_c" else 1
            rows = sign * values[key].reshape(-1, values[key].shape[-1])
            kind = "gamma" if name.startswith("film") else "delta"
            found = {f"{kind}.{g}": row for g, row in enumerate(rows)}
            found = {"delta": rows[0]} if name == "delta_c" else found
    start = f"{name}.{state}." if state == "init" else f"{name}.{state}.final."
    for key, value in values.items():
        if key.startswith(start):
            parameter = key.removeprefix(start)
            if "lora_" in parameter:
                parameter = parameter.replace("lora_down", "lora_A").replace("lora_up", "lora_B")
                parameter = f"{PREFIX}{parameter}.weight"
            found[parameter] = value
    return found


def put(method, values):
    parameters = method.named_parameters()
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(value)


def adapted(model, name, state):
    """The method in a recorded state."""
    method, _ = oracle_method(model, name)
    put(method, recorded(model, name, state))
    return method
