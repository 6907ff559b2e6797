"""Numbers recorded from the official code of Open-Sora v2.0, and the tiny networks they belong to.

As in oracles.py nothing here knows one set of files: every size is read from them.
"""

import functools
import json

import pytest
from oracles import SHARED
from safetensors.torch import load_file

from backbones.opensora2_dit import MMDiT
from backbones.parts import registered

OPENSORA2 = SHARED / "oracles" / "opensora_v2"
VARIANTS = sorted(path.parent.name for path in OPENSORA2.glob("*/config.json"))
WITH_CONDITION = "released"  # the variant of the trajectories and of the samples
KINDS = ("double", "single", "final")
# of its README, absolute but for losses
OUTPUT_LIMIT, SAMPLE_LIMIT, LOSS_LIMIT, DELTA_LIMIT = 3e-4, 2e-3, 1e-4, 1e-5

needs_opensora2 = pytest.mark.skipif(
    not OPENSORA2.is_dir(), reason=f"recorded numbers not found at {OPENSORA2}"
)
each_variant = pytest.mark.parametrize("variant", VARIANTS)


@functools.cache
def tensors(name):
    return load_file(OPENSORA2 / f"{name}.safetensors")


def table(name):
    return json.loads((OPENSORA2 / f"{name}.json").read_text())


def entries(name):
    """For parametrize, which is evaluated also where the files are absent."""
    return table(name) if OPENSORA2.is_dir() else {}


def network(variant=WITH_CONDITION):
    dit = MMDiT(**table(f"{variant}/config"))
    dit.load_state_dict(tensors(f"{variant}/weights"), strict=True)
    return dit.eval().requires_grad_(False)


def inputs(variant):
    """The recorded inputs, by the names that the forward takes."""
    found = tensors(f"{variant}/forward").items()
    return {key.removeprefix("in."): value for key, value in found if key.startswith("in.")}


def attached(dit, site, function):
    return registered(dit.sites[site], function)


def steer(dit, offsets, slopes=None):
    """A function for the site timestep_embedding. offsets: {kind of block: its vectors}; block j of
    n of a kind with G vectors uses floor(j * G / n); slopes, of the same form, are multiplied with
    the time."""
    double, single = len(dit.double_blocks), len(dit.single_blocks)
    places = [("double", j, double) for j in range(double)]
    places += [("single", j, single) for j in range(single)] + [("final", 0, 1)]

    def function(i, e, sigma):
        kind, j, count = places[i]
        if kind not in offsets:
            return e
        row = j * len(offsets[kind]) // count
        e = e + offsets[kind][row]
        return e + sigma[..., None] * slopes[kind][row] if slopes else e

    return function
