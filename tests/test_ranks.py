"""Processes of torchrun: what one says all know, and when one is lost the others say which."""

import os
import pickle
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import runs
from common.errors import PreflightError, UsageError, VideoError
from common.loading import pick_device
from devices import ranks
from runs.identity import ROOT

PROGRAM = """
import sys
from pathlib import Path
import torch
from devices import ranks

ranks.start(torch.device("cpu"))
said = ranks.broadcast({"x": torch.arange(3), "name": "scene"} if ranks.rank() == 1 else None, 1)
mine = [torch.full((1, 2), 4.0 * ranks.rank()), torch.tensor(1.0 + ranks.rank())]
ranks.average(mine)
shown = f"{said['x'].tolist()} {said['name']} {[x.tolist() for x in mine]}"
Path(f"{sys.argv[1]}/said-{ranks.rank()}").write_text(shown)
if ranks.rank() == 1:
    sys.exit(0)
from runs.exits import run_script
run_script(lambda: ranks.broadcast(None, 1))
"""


def test_why_a_video_is_skipped_reaches_other_processes():
    losses = {"loss": 1.5, "zero_loss": 1.0, "negated_loss": None}
    found = pickle.loads(pickle.dumps(PreflightError(losses)))
    assert isinstance(found, VideoError) and found.losses == losses
    assert str(found) == str(PreflightError(losses))


@pytest.mark.slow  # starts torch in two processes
def test_what_one_says_all_know_and_a_lost_one_is_named(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, "--nproc-per-node", "2", program, tmp_path], cwd=ROOT, capture_output=True,
        text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    told = {path.name: path.read_text() for path in tmp_path.glob("said-*")}
    assert told == {f"said-{i}": "[0, 1, 2] scene [[[2.0, 2.0]], 1.5]" for i in range(2)}
    lines = [line for line in done.stderr.splitlines() if "program.py: stopped: " in line]
    assert len(lines) == 1 and "rank 0 of 2: no answer from rank 1" in lines[0]
    assert done.returncode == 1


def test_without_torchrun_nothing_is_started():
    ranks.start(torch.device("cpu"))
    assert (ranks.rank(), ranks.count(), ranks.own_device("cuda")) == (0, 1, "cuda")
    assert not torch.distributed.is_initialized()
    assert ranks.broadcast("alone") == "alone"
    ranks.average([alone := torch.tensor(3.0)])
    assert alone == 3


def test_a_process_of_torchrun_has_its_own_gpu(monkeypatch):
    for name, value in (("WORLD_SIZE", "4"), ("RANK", "6"), ("LOCAL_RANK", "2")):
        monkeypatch.setenv(name, value)
    found = [ranks.own_device(name) for name in ("cuda", "cuda:1", "cpu")]
    assert found == ["cuda:2", "cuda:1", "cpu"]


def test_more_processes_than_gpus_are_refused(monkeypatch):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "8")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(UsageError, match="--nproc-per-node 8 of torchrun: .* has 4 GPUs"):
        pick_device("cuda")


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shapes"), ranks.together():
        raise RuntimeError("shapes differ")


def test_a_lost_process_ends_a_script_with_a_line(script, capsys):
    def main():
        raise ranks.RankLost("rank 0 of 2: no answer from rank 1")

    assert script(SimpleNamespace(__name__="adasteer", runs=runs, main=main)) == 1
    assert capsys.readouterr().err == "adasteer.py: stopped: rank 0 of 2: no answer from rank 1\n"
