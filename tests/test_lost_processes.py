"""When a process of torchrun is lost, or cannot begin, all end, and one says in a line why."""

import re

import pytest
from sharded import differences, furthest, our_lines, records, run
from test_run import ROOT

from runs.claims import create

FULL = ROOT / "full_tta.py"
# a process that ends itself at a named point; as torchrun starts it, so that no test has to wait
KILLED = """
import os, signal
from pathlib import Path
import runs, full_tta, common
from backbones.longcat import LongCat
from runs.records import Records
from runs.scores import Scores


def dies(where, owner, name, here=lambda *_: True):
    function = getattr(owner, name)
    def call(*args, **more):
        if where == {where!r} and os.environ["RANK"] == {rank!r} and here(*args):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **more)
    setattr(owner, name, call)


def second(*_):
    return [*Path({out!r}).glob("videos/*.json")]


dies("loading", common, "load_model")
dies("adapting", full_tta.FullTTA, "loss")
dies("going on", full_tta.FullTTA, "loss", second)
dies("generating", LongCat, "decode")
dies("scoring", Scores, "of")
dies("waiting", Records, "say", lambda _, line: line.startswith("waiting"))
runs.run_script(full_tta.main)
"""
# an interpreter runs this file before all else: the first process ends when the other hears signals
AT_START = """
import os, re, signal, time
from pathlib import Path

def hears(child):
    status = (Path("/proc") / child / "status").read_text()
    return int(re.search(r"SigCgt:\\s*(\\w+)", status)[1], 16) >> signal.SIGTERM - 1 & 1

if os.environ.get("RANK") == "0":
    parent = os.getppid()
    children = Path(f"/proc/{parent}/task/{parent}/children")
    while not any(hears(child) for child in children.read_text().split()):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
"""
PATIENT = ["--monitor-interval", "3"]  # torchrun looks so seldom that the connection breaks first
QUICK = ["--steps", 1, "--limit", 1, "--sampling-steps", 1]


def lost(where, rank, folder, *flags, options=()):
    """What is said when a process is lost at a point."""
    program, out = folder / "killed.py", folder / "out"
    program.write_text(KILLED.format(where=where, rank=str(rank), out=str(out)))
    errors = run(2, program, *flags, "--out", out, code=1, options=options)[1]
    (line,) = our_lines(errors)
    assert f"rank {rank} of 2 has ended without a word" in line and "goes on" in line


@pytest.mark.slow  # two processes are started
@pytest.mark.parametrize(
    "where, rank, options",
    [
        ("loading", 1, ()),
        ("adapting", 1, ()),
        ("generating", 1, PATIENT),
        ("scoring", 0, ()),
        ("waiting", 0, ()),
    ],
    ids=str,
)
def test_a_lost_process_ends_all_with_a_line(where, rank, options, tmp_path):
    if where == "waiting":
        (tmp_path / "out" / "videos").mkdir(parents=True)
        create(tmp_path / "out" / "videos" / "scene_0.claim")
    lost(where, rank, tmp_path, *QUICK, options=options)


@pytest.mark.slow  # five processes are started
def test_the_same_command_goes_on(tmp_path):
    """After it was lost with the second video."""
    flags = ["--steps", 2, "--lr", 1e-4, "--limit", 2, "--no-generate", "--save-adapter"]
    lost("going on", 0, tmp_path, *flags, options=PATIENT)
    said, _ = run(2, FULL, *flags, "--out", tmp_path / "out")
    assert "1 already done, 1 to do" in said
    run(0, FULL, *flags, "--out", tmp_path / "one")
    assert not differences(records(tmp_path / "one"), records(tmp_path / "out"))
    assert furthest(tmp_path / "one", tmp_path / "out") < 1e-5


@pytest.mark.slow  # two processes are started
def test_one_that_is_lost_while_libraries_load(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(AT_START)
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    errors = run(2, FULL, *QUICK, "--out", tmp_path / "out", code=1, environment=environment)[1]
    (line,) = our_lines(errors)
    assert "stopped by SIGTERM before it began; rank 0 of 2 has ended" in line or (
        "stopped by SIGTERM before rank 0 of 2 had begun" in line
    )


ONE_ERRS = """
import os, sys
if os.environ["RANK"] == {rank!r}:
    sys.argv += {flags!r}
import runs, full_tta
runs.run_script(full_tta.main)
"""


@pytest.mark.slow  # two processes are started
@pytest.mark.parametrize(
    "rank, flags, words",
    [(1, ["--device", "nothing"], "--device nothing: not usable"), (0, ["--lr", "x"], "--lr")],
    ids=str,
)
def test_an_error_of_usage_of_one_is_that_of_all(rank, flags, words, tmp_path):
    (tmp_path / "program.py").write_text(ONE_ERRS.format(rank=str(rank), flags=flags))
    errors = run(2, tmp_path / "program.py", *QUICK, "--out", tmp_path / "out", code=1)[1]
    (line,) = our_lines(errors)
    assert line.startswith("program.py: error: ") and words in line
    assert {*re.findall(r"exitcode *: (-?\d+)", errors)} == {"2"}
