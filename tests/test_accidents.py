"""What must not end in a traceback: damaged folders, full disks, terminals, signals at any time."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from test_run import QUICK, ROOT, demo_rows, finished_run, results, write_manifest

import adasteer
import lora_tta
import runs
from common.errors import UsageError
from runs import results as files
from runs.summary import summarise

SCRIPT = [sys.executable, str(ROOT / "adasteer.py")]
THREE = [*map(str, QUICK), "--limit", "3"]


def run(*flags, **more):
    return subprocess.run(
        [*SCRIPT, *map(str, QUICK), *map(str, flags)], capture_output=True, text=True, **more
    )


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_torch_is_loaded(number, tmp_path):
    """From the first import on: the process shows by its handler that it has come so far."""
    process = subprocess.Popen(
        [*SCRIPT, "--out", str(tmp_path / "out")], stderr=subprocess.PIPE, text=True,
        stdout=subprocess.DEVNULL, env=slow_torch(tmp_path),
    )  # fmt: skip
    bit = 1 << (signal.SIGUSR1 - 1)  # the last to get its handler
    while not int(caught_by(process.pid), 16) & bit:
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 75 and f"stopped by {number.name} before it began" in said
    assert "Traceback" not in said and not (tmp_path / "out").exists()


def slow_torch(folder):
    """An environment in which the import of torch takes longer than any test waits."""
    (folder / "torch.py").write_text("import time\ntime.sleep(300)\n")
    return os.environ | {"PYTHONPATH": str(folder)}


def caught_by(process):
    """Signals that have a handler, as a hexadecimal mask."""
    with open(f"/proc/{process}/status") as file:
        return next(line.split()[1] for line in file if line.startswith("SigCgt"))


def test_importing_the_package_leaves_signals_alone():
    code = "import signal, common; print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "True"


@pytest.mark.parametrize("set_by_user", [None, "ACTIVE"])
def test_threads_wait_passively_unless_told_otherwise(set_by_user, tmp_path):
    """What is set when torch is imported."""
    (tmp_path / "torch.py").write_text(
        "import os\nprint(os.environ.get('OMP_WAIT_POLICY'), flush=True)\nos._exit(0)\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    environment |= {"OMP_WAIT_POLICY": set_by_user} if set_by_user else {}
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = [{str(tmp_path)!r}]; import runs"],
        capture_output=True, text=True, cwd=ROOT, env=environment,
    )  # fmt: skip
    assert done.stdout.strip() == (set_by_user or "PASSIVE")


@pytest.mark.parametrize(
    "name",
    "adasteer full_tta lora_tta delta_c last_layer_tta norm_tta film_tta compare sweep".split(),
)
def test_scripts_set_the_policy_before_torch(name):
    imports = [x for x in (ROOT / f"{name}.py").read_text().splitlines() if x.startswith("import")]
    imports = [x for x in imports if x.split()[1] in ("runs", "common", "torch")]
    assert imports[0].startswith("import runs")


def test_characters_that_a_terminal_lacks_or_obeys(tmp_path):
    rows = [(demo_rows()[0][0], "\x1b[2J\x07 a ball bounces, Ünïcödé 漢字")]
    listed = write_manifest(tmp_path / "list.csv", rows)
    for more in (["--dry-run"], []):
        done = run(
            "--videos", listed, "--out", tmp_path / "out", *more,
            env=os.environ | {"PYTHONIOENCODING": "ascii"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "\x1b[2J" not in done.stdout and "\x07" not in done.stdout
    (record,) = results(tmp_path / "out").values()
    assert record["caption"].endswith("漢字")


def test_nobody_reads_what_is_printed(tmp_path):
    command = " ".join([*SCRIPT, "--dry-run", "--out", str(tmp_path / "out"), "| true"])
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


@pytest.mark.parametrize("flag", ["--cache", "--out"])
def test_a_file_in_place_of_a_folder(flag, tmp_path, script, capsys):
    (tmp_path / "file").touch()
    flags = [*QUICK, "--out", tmp_path / "out", flag, tmp_path / "file"]
    assert script(adasteer, *flags) == 2
    assert f"{flag}: {tmp_path / 'file'}: is a file; give a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [["--steps", 10**30], ["--draws", 10**9], ["--seed", "9" * 5000], ["--lr", "1e999"],
     ["--sampling-steps", 10**12], ["--size", f"{10**9}x{10**9}"], ["--stop-draws", 10**7],
     ["--tta-frames", 4 * 10**9 + 1], ["--gen-frames", 10**9], ["--limit", 10**30],
     ["--anchor", 10**20], ["--groups", 10**30], ["--stop-sigmas", "nan"], ["--shard", "1/0"]],
)  # fmt: skip
def test_huge_values_are_refused(flags, tmp_path, script, capsys):
    assert script(adasteer, "--out", tmp_path / "out", *flags) == 2
    said = [x for x in capsys.readouterr().err.splitlines() if "LPIPS" not in x]
    assert len(said) == 1 and flags[0] in said[0] and not (tmp_path / "out").exists()


def test_results_that_vanish_stop_the_run(tmp_path, script, monkeypatch, capsys):
    scored = runs.scores.Scores.of

    def vanish(self, *given):
        record = scored(self, *given)
        shutil.rmtree(tmp_path / "out")
        return record

    monkeypatch.setattr(runs.scores.Scores, "of", vanish)
    assert script(adasteer, *QUICK, "--out", tmp_path / "out") == 1
    assert "adasteer.py: stopped: " in capsys.readouterr().err


@pytest.mark.parametrize("module", [adasteer, lora_tta], ids=lambda module: module.__name__)
@pytest.mark.parametrize("error", [SafetensorError("no space left"), OSError(errno.ENOSPC, "full")])
def test_a_full_disk_with_save_adapter(module, error, tmp_path, script, monkeypatch, capsys):
    def full(*given):
        raise error

    flags = [*QUICK, "--no-generate", "--save-adapter", "--out", tmp_path]
    assert script(module, *flags, "--limit", 1) == 0
    before = results(tmp_path)
    writer = files if module is adasteer else module
    monkeypatch.setattr(writer, "save_file", full)
    assert script(module, *flags) == 1
    assert f"{module.__name__}.py: stopped: " in capsys.readouterr().err
    assert results(tmp_path) == before and not list(tmp_path.rglob("*.tmp"))


@pytest.mark.slow
def test_a_full_disk_is_no_fault_of_the_videos(tmp_path):
    """With a limit on the size of files: nothing is marked as skipped, and the same command goes on
    when there is room."""

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # enough for every JSON

    flags = ["--limit", 2, "--out", tmp_path, "--cache", tmp_path / "cache"]
    done = run(*flags, preexec_fn=small_files)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    said = done.stderr.splitlines()[-1]
    assert said.startswith(f"adasteer.py: stopped: --out {tmp_path}: cannot be written")
    assert not results(tmp_path) and not list(tmp_path.rglob("*.claim"))
    assert not list((tmp_path / "videos").glob(".*.tmp"))
    assert run(*flags).returncode == 0 and len(results(tmp_path)) == 2


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("finished") / "out", *THREE)


@pytest.mark.parametrize("key", ["ssim", "psnr_db", "references"])
def test_a_summary_of_what_was_not_measured(key, finished, tmp_path, script, capsys):
    out = shutil.copytree(finished, tmp_path / "out")
    for path in (out / "videos").glob("*.json"):
        record = json.loads(path.read_text())
        record[key] = {k: {} for k in record[key]} if key == "references" else None
        path.write_text(json.dumps(record))
    assert script(adasteer, *THREE, "--out", out) == 0
    assert "3 videos done" in capsys.readouterr().out


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)
FILES = ["config.json", "videos/scene_0.json", "videos/scene_2.json"]


@settings(max_examples=60)
@given(data=st.data())
def test_any_content_of_a_run_is_resumed_or_refused(data, finished, tmp_path_factory):
    """A key taken out or replaced, or the whole file: what is not whole is done again."""
    out = tmp_path_factory.mktemp("damaged") / "out"
    shutil.copytree(finished, out)
    path = out / data.draw(st.sampled_from(FILES))
    content = json.loads(path.read_text())
    how = data.draw(st.sampled_from(["whole", "cut", "key", "missing"]))
    if how == "whole":
        content = data.draw(json_values)
    elif how != "cut":
        key = data.draw(st.sampled_from(sorted(content)))
        content.pop(key)
        if how == "key":
            content[key] = data.draw(json_values)
    text = json.dumps(content)
    path.write_text(text[: len(text) // 2] if how == "cut" else text)
    args = runs.parse_args(None, adasteer.AdaSteer, [*THREE, "--out", str(out)])
    try:
        todo = runs.Run(args).todo
    except UsageError as error:
        assert "\n" not in str(error)
    else:  # or all is done
        assert {video.id for video in todo} <= {"scene_0", "scene_2"}
        summarise(out)
