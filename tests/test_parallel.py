"""Sampling split over processes of torchrun gives what one process gives, with every method on top
of it, and each does its share alone."""

import os
import subprocess
import sys

import pytest
import torch
from backbone_rows import BACKBONES
from oracles import assert_near
from sampled import LONGCAT, sampled
from toy import make_checkpoint, make_opensora2, make_opensora13, make_skyreels

import adasteer
from common.errors import MisfitError, UsageError
from devices import parallel
from runs.cli import parse_args
from runs.identity import ROOT

PROCESSES = 2
BOTH = {
    "guidance": tuple(row.make for row in BACKBONES.values()),
    "context": (make_checkpoint,),
}
ROWS = [(way, make) for way, models in BOTH.items() for make in models]


def torchrun(*words, processes=PROCESSES):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), *map(str, words)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """{make: checkpoint}."""
    folder = tmp_path_factory.mktemp("parallel")
    return {make: make(folder / make.__name__) for make in BOTH["guidance"]}


@pytest.fixture(scope="module")
def found(made, tmp_path_factory):
    """{way: [of each process {checkpoint: {case: outcome}}]}."""
    folder, found = tmp_path_factory.mktemp("out"), {}
    for way, models in BOTH.items():
        done = torchrun("tests/sampled.py", folder, way, *(made[make] for make in models))
        assert done.returncode == 0, done.stderr
        found[way] = [torch.load(folder / f"{way}-{rank}.pt") for rank in range(PROCESSES)]
    return found


@pytest.mark.slow  # torchrun twice, every model
@pytest.mark.parametrize(("way", "make"), ROWS, ids=lambda x: getattr(x, "__name__", x))
def test_processes_together_sample_what_one_does(way, make, made, found):
    alone = sampled(made[make], "none")
    each = [outcomes[str(made[make])] for outcomes in found[way]]
    assert (make is make_checkpoint) == (LONGCAT.keys() <= alone.keys())
    for case, expected in alone.items():
        first, *others = (outcomes[case]["latents"] for outcomes in each)
        assert all(torch.equal(first, other) for other in others)
        assert_near(first, expected["latents"], 2e-6 * expected["latents"].abs().max())
        for outcomes in each:
            assert share_of(outcomes[case], expected) == shares(way, make, case)


def share_of(mine, all_of_it):
    return tuple(mine[what] / all_of_it[what] for what in ("tokens", "branches"))


def shares(way, make, case):
    """Of the tokens and of the branches, that each process computes."""
    if way == "context":
        return 1 / PROCESSES, 1
    if case == "no guidance":
        return 1, 1
    # of three branches one process has two, and the other one of its own and one once more
    return 1, 2 / 3 if make in (make_opensora2, make_opensora13) else 1 / PROCESSES


def parsed(*flags):
    return parse_args(None, adasteer.AdaSteer, list(map(str, flags)))


@pytest.fixture
def processes(monkeypatch):
    """So many of torchrun, which this one takes itself for one of."""

    def call(count):
        monkeypatch.setenv("WORLD_SIZE", str(count))

    return call


@pytest.mark.parametrize("way", BOTH)
def test_one_process_is_refused(way):
    with pytest.raises(UsageError, match=f"--parallel {way}: there is one process; start the .*"):
        parsed("--parallel", way)


def test_without_guidance_there_are_no_branches(processes):
    processes(2)
    with pytest.raises(UsageError, match="guidance: without guidance there is one branch; take"):
        parsed("--parallel", "guidance", "--guidance-scale", 1)


def test_tokens_that_do_not_split_are_refused(processes, toy_checkpoint):
    flags = ["--parallel", "context", "--checkpoint", toy_checkpoint]
    processes(3)
    assert parsed(*flags).parallel == "context"
    processes(4)
    with pytest.raises(UsageError, match="the 6 tokens of a latent do not split over 4 processes"):
        parsed(*flags)
    processes(3)
    with pytest.raises(UsageError, match="--parallel context: not together with --compile"):
        parsed(*flags, "--compile")


def test_models_whose_tokens_are_not_split(processes, tmp_path):
    processes(2)
    flags = ["--checkpoint", make_skyreels(tmp_path / "SkyReels"), "--parallel"]
    assert parsed(*flags, "guidance").parallel == "guidance"
    with pytest.raises(MisfitError, match="context: not built for SkyReelsV2T.*; take guidance"):
        parsed(*flags, "context")


def test_one_process_computes_all_itself():
    with parallel.sampling("guidance"):
        assert parallel.each(lambda x: 2 * x, [1, 2, 3]) == [2, 4, 6]
