"""Rows of a sweep side by side, on a machine whose scripts only say what they do."""

import os
import signal
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cluster import wait_for

import runs
from sweeps.local import run_here

SCRIPT = """
import sys, time
from pathlib import Path
import torch
from common.errors import UsageError

def main():
    journal, name, awaited = sys.argv[1:4]
    say(journal, name + " begins")
    print(torch.get_num_threads(), "thread")
    if awaited == "error":
        raise UsageError("--lr 0: must be positive")
    end = time.monotonic() + 60
    while awaited not in Path(journal).read_text() and time.monotonic() < end:
        time.sleep(0.02)
    say(journal, name + " ends")
    return 0 if awaited in Path(journal).read_text() else 4

def say(journal, words):
    with open(journal, "a") as file:
        print(words, file=file)
"""


@pytest.fixture
def row(tmp_path, monkeypatch):
    """Makes a row that ends when the journal has the awaited words."""
    (tmp_path / "only_says.py").write_text(SCRIPT)
    (tmp_path / "journal").touch()
    monkeypatch.syspath_prepend(tmp_path)

    def make(name, awaited="", adapter=None):
        kind = SimpleNamespace(import_model=lambda checkpoint: None)
        args = SimpleNamespace(kind=kind, checkpoint=None, adapter=adapter)
        flags = [str(tmp_path / "journal"), name, awaited]
        out = tmp_path / "out" / name
        return SimpleNamespace(name=name, script="only_says.py", flags=flags, args=args, out=out)

    return make


@pytest.fixture
def begun(tmp_path):
    """Begins run_here(rows, None, jobs, logs) in a process; gives its pid."""

    def begin(rows, jobs):
        pid = os.fork()
        if pid:
            return pid
        code = 99
        try:
            file = os.open(tmp_path / "said", os.O_WRONLY | os.O_CREAT)
            os.dup2(file, 1), os.dup2(file, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            torch.set_num_threads(2)
            runs.run_script(lambda: run_here(rows, None, jobs, tmp_path / "logs"))
        except SystemExit as error:  # of this process, and of its forks
            code = error.code
        finally:
            if code == 99:
                traceback.print_exc()
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)

    return begin


def code_of(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_rows_run_side_by_side_and_one_awaits_its_adapters(row, begun, tmp_path):
    """a and b end only beside each other, b only once c began, which takes a's adapters."""
    rows = [row("a", "b begins"), row("c", adapter=tmp_path / "out" / "a" / "videos")]
    rows += [row("b", "c begins"), row("d")]
    said = tmp_path / "said"
    assert code_of(begun(rows, 2)) == 0, said.read_text()
    lines = (tmp_path / "journal").read_text().splitlines()
    assert lines.index("a ends") < lines.index("c begins") < lines.index("b ends")
    shown = said.read_text().splitlines()
    begins = [line.split(":")[0] for line in shown if line.startswith("[")]
    assert begins == ["[1/4] a", "[2/4] b", "[3/4] c", "[4/4] d"]
    assert sorted(line.split(" in ")[0] for line in shown if " done in " in line) == [
        f"{name}: done" for name in "abcd"
    ]
    assert (tmp_path / "logs" / "a.txt").read_text() == "1 thread\n"
    assert not any("thread" in line for line in shown)


def test_a_row_that_failed_lends_nothing(row, begun, tmp_path):
    rows = [row("a", "error"), row("b", adapter=tmp_path / "out" / "a" / "videos"), row("c")]
    assert code_of(begun(rows, 2)) == 1
    said = (tmp_path / "said").read_text()
    assert "a: ended with 2: only_says.py: error: --lr 0: must be positive (" in said
    assert "b: not run, it takes the adapters of a" in said
    assert "a failed with exit code 2" in said and "b begins" not in said
    assert "c ends" in (tmp_path / "journal").read_text()


def test_one_at_a_time_says_what_it_says(row, begun, tmp_path):
    assert code_of(begun([row("a"), row("b")], 1)) == 0
    lines = (tmp_path / "journal").read_text().splitlines()
    assert lines == ["a begins", "a ends", "b begins", "b ends"]
    said = (tmp_path / "said").read_text()
    assert said.count("2 thread\n") == 2 and "done in" not in said
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_rows(number, row, begun, tmp_path):
    journal = tmp_path / "journal"
    pid = begun([row("a", "never"), row("b", "never"), row("c", "never")], 2)
    assert wait_for(lambda: journal.read_text().count("begins") == 2, 60)
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    os.kill(pid, number)
    assert code_of(pid) == runs.STOPPED and len(children) == 2
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    assert "c begins" not in journal.read_text()
    logs = [path.read_text() for path in (tmp_path / "logs").glob("*.txt")]
    assert len(logs) == 2 and all("stopped by SIGTERM" in text for text in logs)


def test_a_row_that_is_stopped_stops_the_others(row, begun, tmp_path):
    journal = tmp_path / "journal"
    pid = begun([row("a", "never"), row("b", "never")], 2)
    assert wait_for(lambda: journal.read_text().count("begins") == 2, 60)
    first = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]
    os.kill(int(first), signal.SIGTERM)
    assert code_of(pid) == runs.STOPPED and "ends" not in journal.read_text()
