"""Numbers recorded from the official code, and the tiny model they belong to.

Nothing here knows one set of files: depth, lengths, names and rates are read from them, so that
another set of the same layout (ADASTEER_SHARED) passes or fails by its numbers alone.
"""

import functools
import json
import operator
import os
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from adasteer import AdaSteer
from backbones.longcat import LongCat
from backbones.longcat_dit import LongCatVideoTransformer3DModel
from backbones.longcat_layers import LINEARS, NORMS
from common.loss import Draw
from delta_c import DeltaC
from film_tta import FiLM
from full_tta import FullTTA
from lora_tta import PREFIX, LoRA
from norm_tta import KINDS, NormTTA
from runs.cli import parse_args

SHARED = Path(os.environ.get("ADASTEER_SHARED", Path(__file__).resolve().parents[2] / "shared"))
LONGCAT = SHARED / "oracles" / "longcat"
LOSS_LIMIT, LIMIT = 2e-5, 5e-6  # of its README: for losses, and for what is adapted but LoRA

needs_oracles = pytest.mark.skipif(
    not LONGCAT.is_dir(), reason=f"recorded numbers not found at {LONGCAT}"
)


@functools.cache
def tensors(name):
    return load_file(LONGCAT / f"{name}.safetensors")


def table(name):
    return json.loads((LONGCAT / f"{name}.json").read_text())


def entries(name, *keys):
    """For parametrize, which is evaluated also where the files are absent."""
    return functools.reduce(operator.getitem, keys, table(name)) if LONGCAT.is_dir() else []


@functools.cache
def oracle_dit(zero_pad=False):
    config = table("dit_config") | {"text_tokens_zero_pad": zero_pad}
    dit = LongCatVideoTransformer3DModel(**config)
    dit.load_state_dict(tensors("dit_weights"), strict=True)
    return dit.eval().requires_grad_(False)


def oracle_model(zero_pad=False, sign="consistent", **options):
    """The target `reference` is that of a backbone whose network sign is flipped: mean((out -
    target)^2) with v = out."""
    model = LongCat(oracle_dit(zero_pad), **options)
    model.network_sign = 1 if sign == "reference" else -1
    return model


def model_of(sign, file):
    return oracle_model(table(file)["text_tokens_zero_pad"], sign)


def oracle_draws(values, clip):
    """The recorded draws in place of random ones."""
    pairs = zip(values["sigma"], values["noise"], strict=True)
    return [Draw(clip, sigma.view(1), noise) for sigma, noise in pairs]


def prompt(name, prefix=""):
    values = tensors(name)
    return {name: values[f"{prefix}prompt_{name}"] for name in ("embeds", "mask")}


def assert_near(actual, expected, limit):
    assert actual.shape == expected.shape
    assert (actual.double() - expected.double()).abs().max().item() <= limit


def arguments(method, flags=""):
    """For a model that is no checkpoint's: whether the flags fit the bundled one is not asked."""

    def fits(args, model):
        if not hasattr(model, "class_name") and hasattr(method, "fits"):  # else a Geometry
            method.fits(args, model)

    more = {"__module__": method.__module__, "fits": staticmethod(fits)}
    return parse_args(None, type(method.__name__, (method,), more), shlex.split(flags))


METHODS = {
    "delta_a": AdaSteer, "delta_b": AdaSteer, "delta_c": DeltaC, "norm": NormTTA, "film": FiLM,
    "lora": LoRA, "full": FullTTA,
}  # fmt: skip
FILES = ("tta_adasteer", "tta_baselines")
RECORDED = [entry | {"file": name} for name in FILES for entry in entries(name, "methods")]
# one pair of matrices for each part of a fused projection: not built here
TRAJECTORIES = [entry for entry in RECORDED if "splits" not in entry["hyperparameters"]]


def method_of(entry):
    """The class and the arguments that a recorded trajectory asks for."""
    told, name = entry["hyperparameters"], entry["name"]
    (cls,) = {cls for prefix, cls in METHODS.items() if name.startswith(prefix)}
    flags = f"--steps {len(entry['losses'])} --lr {told['lr']} "
    flags += f"--weight-decay {told['weight_decay']} {OWN_FLAGS[cls](entry, told)}"
    if cls in (LoRA, FullTTA):
        flags += f" --warm-up {told['warmup_steps']}"
    return cls, arguments(cls, flags)


def adasteer_flags(entry, told):
    if "block_to_group" not in entry:
        return "--final-layer"  # Delta-A
    flags = f"--groups {told['num_groups']}"
    if "delta_dim" in told:
        flags += f" --dims {told['delta_dim']}"
    blocks = active_blocks(entry)
    # the study lays its groups over all blocks; ours must not be more than the blocks
    if told["num_groups"] <= len(blocks) < len(entry["block_to_group"]):
        flags += f" --blocks {','.join(map(str, blocks))}"
    return flags


