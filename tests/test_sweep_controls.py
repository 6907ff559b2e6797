"""Rows of a sweep that take what another has learned, as its controls: which row that is, in which
order they run, and what is refused before anything does."""

import hashlib
import json
import os

import pytest
from folders import make_run
from test_run import ROOT
from test_sweep import write
from test_sweep_parts import DEMO

import sweep
from common.errors import UsageError
from sweeps.controls import lenders, originals
from sweeps.rows import read_sweep
from sweeps.status import status

PLAIN = """
baseline: adasteer.py
shared: --no-generate --steps 1
rows:
  - name: ada_lr{lr}
    script: adasteer.py
    flags: --lr {lr} --save-adapter
    over: {lr: [1e-3, 1e-2]}
  - name: ada_lr{lr}_{control}
    script: adasteer.py
    flags: --steps 0 --adapter "{results}ada_lr{lr}/videos" --control {control}
    over: {lr: [1e-3, 1e-2], control: [random, other]}
  - {name: again, script: adasteer.py, flags: --lr 1e-2 --control random}
"""
PARTS = "choose: {shifts: [clean], sources: 25 %}\nreport: {shifts: [clean, dark 3], sources: 75 %}"
WITH_PARTS = PLAIN.replace("rows:", f"{PARTS}\nrows:")


def rows_of(tmp_path, text, name="out"):
    return read_sweep(write(tmp_path, text), tmp_path / name, (), ["--videos", str(DEMO)])[0]


@pytest.mark.parametrize("name", ["out", "a folder"])
def test_a_control_takes_the_adapters_of_its_method(name, tmp_path):
    rows = rows_of(tmp_path, PLAIN, name)
    controls = [f"ada_lr{lr}_{x}" for lr in ("1e-3", "1e-2") for x in ("random", "other")]
    assert lenders(rows) == {name: name.rpartition("_")[0] for name in controls}
    assert originals(rows) == lenders(rows) | {"again": "ada_lr1e-2"}
    taken = {row.name: row.args.adapter for row in rows if row.args.adapter}
    assert taken[controls[0]] == tmp_path / name / "ada_lr1e-3" / "videos"


def test_controls_run_on_what_is_reported_alone_each_within_its_set(tmp_path):
    rows = rows_of(tmp_path, WITH_PARTS)
    assert [row.name for row in rows if row.part == "choose"] == [
        f"choose_clean_{own}" for own in ("baseline", "ada_lr1e-3", "ada_lr1e-2")
    ]
    found = originals(rows)
    assert len(found) == 10 and len(lenders(rows)) == 8
    for name, original in found.items():
        own = original.removeprefix("report_clean_").removeprefix("report_dark-3_")
        assert name.startswith(original) or (name.endswith("again") and own == "ada_lr1e-2")
    assert {row.shift for row in rows if row.control} == {"clean", "dark-3"}


WRONG = {
    "ada_lr1e-30/videos is of no row above it": ("ada_lr{lr}/videos", "ada_lr{lr}0/videos"),
    "again/videos is of no row above it": ('ada_lr{lr}/videos"', 'again/videos" --lr {lr}'),
    "needs --save-adapter of row 'ada_lr1e-3'": (" --save-adapter", ""),
    "row 'ada_lr1e-3' goes on from video": ("--save-adapter", "--save-adapter --reptile 1"),
    "was saved with --groups 1, here it is 2": ("--steps 0", "--steps 0 --groups 2"),
    "uses 'results', which its `over`": ("name: ada_lr{lr}_{control}", "name: '{results}'"),
    "results is a name of ours": ("over: {lr: [1e-3, 1e-2]}", "over: {lr: [1e-3], results: 5}"),
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG)
def test_what_no_row_lends_is_refused_before_anything_runs(message, script, tmp_path, capsys):
    path, out = write(tmp_path, PLAIN.replace(*WRONG[message])), tmp_path / "out"
    assert script(sweep, path, "--nano", "--local", "--out", out) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and not out.exists()


def test_a_file_with_parts_refuses_what_has_no_setting(tmp_path):
    lost = WITH_PARTS.replace("--lr 1e-2 --control random", "--lr 5e-3 --control random")
    with pytest.raises(UsageError, match="'report_clean_again'|'choose_clean_again'"):
        rows_of(tmp_path, lost)
    taking = WITH_PARTS.replace(" --control {control}", " --lr 0.{control}")
    with pytest.raises(UsageError, match="only rows with --control take adapters of others"):
        rows_of(tmp_path, taking.replace("[random, other]", "[1, 2]"))


