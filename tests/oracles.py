"""Numbers recorded from the official code, and the tiny model they belong to."""

import functools
import json
import os
from pathlib import Path

import pytest
from safetensors.torch import load_file

from backbones.longcat import LongCat
from backbones.longcat_dit import LongCatVideoTransformer3DModel
from backbones.parts import Text

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
