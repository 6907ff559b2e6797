"""The bundled checkpoint, and the script that makes it."""

import subprocess
import sys

import pytest
import torch

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
    progress = []
    for minutes in (0.05, 0.15):
        call(*flags, "--minutes", minutes)
        progress.append(torch.load(tmp_path / "work" / "state.pt")["progress"][:2])
    (first, seconds), (second, more_seconds) = progress
    assert 0 < first < second and 3 <= seconds < 9 <= more_seconds
    run = ["adasteer.py", "--checkpoint", tmp_path / "out", "--no-preflight", "--limit", 1]
    call(*run, "--sampling-steps", 2, "--out", tmp_path / "results")
