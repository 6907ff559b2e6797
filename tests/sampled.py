"""What test_parallel.py compares: samples of one process, and, as a program of torchrun, of each of
its processes.

    torchrun --standalone --nproc-per-node 2 tests/sampled.py OUT WAY CHECKPOINT ...
"""

import sys
from pathlib import Path

import torch
from toy import new, perturb, sample, toy_clip

import backbones
from adasteer import AdaSteer
from delta_c import DeltaC
from devices import parallel, ranks
from film_tta import FiLM
from last_layer_tta import LastLayer
from lora_tta import LoRA

METHODS = {
    "AdaSteer": (AdaSteer, "--groups 2 --final-layer"),
    "hidden": (AdaSteer, "--target hidden"),
    "Delta-C": (DeltaC, ""),
    "FiLM": (FiLM, ""),
    "LoRA": (LoRA, ""),
    "last layer": (LastLayer, ""),
}
CASES = {
    "guided": ("AdaSteer", {"guidance_scale": 4.0}),
    "no guidance": ("AdaSteer", {"guidance_scale": 1.0}),
}
LONGCAT = {name: (name, {"guidance_scale": 4.0}) for name in METHODS}
LONGCAT |= {"without a cache": ("AdaSteer", {"guidance_scale": 4.0, "use_cache": False})}


def sampled(checkpoint, way):
    """{case: the most tokens that a block met, how many branches were computed, the latents}."""
    model = backbones.load(checkpoint)
    clip = toy_clip(model)
    more = LONGCAT if type(model).__name__ == "LongCat" else {}
    return {case: outcome(model, clip, way, *given) for case, given in (CASES | more).items()}


def outcome(model, clip, way, name, options):
    tokens, branches = [], []

    def see_tokens(i, x):
        tokens.append(x.shape[1])
        return x

    def see_velocity(v):
        branches.append(len(v))
        return v

    torch.manual_seed(0)
    method = new(*METHODS[name], model, clip)[0]
    perturb(method)
    with (
        method.attached(),
        model.block_output(see_tokens),
        model.predicted_velocity(see_velocity),
        parallel.sampling(way),
    ):
        latents = sample(model, clip, **options)
    return {"tokens": max(tokens), "branches": sum(branches), "latents": latents}


if __name__ == "__main__":
    out, way, *checkpoints = sys.argv[1:]
    ranks.start(torch.device("cpu"))
    found = {name: sampled(Path(name), way) for name in checkpoints}
    torch.save(found, f"{out}/{way}-{ranks.rank()}.pt")
