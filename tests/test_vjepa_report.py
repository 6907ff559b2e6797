"""Runs on clips of frame features in compare.py, in the report, in a sweep and as a job."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from folders import change
from latent_folders import make_clips, make_predictor

import compare
import sweep
import vjepa_tta
from runs.identity import ROOT

SWEEP = """
baseline: vjepa_tta.py
rows:
  - name: "{carry}"
    script: vjepa_tta.py
    flags: --carry-over {carry} --lr 1e-2
    over: {carry: [0, 1]}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    clips = make_clips(folder / "clips", 9, sources=9)
    return ["--checkpoint", make_predictor(folder / "predictor"), "--videos", clips]


@pytest.fixture
def runs(data, script, tmp_path):
    """Folders of a baseline and of runs with these flags, by name."""

    def call(**flags):
        for name, more in {"baseline": ["--steps", 0], **flags}.items():
            assert script(vjepa_tta, *data, "--lr", "1e-2", *more, "--out", tmp_path / name) == 0
        return [tmp_path / name for name in ("baseline", *flags)]

    return call


@pytest.fixture
def compared(script, tmp_path, capsys):
    """What compare.py says of run folders, and its page."""

    def call(*folders, flags=()):
        capsys.readouterr()
        assert script(compare, *folders, *flags, "--out", tmp_path / "report") == 0
        return capsys.readouterr().out, (tmp_path / "report" / "index.html").read_text()

    return call


def headings(page):
    return re.findall("<h2>(.*?)</h2>", page)


def test_the_error_ahead_decides_where_each_clip_begins_anew(runs, compared, tmp_path):
    said, page = compared(*runs(clip=[]))
    assert re.search(r"clip (helps|harms|makes).*: the latent error ahead (falls|rises) by", said)
    assert "look_ahead_loss (lower is better, gains in %)" in said
    assert "one after the other" not in headings(page)
    for absent in ("side by side", "preflight", "two answers", "videos"):
        assert absent not in headings(page)
    assert {"result", "learning", "every clip", "horizon", "categories", "clips"} <= {
        *headings(page)
    }
    assert "<video" not in page and "predicted frame" in page
    with open(tmp_path / "report" / "table.csv", newline="") as file:
        metrics = {row["metric"] for row in csv.DictReader(file)}
    assert metrics == {"look_ahead_loss", "post_adapt_loss", "pre_adapt_loss"}


def test_the_error_before_adapting_decides_where_it_goes_on(runs, compared):
    folders = runs(never=["--carry-over", 1])
    said, page = compared(*folders)
    assert "never (carried over) helps: the latent error before adapting to a clip falls by" in said
    assert "the interval holds for this order" in said
    assert "one after the other" in headings(page) and "mean of the last 50" in page
    own, base = (
        [json.loads(p.read_text()) for p in sorted((f / "videos").glob("*.json"))]
        for f in (folders[1], folders[0])
    )
    gains = [
        100 * (b["pre_adapt_loss"] - o["pre_adapt_loss"]) / b["pre_adapt_loss"]
        for o, b in zip(own, base, strict=True)
    ]
    results = json.loads((folders[0].parent / "report" / "results.json").read_text())
    row = results["comparisons"]["runs"]["tables"]["pre_adapt_loss"][1]
    assert row["gain"] == pytest.approx(sum(gains) / 9)


def test_of_both_the_error_ahead_decides(runs, compared):
    said, _ = compared(*runs(clip=[], never=["--carry-over", 1]))
    assert said.count("the latent error ahead") == 2
    assert "before adapting to a clip falls" not in said


def test_of_the_studys_protocol_what_was_learned_is_told(runs, data, script, tmp_path, compared):
    whole = ["--adapt-frames", "all"]
    for name, more in (("a", ["--steps", 0]), ("b", [])):
        assert script(vjepa_tta, *data, *whole, *more, "--out", tmp_path / name) == 0
    said, page = compared(tmp_path / "a", tmp_path / "b")
    assert "b cannot be judged: the latent error on the frames adapted to falls by" in said
    assert "it falls whether that helps or not" in page


def test_the_run_says_which_values_are_better(runs, compared):
    folders = runs(never=["--carry-over", 1])

    def turn(config):
        config["metrics"]["pre_adapt_loss"]["better"] = "higher"

    change(folders[1] / "config.json", turn)
    words = "never (carried over) harms: the latent error before adapting to a clip falls by"
    assert words in compared(*folders)[0]


@pytest.mark.parametrize("metrics", [[], {}, {"x": {"better": "more"}}, {"x": 1},
                                     {"x": {"better": "lower", "about": 1}}])  # fmt: skip