def test_a_job_waits_for_that_of_the_adapters(tmp_path, script, monkeypatch, capsys):
    """With a queue that takes everything and runs nothing."""
    queue = f"echo $$ >> {tmp_path}/count; wc -l < {tmp_path}/count"
    listed, cancelled = f"cat {tmp_path}/queued", f"echo $1 >> {tmp_path}/cancelled"
    (tmp_path / "queued").touch()
    for name, line in (("sbatch", queue), ("squeue", listed), ("scancel", cancelled)):
        (tmp_path / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.chdir(ROOT)
    out = tmp_path / "out"
    assert script(sweep, write(tmp_path, PLAIN), "--nano", "--slurm", "--out", out) == 0
    jobs = json.loads((out / "jobs.json").read_text())
    lines = capsys.readouterr().out.splitlines()
    for name in jobs.keys() - {"compare.py"}:
        (line,) = [each for each in lines if f"--job-name={name} " in each]
        lender = jobs.get(name.removesuffix("_random").removesuffix("_other"))
        waits = f"--dependency=afterany:{lender} " if lender != jobs[name] else "--job-name"
        assert waits in line and line.count("--dependency") == (lender != jobs[name])
    (last,) = [line for line in lines if "compare.sbatch" in line]
    assert last.count(":") == len(jobs) - 1
    # the lender's job is gone: its controls, still queued, would not wait for the next one
    gone = "ada_lr1e-3"
    controls = [f"{gone}_random", f"{gone}_other"]
    (tmp_path / "queued").write_text("\n".join(jobs[n] for n in jobs if n != gone))
    assert script(sweep, write(tmp_path, PLAIN), "--nano", "--slurm", "--out", out) == 0
    found = json.loads((out / "jobs.json").read_text())
    ended = {jobs[name] for name in (*controls, "compare.py")}
    assert set((tmp_path / "cancelled").read_text().split()) == ended
    lines = capsys.readouterr().out.splitlines()
    for name in controls:
        (line,) = [each for each in lines if f"--job-name={name} " in each]
        assert f"--dependency=afterany:{found[gone]} " in line and found[gone] != jobs[gone]


@pytest.mark.parametrize("file", ["parts", "controls", "neither"])
def test_another_limit_than_was_shared_out_or_learned_on_is_not_remembered(
    file, tmp_path, script, capsys
):
    neither = "baseline: adasteer.py\nrows: [{name: a, script: adasteer.py, flags: --steps 1}]\n"
    text = {"parts": WITH_PARTS, "controls": PLAIN, "neither": neither}[file]
    path, out = write(tmp_path, text), tmp_path / "out"
    out.mkdir()
    flags = ["--nano", "--local", "--limit", "3"]
    (out / "sweep.json").write_text(json.dumps({"flags": flags}))
    code = script(sweep, path, "--limit", 4, "--dry-run", "--out", out)
    said = capsys.readouterr().err
    if file != "neither":
        assert code == 2 and "--limit 4: " in said and "was started with --limit 3" in said
        assert script(sweep, path, "--limit", 4, "--local", "--out", out) == 2
        assert json.loads((out / "sweep.json").read_text()) == {"flags": flags}
        assert script(sweep, path, "--dry-run", "--out", out) == 0
    else:
        assert code == 0 and "--limit 4" in said


def test_a_limit_with_too_few_sources_is_not_remembered(tmp_path, script, capsys):
    path, out = write(tmp_path, WITH_PARTS), tmp_path / "out"
    assert script(sweep, path, "--nano", "--local", "--limit", 1, "--out", out) == 2
    assert "has 1 source; choose and report need one each" in capsys.readouterr().err
    assert not out.exists()


def test_the_answer_has_every_method_both_ways_and_its_controls(tmp_path):
    text = (ROOT / "sweeps" / "answer.yaml").read_text()
    before, _, parts = text.partition("choose:")  # one list in place of six
    rows = rows_of(tmp_path, before + parts[parts.index("rows:") :])
    carried = {row.script for row in rows if row.args.carry_over == 1}
    known = originals(rows)
    assert len(carried) == 7 == len({row.script for row in rows}) and known == lenders(rows)
    for row in (row for row in rows if row.baseline and not row.control):
        own = {r.control for r in rows if known.get(r.name) == row.name}
        assert own == ({"random"} if row.args.carry_over else {"random", "other"})


def test_what_is_learned_anew_makes_its_controls_missing(tmp_path):
    rows = {row.name: row for row in rows_of(tmp_path, PLAIN)}
    lender, control = rows["ada_lr1e-3"], rows["ada_lr1e-3_random"]
    for row in (lender, control):
        make_run(row.out, 4 * [0.0])
        (row.out / "config.json").unlink()  # its flags are not the row's
        for i, path in enumerate(sorted((row.out / "videos").glob("*.json"))):
            known = hashlib.sha256((DEMO.parent / f"scene_{i}.mp4").read_bytes()).hexdigest()
            record = json.loads(path.read_text()) | {"id": f"scene_{i}", "video_sha256": known}
            path.with_stem(f"scene_{i}").write_text(json.dumps(record))
    adapter = lender.out / "videos" / "scene_0.adapter.safetensors"
    for learned, done, why in ((1e9, 4, ""), (4e9, 0, "was learned anew")):
        adapter.touch()
        os.utime(adapter, (learned, learned))
        found = status(control)
        assert (found["done"], found["missing"]) == (done, 4 - done) and why in found["why"]
    assert status(lender)["done"] == 4
