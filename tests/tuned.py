"""What test_sharding_models.py compares: a few steps in one process and, as a program of torchrun,
in each of its processes.

    torchrun --standalone --nproc-per-node 2 tests/tuned.py OUT CHECKPOINT ...
"""

import contextlib
import sys
from pathlib import Path

import torch
from toy import new, sample, toy_clip

import backbones
from adasteer import AdaSteer
from backbones import parts
from common.adaptation import Steps, take_steps
from common.loss import Draw, draw_noise
from common.stopping import EarlyStopping
from devices import ranks
from devices.shards import whole
from film_tta import FiLM
from full_tta import FullTTA
from last_layer_tta import LastLayer
from lora_tta import LoRA
from norm_tta import NormTTA

METHODS = {  # and whether it learns all weights
    "full": (FullTTA, "--lr 1e-3", True),
    "AdaSteer": (AdaSteer, "--groups 2 --final-layer", False),
    "FiLM": (FiLM, "", False),
    "LoRA": (LoRA, "", False),
    "norms": (NormTTA, "", False),
    "last layer": (LastLayer, "", False),
}


def tuned(checkpoint):
    """{method: losses of two steps, parameters after them, latents sampled with them}, and what the
    untouched model samples at the end."""
    found = {}
    for learned in (True, False):
        model = shared(loaded(checkpoint), learned)
        clip = toy_clip(model)
        for name, (method, flags, all_weights) in METHODS.items():
            if all_weights == learned:
                found[name] = outcome(model, clip, method, flags)
        found[f"afterwards, {learned}"] = {"latents": sample(model, clip)}
    return found


def loaded(checkpoint):
    """As load_model does: of several processes the first alone reads the transformer's weights."""
    with parts.without_weights() if ranks.rank() else contextlib.nullcontext():
        return backbones.load(checkpoint, place=None)


def shared(model, learned):
    if ranks.count() > 1:
        from devices.sharding import Shards, begin_as_first

        begin_as_first(model.dit)
        model.shards = Shards(model, learned, torch.float32, sent=True)
    model.place("none")
    model.recompute(2)
    return model


def outcome(model, clip, method, flags):
    torch.manual_seed(0)
    steps, method = Steps(), new(method, flags, model, clip)[0]
    noise = draw_noise(torch.Generator().manual_seed(0), clip.target)
    draws = [Draw(clip, torch.tensor([sigma]), noise) for sigma in (0.3, 0.7)]
    if hasattr(method, "draws"):
        draws = [Draw(clip, torch.tensor([0.3, 0.7]), noise.expand(2, *noise.shape[1:]))] * 2
    with method.attached():
        take_steps(model, method, draws, EarlyStopping([]), steps, lambda *_: None)
        latents = sample(model, clip)
    parameters = {name: whole(p.detach()) for name, p in method.named_parameters().items()}
    return {"losses": torch.tensor(steps.losses), "latents": latents} | parameters


if __name__ == "__main__":
    out, *checkpoints = sys.argv[1:]
    ranks.start(torch.device("cpu"))
    found = {name: tuned(Path(name)) for name in checkpoints}
    torch.save(found, f"{out}/{ranks.rank()}.pt")
