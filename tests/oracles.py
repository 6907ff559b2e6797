"""Where the recorded numbers of the official code lie, and how to read them."""

import json
import os
from pathlib import Path

import pytest
from safetensors.torch import load_file

SHARED = Path(os.environ.get("ADASTEER_SHARED", Path(__file__).resolve().parents[2] / "shared"))
LONGCAT = SHARED / "oracles" / "longcat"

needs_oracles = pytest.mark.skipif(
    not LONGCAT.is_dir(), reason=f"recorded numbers not found at {LONGCAT}"
)


def tensors(name):
    return load_file(LONGCAT / f"{name}.safetensors")


def table(name):
    return json.loads((LONGCAT / f"{name}.json").read_text())