def test_a_damaged_declaration_is_refused(metrics, runs, script, tmp_path, capsys):
    folders = runs(clip=["--limit", 1])
    change(folders[1] / "config.json", lambda config: config.update(metrics=metrics))
    assert script(compare, *folders, "--out", tmp_path / "report") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "config.json: metrics is" in said


def test_damaged_records_are_left_out(runs, compared):
    folders = runs(clip=[])
    for name, edit in {
        "c0": lambda record: record.update(look_ahead_loss="low"),
        "c1": lambda record: record.pop("place"),
        "c2": lambda record: record.update(pre_adapt_loss_per_frame=[1, "x"]),
    }.items():
        change(folders[1] / "videos" / f"{name}.json", edit)
    said, _ = compared(*folders)
    assert "6 of 9 videos are in every run" in said and "c1.json is damaged" in said


def test_who_benefits_needs_frames(runs, compared):
    said, _ = compared(*runs(clip=[]), flags=["--predict"])
    assert "it asks the frames of videos" in said


def test_presets_share_a_baseline_and_jumps_have_their_own(data, script, tmp_path, capsys):
    rows = "".join(
        f"  - {{name: {name}, script: vjepa_tta.py, flags: {flags}}}\n"
        for name, flags in {"a": "--preset adajepa", "b": "--preset extended",
                            "c": "--mode jump", "d": "--mode sequential-jump"}.items()
    )  # fmt: skip
    (tmp_path / "rows.yaml").write_text(f"baseline: vjepa_tta.py\nrows:\n{rows}")
    flags = [tmp_path / "rows.yaml", *data, "--out", tmp_path / "out"]
    assert script(sweep, *flags, "--local", "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    baselines = [line for line in lines if "--steps 0" in line]
    assert len(lines) == 6 and len(baselines) == 2
    assert ["--score jump" in line for line in baselines] == [False, True]


def test_runs_on_other_frames_are_not_compared(runs, data, script, tmp_path, capsys):
    (baseline,) = runs()
    other = tmp_path / "other"
    assert script(vjepa_tta, *data, "--adapt-frames", 3, "--out", other) == 0
    assert script(compare, baseline, other, "--out", tmp_path / "report") == 2
    assert "--adapt-frames (half there, 3 here)" in capsys.readouterr().err


def test_a_sweep_submits_one_task_where_clips_go_on(data, script, tmp_path, capsys):
    (tmp_path / "both.yaml").write_text(SWEEP)
    flags = [tmp_path / "both.yaml", *data, "--out", tmp_path / "out"]
    assert script(sweep, *flags, "--slurm", "--dry-run") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "sbatch" in line]
    assert all("sbatch/vjepa_tta.sbatch" in line for line in lines[:3])
    arrays = [re.search(r"--array=(\S+)", line)[1] for line in lines[:3]]
    assert arrays == ["0-7", "0-7", "0-0"]  # one that goes on from clip to clip is one task


@pytest.mark.slow  # three runs and a report in processes of their own
def test_a_sweep_runs_here_and_is_compared(data, script, tmp_path, capsys):
    (tmp_path / "both.yaml").write_text(SWEEP)
    flags = [tmp_path / "both.yaml", *data, "--out", tmp_path / "out"]
    command = [sys.executable, "sweep.py", *map(str, flags), "--local"]  # which forks
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1 (carried over) helps: " in done.stdout
    assert script(sweep, *flags[:1], "--out", tmp_path / "out", "--status") == 0
    assert capsys.readouterr().out.count("  9     0        0        0") == 3


def test_a_sweep_without_settings_names_those_of_clips(script, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sweeps.settings.ROOT", tmp_path)
    (tmp_path / "both.yaml").write_text(SWEEP)
    assert script(sweep, tmp_path / "both.yaml", "--local", "--out", tmp_path / "out") == 2
    assert "write PREDICTOR=... into sbatch/site.sh" in capsys.readouterr().err


def test_a_job_takes_predictor_and_clips_from_the_site_file(tmp_path):
    (tmp_path / "sbatch").mkdir()
    shutil.copy(ROOT / "sbatch" / "job.sh", tmp_path / "sbatch")
    (tmp_path / "vjepa_tta.py").write_text("import sys\nprint(*sys.argv[1:])\n")
    command = ["bash", "sbatch/job.sh", "vjepa_tta.py", "--preset", "extended"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {"PATH": path, "SLURM_JOB_ID": "1"}

    def job():
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    assert job().returncode == 2 and "write PREDICTOR=... into" in job().stderr
    text = "CHECKPOINT=dit\nVIDEOS=list.csv\nPREDICTOR=p\nCLIPS=c\nOUT=r\n"
    (tmp_path / "sbatch" / "site.sh").write_text(text)
    flags = "--checkpoint p --videos c --out r/vjepa_tta_preset_extended --shard 0/1"
    assert job().stdout.splitlines()[-1] == f"--preset extended {flags}"