def active_blocks(entry):
    everything = list(range(len(entry["block_to_group"])))
    return everything if entry["active_blocks"] == "all" else entry["active_blocks"]


def film_flags(entry, told):
    mode = told["film_mode"].removesuffix("_only").replace("_", "-")
    return f"--groups {told['num_groups']} --mode {mode}"


def norm_flags(entry, told):
    tuned = {name.split(".")[-2] for name in entry["target_modules"]}
    kinds = {
        name: {norm.split(".")[-1] for kind in kinds for norm in NORMS[kind]}
        for name, kinds in KINDS.items()
    }
    return f"--norms {next(name for name, norms in kinds.items() if norms == tuned)}"


def lora_flags(entry, told):
    places = [re.fullmatch(r"blocks\.(\d+)\.(.+)", name) for name in entry["target_modules"]]
    blocks = ",".join(sorted({place[1] for place in places}, key=int))
    layers = [x for x in dict.fromkeys(place[2] for place in places) if x not in LINEARS["ffn"]]
    flags = f"--rank {told['rank']} --alpha {told['alpha']} --blocks {blocks}"
    ffn = "--ffn" if told.get("target_ffn") else ""
    return f"{flags} {ffn} --targets {' '.join(layers)}"


OWN_FLAGS = {
    AdaSteer: adasteer_flags, DeltaC: lambda entry, told: "", FiLM: film_flags,
    NormTTA: norm_flags, LoRA: lora_flags,
    FullTTA: lambda entry, told: f"--optimizer {told['optimizer'].lower()}",
}  # fmt: skip


def oracle_clip(name):
    values = tensors(name)
    return SimpleNamespace(
        context=values["cond_latents"], target=values["train_latents"],
        held_out=values["val_latents"], text=prompt(name), seed=1,
        video=SimpleNamespace(id="oracle"),
    )  # fmt: skip


def oracle_method(model, entry):
    """The method of a recorded trajectory, at its start, and its arguments."""
    cls, args = method_of(entry)
    method = cls(model, oracle_clip(entry["file"]), args)
    if cls is AdaSteer and "block_to_group" in entry:
        map_, groups = entry["block_to_group"], entry["hyperparameters"]["num_groups"]
        study = {i: map_[i] for i in active_blocks(entry)}
        # the two maps agree where all blocks are steered and the groups divide them
        assert method.group_of == study or len(map_) % groups or len(study) < len(map_)
        method.group_of = study
    put(method, recorded(model, entry, "init"))
    return method, args


def states(entry):
    """The names of a trajectory's recorded states in order: every step's, or the last alone."""
    start = f"{entry['name']}.{entry['target_sign']}"
    steps = [f"delta.step{n + 1}" for n in range(len(entry["losses"]))]
    found = [step for step in steps if f"{start}.{step}" in tensors(entry["file"])]
    assert found in (steps, [])
    return found or ["final"]


def recorded(model, entry, state):
    """Our parameters' names and values in a recorded state: "init", "delta.step5", "final"."""
    name, sign, values = entry["name"], entry["target_sign"], tensors(entry["file"])
    start = f"{name}.init" if state == "init" else f"{name}.{sign}.{state}"
    if start in values:
        if name.startswith("delta_c"):  # recorded on the raw output
            return {"delta": model.network_sign * values[start]}
        rows = values[start].reshape(-1, values[start].shape[-1])
        kind = "gamma" if name.startswith("film") else "delta"
        return {f"{kind}.{g}": row for g, row in enumerate(rows)}
    keys = [key for key in values if key.startswith(f"{start}.")]
    return {parameter_name(key.removeprefix(f"{start}.")): values[key] for key in keys}


def parameter_name(recorded_name):
    if "lora_" not in recorded_name:
        return recorded_name
    name = recorded_name.replace("lora_down", "lora_A").replace("lora_up", "lora_B")
    return f"{PREFIX}{name}.weight"


def put(method, values):
    parameters = method.named_parameters()
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(value)


def adapted(model, adaptation):
    """The method in the state that a sentence names: "delta_a after step 5, target_sign ..."."""
    name, step, sign = re.match(r"(\S+) after step (\d+), target_sign (\w+)", adaptation).groups()
    (entry,) = [e for e in TRAJECTORIES if (e["name"], e["target_sign"]) == (name, sign)]
    state = f"delta.step{step}" if f"delta.step{step}" in states(entry) else "final"
    assert state != "final" or int(step) == len(entry["losses"])
    method, _ = oracle_method(model, entry)
    put(method, recorded(model, entry, state))
    return method
