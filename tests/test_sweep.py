"""Sweep files: what they become, what is refused, and a sweep that is stopped and goes on."""

import re
import signal
import subprocess
import sys

import pytest
from cluster import wait_for
from test_run import ROOT

import runs
import sweep
from sweeps.rows import read_sweep

FILES = sorted((ROOT / "sweeps").glob("*.yaml"))
THREE = """
baseline: adasteer.py
shared: --sampling-steps 2 --sampling enhance_hf=false --steps 2
rows:
  - name: groups{groups}
    script: adasteer.py
    flags: --groups {groups}
    over: {groups: [1, 4]}
  - {name: two_layers, script: lora_tta.py, flags: --targets attn.qkv cross_attn.q_linear --rank 2}
"""


def write(tmp_path, text):
    path = tmp_path / "three.yaml"
    path.write_text(text)
    return path


def command(tmp_path, text, *flags):
    path, out = write(tmp_path, text), tmp_path / "out"
    return [*map(str, [sys.executable, ROOT / "sweep.py", path, "--nano", "--out", out, *flags])]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_is_sound_and_says_where_it_comes_from(path, tmp_path):
    rows, unfit = read_sweep(path, tmp_path)
    assert len(rows) >= 4 and rows[0].baseline is None and rows[0].args.steps == 0
    assert all(row.baseline in {r.name for r in rows} for row in rows if row.baseline)
    for why in unfit.values():  # what nano is too small for
        assert re.search(r"--(groups|dims|blocks) .*(in 1\.\.(12|64)|\(1 here\)), got", why), why
    comment = [line for line in path.read_text().splitlines() if line.startswith("#")]
    flaws = (  # of the drafts'
        "wrong sign", "showed the network the answer", "portraits",
        "the very frames it had learned",
    )  # fmt: skip
    assert len(comment) >= 3 and any(flaw in " ".join(comment) for flaw in flaws)


def test_rows_of_one_way_to_generate_share_a_baseline(tmp_path):
    rows, _ = read_sweep(ROOT / "sweeps" / "conditioning_methods.yaml", tmp_path)
    baselines = [row for row in rows if row.baseline is None]
    assert [row.args.cond_frames for row in baselines] == [1, 5, 13, 21]
    for row in rows[len(baselines) :]:
        (base,) = [b for b in baselines if b.name == row.baseline]
        assert base.args.cond_frames == row.args.cond_frames


def test_a_comma_and_a_list_reach_the_script_whole(tmp_path):
    rows, _ = read_sweep(ROOT / "sweeps" / "early_stopping.yaml", tmp_path)
    assert (0.1, 0.3, 0.5, 0.7, 0.9) in [row.args.stop_sigmas for row in rows]
    (row,) = [r for r in read_sweep(write(tmp_path, THREE), tmp_path)[0] if r.name == "two_layers"]
    assert row.args.targets == ["attn.qkv", "cross_attn.q_linear"]


WRONG = {
    "unknown key 'row'": ("rows:", "row:"),
    "unknown key 'flag'": ("flags: --targets", "flag: --targets"),
    "has no baseline": ("baseline: adasteer.py\n", ""),
    "has no script": ("script: lora_tta.py, ", ""),
    "there is no script 'lora.py'": ("lora_tta.py", "lora.py"),
    "unrecognized argument --rnk; did you mean --rank?": ("--rank", "--rnk"),
    "two rows are called 'groups4'": ("two_layers", "groups4"),
    "two rows are called 'baseline'": ("two_layers", "baseline"),
    "uses 'group'": ("--groups {groups}", "--groups {group}"),
    "cannot name a folder": ("two_layers", "two/layers"),
    "not YAML": ("rows:", "rows: ["),
    "must be at least 1, got 0": ("--rank 2", "--rank 0"),
    "has no steps": ("--rank 2", "--rank 2 --steps 0"),
    "run the same flags": ("--groups {groups}", "--groups 2"),
    "over must say what is swept": ("over: {groups: [1, 4]}", "over:"),
    "uses expected '}'": ("--groups {groups}", "--groups {groups"),
    "has no method to run": ("lora_tta.py", "compare.py"),
}


