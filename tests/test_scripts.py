"""The method scripts as programs: one main, their help, and a run on real clips each."""

import ast
import importlib
import json

import pytest
import torch
from oracles import SHARED
from peft import PeftModel
from test_run import QUICK

import common
import lora_tta
import runs
from backbones.longcat_dit import LongCatVideoTransformer3DModel
from runs.identity import ROOT

SCRIPTS = {
    "adasteer": ("AdaSteer", 64),
    "full_tta": ("FullTTA", 3_447_104),
    "lora_tta": ("LoRA", 19_968),
    "delta_c": ("DeltaC", 16),
    "last_layer_tta": ("LastLayer", 128),
    "norm_tta": ("NormTTA", 4_608),
    "film_tta": ("FiLM", 768),
}
each_script = pytest.mark.parametrize("name", SCRIPTS)


def main_of(name):
    """The tree of main, with the class's name taken out."""
    tree = ast.parse((ROOT / f"{name}.py").read_text())
    (main,) = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "main"]
    return ast.dump(main).replace(f"id='{SCRIPTS[name][0]}'", "id='Method'")


@each_script
def test_main_is_the_same_in_every_script(name):
    assert main_of(name) == main_of("adasteer") and "id='Method'" in main_of(name)


def test_every_script_is_known_here_and_short():
    scripts = [p for p in ROOT.glob("*.py") if "common.adapt(" in p.read_text()]
    assert {path.stem for path in scripts} == SCRIPTS.keys()
    assert all(len(path.read_text().splitlines()) <= 150 for path in scripts)


@each_script
def test_help_names_the_methods_own_flags(name, script, capsys):
    assert script(importlib.import_module(name), "--help") == 0
    said = capsys.readouterr().out
    assert f"{SCRIPTS[name][0]} (this script):" in said and "early stopping:" in said


@pytest.mark.skipif(not (SHARED / "clips").is_dir(), reason=f"no real clips at {SHARED}")
@each_script
def test_two_real_clips(name, script, tmp_path):
    flags = ["--videos", SHARED / "clips" / "metadata.csv", "--limit", 2, "--save-adapter"]
    flags += [*QUICK, "--out", tmp_path]
    assert script(importlib.import_module(name), *flags) == 0
    records = [json.loads(path.read_text()) for path in (tmp_path / "videos").glob("*.json")]
    assert len(records) == 2
    for record in records:
        assert record["kept"] == "adapted" and len(record["losses"]) == 2
        assert record["adapted_parameters"] == SCRIPTS[name][1]
    adapters = [
        p for p in (tmp_path / "videos").iterdir() if p.suffix in (".safetensors", ".adapter")
    ]
    assert len(adapters) == 2


def test_peft_loads_what_lora_saves(script, tmp_path):
    """The same velocity from peft's own model with the saved folder as from ours."""
    flags = [*QUICK, "--save-adapter", "--limit", 1, "--lr", 1e-2, "--no-generate"]
    assert script(lora_tta, *flags, "--out", tmp_path) == 0
    (folder,) = (tmp_path / "videos").glob("*.adapter")
    checkpoint = ROOT / "nano" / "checkpoint"
    args = runs.parse_args(None, lora_tta.LoRA, [])
    model, run = common.load_model(args), runs.Run(args)
    with run.working(model):
        clip = run.load_clip(next(run.pending()))
    method = lora_tta.LoRA(model, clip, args)
    common.load_adapter(folder, method)
    sigma, noise = torch.tensor([0.5]), torch.ones_like(clip.target)
    with torch.no_grad():
        plain = model.velocity(noise, sigma, clip.context, clip.text)
        with method.attached():
            ours = model.velocity(noise, sigma, clip.context, clip.text)
        dit = LongCatVideoTransformer3DModel.from_pretrained(checkpoint / "dit").eval()
        model.dit = PeftModel.from_pretrained(dit, folder).base_model.model
        theirs = model.velocity(noise, sigma, clip.context, clip.text)
    assert torch.allclose(ours, theirs, atol=1e-6) and not torch.allclose(ours, plain, atol=1e-4)
