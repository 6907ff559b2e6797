"""The bundled checkpoint, and the script that makes it."""

import json
import subprocess
import sys

import pytest

import backbones
from common.cli import ROOT


def test_the_checkpoint_is_small_and_native_at_64_pixels():
    folder = ROOT / "nano" / "checkpoint"
    assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) < 24e6
    model = backbones.load(folder)
    assert (model.native["height"], model.native["width"]) == (64, 64)
    assert model.depth == 12 and type(model.vae).__name__ == "LinearVideoAutoencoder"
    assert model.network_sign == -1


@pytest.mark.slow
def test_pretraining_resumes_and_its_checkpoint_runs(tmp_path):
    def call(*command):
        command = [sys.executable, *map(str, command)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    flags = ["-m", "nano.pretrain", "--clips", 100, "--batch", 4]
    flags += ["--work", tmp_path / "work", "--out", tmp_path / "out"]
    call(*flags, "--minutes", 0.1)
    first = (tmp_path / "work" / "curve.json").read_text()
    call(*flags, "--minutes", 0.3)
    curve = json.loads((tmp_path / "work" / "curve.json").read_text())
    assert curve[: len(json.loads(first))] == json.loads(first)
    steps = [step for step, _, _ in curve]
    assert steps == sorted(set(steps)) and curve[-1][2] < 2.0
    run = ["adasteer.py", "--checkpoint", tmp_path / "out", "--no-preflight", "--limit", 1]
    call(*run, "--sampling-steps", 2, "--out", tmp_path / "results")