@pytest.mark.parametrize("message", WRONG)
def test_mistakes_are_found_before_anything_starts(message, script, tmp_path, capsys):
    path = write(tmp_path, THREE.replace(*WRONG[message]))
    assert script(sweep, path, "--nano", "--local", "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert message in said and "three.yaml" in said and not (tmp_path / "out").exists()


def test_without_site_file_or_flags_nothing_is_chosen(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sweeps.settings.ROOT", tmp_path)
    assert script(sweep, write(tmp_path, THREE), "--local") == 2
    assert "no --checkpoint: pass it, write CHECKPOINT=" in capsys.readouterr().err
    own = write(tmp_path, THREE.replace("shared: ", "shared: --videos=own.csv "))
    assert script(sweep, own, "--checkpoint", ROOT / "nano" / "checkpoint", "--dry-run") == 0
    assert capsys.readouterr().out.count("--videos=own.csv") == 4
    (tmp_path / "sbatch").mkdir()
    monkeypatch.chdir(tmp_path)  # where the checkpoint is
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "big").symlink_to(ROOT / "nano" / "checkpoint")
    site = tmp_path / "sbatch" / "site.sh"
    site.write_text("BIG=weights\nexport CHECKPOINT=$BIG/big # here\nVIDEOS='a list.csv'\n")
    assert script(sweep, write(tmp_path, THREE), "--dry-run") == 0
    said = capsys.readouterr().out
    assert said.count("--checkpoint weights/big --videos 'a list.csv'") == 4


def test_the_baseline_has_the_rows_window(tmp_path):
    """With an anchor that the default frames of adaptation would reach before."""
    text = THREE.replace("--steps 2", "--steps 2 --anchor 21 --tta-frames 21 --cond-frames 5")
    (base, *_), _ = read_sweep(write(tmp_path, text), tmp_path)
    assert (base.name, base.args.tta_frames) == ("baseline", 21)


@pytest.mark.parametrize(
    ("flags", "values"),
    [
        ("--no-generate --future-draws 2", {"generate": False, "future_draws": 2, "samples": 1}),
        ("--samples 3", {"generate": True, "samples": 3}),
    ],
)
def test_the_baseline_is_scored_as_the_rows_are(flags, values, tmp_path):
    text = THREE.replace("--steps 2", f"--steps 2 --trace-future 1 {flags}")
    (base, *rows), _ = read_sweep(write(tmp_path, text), tmp_path)
    assert base.args.steps == base.args.trace_future == 0
    assert all(row.baseline == base.name and row.args.trace_future == 1 for row in rows)
    for row in (base, *rows):
        assert {key: getattr(row.args, key) for key in values} == values


def test_the_baseline_samples_as_the_rows_do(tmp_path):
    """The model's own options as well, whether the file shares them or a row has them."""
    text = THREE.replace("--groups {groups}\n", "--sampling enhance_hf={groups}\n")
    rows, _ = read_sweep(write(tmp_path, text.replace("[1, 4]", "[true, false]")), tmp_path)
    named = {row.name: row for row in rows}
    for row in rows:
        assert row.args.sampling == named[row.baseline or row.name].args.sampling
    assert {row.args.sampling["enhance_hf"] for row in rows} == {True, False}


def test_the_baseline_does_not_hang_on_the_order_of_the_rows(tmp_path):
    text = THREE.replace("--groups {groups}\n", "--context-latents 2 --tta-frames {groups}\n")
    found = []
    for values in ("[13, 21]", "[9, 21, 13]"):
        (base, *_), _ = read_sweep(write(tmp_path, text.replace("[1, 4]", values)), tmp_path)
        found.append(vars(base.args))
    assert found[0] == found[1]


def test_a_limit_in_the_file_counts(status):
    text = THREE.replace("--steps 2", "--steps 2 --limit 3")
    assert set(status(text).values()) == {((0, 0, 0, 3), "")}


def test_dry_run_prints_the_commands(script, tmp_path, capsys):
    assert script(sweep, *command(tmp_path, THREE, "--dry-run", "--limit", 2)[2:]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and not (tmp_path / "out").exists()
    assert "--steps 0" in lines[0] and "--batch-end 2" in lines[0] and "--groups" not in lines[0]
    assert "--targets attn.qkv cross_attn.q_linear --rank 2" in lines[3]


@pytest.fixture
def status(script, tmp_path, capsys):
    """What --status prints: by row the four numbers, and the rest of the line."""

    def call(text, *flags):
        capsys.readouterr()
        assert script(sweep, *command(tmp_path, text, "--status", *flags)[2:]) == 0
        said = capsys.readouterr().out.splitlines()[3:]  # after the folder and the table's head
        lines = [line.split(maxsplit=5) for line in said]
        return {line[0]: (tuple(map(int, line[1:5])), "".join(line[5:])) for line in lines}

    return call


@pytest.mark.slow
def test_a_stopped_sweep_goes_on(status, tmp_path):
    assert set(status(THREE, "--limit", 2).values()) == {((0, 0, 0, 2), "")}
    out, line = tmp_path / "out", command(tmp_path, THREE, "--limit", 2, "--local")
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert wait_for(lambda: list((out / "groups1").rglob("*.claim")), 300)
    counts, _ = status(THREE, "--limit", 2)["groups1"]
    assert sum(counts) == 2 and sum(counts[:2]) >= 1, counts  # it goes on meanwhile
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 75
    found = status(THREE, "--limit", 2)
    assert found["baseline"][0] == (2, 0, 0, 0) and found["two_layers"][0] == (0, 0, 0, 2)
    assert not list(out.rglob("*.claim"))
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(status(THREE, "--limit", 2).values()) == {((2, 0, 0, 0), "")}
    assert "| groups4 | " in (out / "report" / "table.md").read_text()
    kept = {p: p.stat().st_mtime_ns for p in out.rglob("videos/*.json")}
    assert subprocess.run(line, capture_output=True).returncode == 0
    assert {p: p.stat().st_mtime_ns for p in out.rglob("videos/*.json")} == kept


def test_rows_that_cannot_run_say_so_and_stop_no_other(script, status, tmp_path, capsys):
    """More groups than blocks are said before anything starts; a window that no clip holds is a
    skipped video; what only the loaded model tells is an error."""
    text = THREE.replace("1, 4", "1, 400")
    flags = ["--local", "--limit", 1]
    assert script(sweep, *command(tmp_path, text, "--dry-run")[2:]) == 0
    said = capsys.readouterr()
    assert said.err.startswith("groups400: left out, this model cannot run it: --groups must be in")
    assert said.out.count("\n") == 3 and "groups400" not in said.out
    done = subprocess.run(command(tmp_path, text, *flags), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("groups400: left out") and "[3/3] two_layers" in done.stdout
    text += (
        "  - {name: far, script: adasteer.py, flags: --gen-frames 400}\n"
        "  - {name: no_layer, script: lora_tta.py, flags: --targets attn.none}\n"
    )
    done = subprocess.run(command(tmp_path, text, *flags), capture_output=True, text=True)
    assert done.returncode == 1 and "no_layer failed with exit code 2" in done.stderr
    capsys.readouterr()
    assert script(sweep, *command(tmp_path, text, "--status")[2:]) == 0
    said = capsys.readouterr().out.splitlines()
    (left_out,) = [line for line in said if line.startswith("groups400")]
    assert left_out.endswith("this model cannot run it: --groups must be in 1..12, got 400")
    found = status(text.replace("[1, 400]", "1"))
    assert found["two_layers"][0] == (1, 0, 0, 0) and found["no_layer"][0] == (0, 0, 0, 1)
    counts, reason = found["far"]
    assert counts == (0, 0, 1, 0) and "frames, 432 are needed" in reason


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ("--dims 65", "--dims must be in 1..64, got 65"),
        ("--blocks last:13", "--blocks last:K needs K in 1..12, got last:13"),
        ("--cond-frames 14", "--cond-frames: frames must number 4k + 1, got 14"),
        ("--context-latents 8", "--context-latents must be in 1..7, got 8"),
        ("--size 60x60", "--size 60x60: this checkpoint needs multiples of 16"),
        ("--sampling shine=1", "--sampling shine=1: this model has no shine"),
        ("--groups 5 --blocks last:4", "--groups must be in 1..4, got 5"),
    ],
)
def test_what_a_model_cannot_do_leaves_rows_out(flags, why, script, tmp_path, capsys):
    row = f"  - {{name: other, script: adasteer.py, flags: {flags}}}\n"
    rows, unfit = read_sweep(write(tmp_path, THREE + row), tmp_path)
    assert len(rows) == 4 and list(unfit) == ["other"] and unfit["other"].startswith(why)
    alone = f"baseline: adasteer.py\nrows:\n{row}"
    assert script(sweep, *command(tmp_path, alone, "--local")[2:]) == 2
    said = capsys.readouterr().err
    assert f"no row can run on this model; row 'other': {why}" in said and said.count("\n") == 1


def test_jobs_start_in_the_repository(script, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--nano", "--out", tmp_path / "out", "--slurm"]
    assert script(sweep, write(tmp_path, THREE), *flags) == 2
    assert f"cd {runs.identity.ROOT}" in capsys.readouterr().err
