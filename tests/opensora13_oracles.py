"""Numbers recorded from the official code of Open-Sora v1.3, and the tiny network they belong to.

As in oracles.py nothing here knows one set of files: every size is read from them.
"""

import functools
import json

import pytest
from oracles import SHARED
from safetensors.torch import load_file

from backbones.opensora13_dit import STDiT3
from backbones.parts import registered

OPENSORA13 = SHARED / "oracles" / "opensora_v13"
# of its README: absolute, absolute, relative, relative to a gradient's largest entry
OUTPUT_LIMIT, SAMPLE_LIMIT, LOSS_LIMIT, GRADIENT_LIMIT = 3e-4, 3e-3, 2e-4, 1e-3
ROTARY_TABLE = "rope.freqs"  # among the official parameters, but fixed: a buffer here

needs_opensora13 = pytest.mark.skipif(
    not OPENSORA13.is_dir(), reason=f"recorded numbers not found at {OPENSORA13}"
)


@functools.cache
def tensors(name):
    return load_file(OPENSORA13 / f"{name}.safetensors")


def table(name):
    return json.loads((OPENSORA13 / f"{name}.json").read_text())


def entries(name):
    """For parametrize, which is evaluated also where the files are absent."""
    return table(name) if OPENSORA13.is_dir() else {}


def network():
    """As recorded, official final norm included."""
    dit = STDiT3(**table("config"))
    dit.load_state_dict(tensors("weights"), strict=True)
    dit.repeats_final_norm = True
    return dit.eval().requires_grad_(False)


def given(file, start, names=None):
    """{rest of the name: value} of the values whose names start so."""
    found = {k.removeprefix(start): v for k, v in tensors(file).items() if k.startswith(start)}
    return {name: found[name] for name in names} if names else found


def inputs(case):
    """The recorded inputs of a forward, by the names that it takes."""
    found = given("forward", f"{case}.in.") | table("forward")[case]
    del found["num_frames"]  # officially taken, and not used
    return found


def attached(dit, site, function):
    return registered(dit.sites[site], function)


def steer(dit, vectors, final):
    """A function for the site timestep_embedding: pair i of n uses floor(i * G / n) of G vectors,
    the final layer its own."""
    depth = dit.config.depth

    def function(i, e, sigma):
        return e + (final if i == depth else vectors[i * len(vectors) // depth])

    return function
