"""Numbers recorded from the official V-JEPA 2-AC predictor and from the study that adapts it, and
the tiny networks they belong to.

As in oracles.py nothing here knows one set of files: every size is read from them.
"""

import functools
import json

import pytest
import torch
from oracles import SHARED
from safetensors.torch import load_file

import predictors
from predictors import modes, rollout, study
from predictors.adaptation import Adaptation
from predictors.clips import LatentClip
from runs.parser import Parser
from vjepa_tta import VJEPAAdaptation

VJEPA2 = SHARED / "oracles" / "vjepa2_ac"
OUTPUT_LIMIT, LOSS_LIMIT, LIMIT = 2e-4, 2e-5, 2e-5  # of its README: absolute
SHARE = 0.99  # of an adapted tensor's entries that are within LIMIT

needs_vjepa2 = pytest.mark.skipif(
    not VJEPA2.is_dir(), reason=f"recorded numbers not found at {VJEPA2}"
)


@functools.cache
def tensors(name):
    return load_file(VJEPA2 / f"{name}.safetensors")


def table(name):
    return json.loads((VJEPA2 / f"{name}.json").read_text())


def values(name, start):
    """{rest of the name: value} of the values whose names start so."""
    return {k.removeprefix(start): v for k, v in tensors(name).items() if k.startswith(start)}


# for parametrize, which is evaluated also where the files are absent
VARIANTS = sorted(path.name for path in (VJEPA2 / "predictor").glob("*"))
KINDS = ("rollout", "jump")
RECORDED = [
    (kind, name) for kind in KINDS if VJEPA2.is_dir() for name in table(f"tta/{kind}_results")
]


def copied(folder, config, weights):
    """A folder that load_predictor reads."""
    folder.mkdir()
    (folder / "config.json").symlink_to(VJEPA2 / config)
    (folder / "weights.safetensors").symlink_to(VJEPA2 / weights)
    return folder


def variant(name):
    return predictors.load_predictor(VJEPA2 / "predictor" / name)


def predictor_of(folder, kind):
    """The network that the recorded runs of a kind adapt."""
    parts = (f"tta/{kind}_config.json", f"tta/{kind}_weights.safetensors")
    return predictors.load_predictor(copied(folder / kind, *parts))


def clip_of(index, name="clip"):
    parts = (tensors("tta/clips")[part][index] for part in ("features", "actions", "states"))
    return LatentClip(name, name, "", *parts)


def arguments(*flags):
    parser = Parser(None)
    parser.add("the method", VJEPAAdaptation.add_arguments, own=True)
    args = parser.parse_args(list(map(str, flags)))
    VJEPAAdaptation.check(args)
    return args


def flags_of(kind, told):
    """The command line of a recorded run. The study's sequential mode moves layer norms alone."""
    sequential = told.get("tta_mode") == "sequential"
    mode = {"rollout": "sequential", "jump": "sequential-jump"}[kind] if sequential else kind
    count = told["T_rollout"] if kind == "rollout" else told["jump_k"]
    flags = ["--mode", mode, "--predict-frames", count, "--loss", told.get("loss_type", "l1")]
    flags += ["--context-frames", told.get("context_frames", 1)]
    if not told["tta_enabled"]:
        return [*flags, "--steps", 0]
    flags += ["--adapt", "layernorm" if sequential else told["tta_adapt_layers"]]
    flags += ["--steps", 1 if sequential else told["tta_num_adaptation_steps"]]
    flags += ["--lr", told["tta_lr"], "--grad-clip", told["tta_grad_clip"]]
    assert told["tta_optimizer_betas"] == [0.9, 0.999]
    return [*flags, "--optimizer", told["tta_optimizer_type"]]


class Study:
    """A recorded run, done again: `clips` and `steps` as they are recorded, `predictions` of every
    clip and the `final` values of what was adapted."""

    def __init__(self, predictor, kind, told, order):
        self.told, self.sequential = told, told.get("tta_mode") == "sequential"
        self.clips, self.steps, self.predictions, self.history = [], [], [], []
        self.method = VJEPAAdaptation(predictor, arguments(*flags_of(kind, told)))
        self.report = {1.0: self.method.args.loss, 2.0: "l2"}[told.get("loss_exp", 1.0)]
        with self.method.attached():
            self.adaptation = Adaptation(self.method, self.method.args.grad_clip)
            for index in order:
                self.clips.append(self.adapt(clip_of(index)))
            self.final = self.adaptation.state_dict()["parameters"]

    @torch.no_grad()
    def predict(self, clip):
        args = self.method.args
        counts = args.context_frames, args.predict_frames
        return modes.predict(self.method.predictor, clip, args.mode, *counts)

    def adapt(self, clip):
        if self.told.get("tta_reset_per_clip"):
            self.adaptation.reset()
        elif self.sequential:
            self.adaptation.restart()
        if self.told.get("tta_reset_per_clip") or not self.sequential:
            self.history = []
        before, made = self.predict(clip), []
        record = self.adaptation.adapt(clip, lambda step, loss, draw: made.append(draw))
        assert not record.pop("diverged")
        self.steps += [
            dict(zip(("loss", "grad_norm", "param_delta_norm"), each, strict=True))
            for each in zip(*record.values(), strict=True)
        ]
        self.history += record["losses"]
        after = self.predict(clip)
        self.predictions.append(after[0])
        if self.sequential:  # its losses are of each frame before the step on it
            after = [torch.cat([draw[part].detach() for draw in made], dim=1) for part in (0, 1)]
        frames = rollout.errors(*after)[self.report]
        found = {"loss": frames.mean().item(), "frames": frames.tolist()}
        if self.told["tta_enabled"]:
            losses = [
                rollout.errors(*pair)[self.method.args.loss].mean() for pair in (before, after)
            ]
            known = [None, None] if self.sequential else [loss.item() for loss in losses]
            found["tta"] = study.of_clip(self.history, *known)
        return found
