"""A sweep's folder remembers its flags: the file alone goes on, and other flags are refused."""

import json
import shutil
import subprocess
import sys

import pytest
from test_run import ROOT, demo_rows, write_manifest
from test_sweep import write

import sweep

QUICK = """
baseline: adasteer.py
shared: --steps 1 --no-generate --future-draws 1
rows:
  - {name: one, script: adasteer.py, flags: --lr 1e-3}
  - {name: many, script: adasteer.py, flags: --groups 48}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which a sweep ran, with --nano --limit 1."""
    folder = tmp_path_factory.mktemp("place")
    path = write(folder, QUICK)
    rows = [*demo_rows()[:2]]
    write_manifest(folder / "list.csv", rows)
    line = [sys.executable, ROOT / "sweep.py", path, "--nano", "--videos", "list.csv"]
    line += ["--limit", "1", "--local"]
    done = subprocess.run([*map(str, line)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def call(place, tmp_path, script, monkeypatch, capsys):
    """Calls sweep.py in a copy of that folder; gives exit code, stdout and stderr."""
    copy = tmp_path / "copy"
    shutil.copytree(place, copy)
    monkeypatch.chdir(copy)
    monkeypatch.setattr("sweeps.settings.ROOT", copy)  # without a site file
    (copy / "nano").symlink_to(ROOT / "nano")

    def run(*flags):
        code = script(sweep, "three.yaml", *flags)
        return code, *capsys.readouterr()

    return run


def test_status_alone_goes_on_with_the_flags(call):
    code, out, _ = call("--status")
    head, _, _, *rows = out.splitlines()
    assert code == 0 and head == "results/nano_three: --nano --videos list.csv --limit 1"
    assert [row.split()[:5] for row in rows[:2]] == [
        [name, "1", "0", "0", "0"] for name in ("baseline", "one")
    ]
    assert rows[2].startswith("many") and "--groups must be in 1..12, got 48" in rows[2]


def test_the_file_alone_goes_on_with_the_flags(call):
    code, out, err = call("--dry-run")
    assert code == 0 and out.count("--batch-end 1") == out.count("list.csv") == 2
    done = run_here()
    assert done.returncode == 0 and "[2/2] one" in done.stdout
    assert "goes on with --nano --local --videos list.csv --limit 1" in done.stderr


def run_here(*flags):
    """As a program of its own: the rows are forks of it."""
    line = [sys.executable, ROOT / "sweep.py", "three.yaml", *flags]
    return subprocess.run([*map(str, line)], capture_output=True, text=True)


@pytest.mark.slow
def test_more_videos_go_on_and_are_remembered(call):
    assert run_here("--nano", "--local", "--limit", 2).returncode == 0
    _, out, _ = call("--status")
    assert out.startswith("results/nano_three: --nano --videos list.csv --limit 2\n")
    assert "one       2     0        0        0" in out


@pytest.mark.parametrize(
    ("flags", "before"),
    [
        (["--nano", "--videos", "other.csv"], "--videos list.csv"),
        (["--checkpoint", "x", "--out", "results/nano_three"], "--nano --local --videos list.csv"),
    ],
)
def test_flags_that_contradict_are_refused(flags, before, call):
    for what in ("--local", "--status"):
        code, out, err = call(*flags, what)
        assert code == 2 and out == "" and err.count("\n") == 1
        assert f"results/nano_three was started with {before}" in err and "--out" in err
    assert call("--nano", "--videos", "./list.csv", "--status")[0] == 0


def test_a_sweep_that_has_not_started_says_so(call):
    shutil.rmtree("results")
    code, out, _ = call("--status")
    assert code == 0 and out == "results/three: not started; --local or --slurm starts it\n"
    code, out, _ = call("--nano", "--status")
    assert code == 0 and out.startswith("results/nano_three: not started; --local or --slurm")
    code, _, err = call()
    assert code == 2 and "say what to do: --local, --slurm" in err
    with open("three.yaml", "a") as file:
        file.write("row: []\n")
    code, _, err = call("--status")
    assert code == 2 and "unknown key 'row'" in err


def test_two_folders_of_one_file(call):
    shutil.copytree("results/nano_three", "results/three")
    code, out, _ = call("--status")
    assert code == 0 and "results/three: --nano" in out and "results/nano_three: --nano" in out
    code, _, err = call()
    assert code == 2 and "both hold this sweep; say which with --nano or --out" in err


CHANGED = {
    "its flags": ("three.yaml", "--lr 1e-3", "--lr 2e-3", "--lr is 0.001 there, 0.002 here"),
    "those of all": ("three.yaml", "--future-draws 1", "--future-draws 2", "--future-draws is 1"),
    "the list": ("list.csv", "caption\n", "caption\n\n", "manifest_sha256 is"),
}


@pytest.mark.parametrize("case", CHANGED)
def test_a_row_that_was_changed_is_not_done(case, call, tmp_path):
    name, old, new, why = CHANGED[case]
    path = tmp_path / "copy" / name
    text = path.read_bytes().decode().replace("\r\n", "\n")
    assert old in text
    path.write_text(text.replace(old, new))
    _, out, _ = call("--status")
    (row,) = [line for line in out.splitlines() if line.startswith("one ")]
    assert row.split()[1:5] == ["0", "0", "0", "1"] and f"another run: {why}" in row


@pytest.mark.parametrize("flags", ["x", 5, [5], ["--limit", "0"], ["--what"], None, {"--nano": 1}])
def test_damaged_flags(flags, call, tmp_path):
    path = tmp_path / "copy" / "results" / "nano_three" / "sweep.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"flags": flags}))
    code, out, err = call("--nano", "--status")
    assert code == 2 and out == "" and err.count("\n") == 1
    assert "sweep.json: is damaged" in err and "delete it and give the flags again" in err
