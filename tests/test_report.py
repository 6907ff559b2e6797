"""Statistics with known answers, what can be compared and what is refused, tables and figures."""

import csv
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from folders import make_run, runs_in
from scipy.stats import wilcoxon
from test_run import ROOT

import compare as compare_script
from common.errors import UsageError
from common.video import write_video
from report import figures
from report.comparison import compare, table
from report.media import chosen_videos
from report.runs import read_runs
from report.swept import telling
from report.table import number


@pytest.fixture
def runs(tmp_path):
    return runs_in(tmp_path)


def test_the_table_is_paired(runs):
    comparison = compare(
        runs(
            ("base", [0] * 12, {"steps": 0}),
            ("better", [0.5, 0.6] * 6, {}),
            ("worse", [-1, -1.2, 0.1] * 4, {"lr": 1e-2}),
        )
    )
    base, better, worse = table(comparison, "psnr_db")
    assert base["gain"] is None and better["mean"] == pytest.approx(base["mean"] + 0.55)
    assert better["gain"] == pytest.approx(0.55) and 0.5 <= better["low"] < 0.55 < better["high"]
    assert better["improved"] == 1 and worse["improved"] == pytest.approx(1 / 3)
    raw = wilcoxon([0.5, 0.6] * 6).pvalue
    assert better["p"] == pytest.approx(2 * raw) and better["worst"] == []
    assert len(worse["worst"]) == 5 and worse["worst"][0] in ("v001", "v004", "v007", "v010")
    assert table(comparison, "lpips") == []
    assert table(comparison, "flow_error_px")[1]["gain"] == 0


def test_runs_that_are_not_exactly_paired_are_noted(runs):
    """The loss before adapting is the baseline's, but on a device that gave other noise."""
    base, same, other = runs(
        ("base", [0] * 3, {"steps": 0, "futures": [0.2] * 3}),
        ("same", [0] * 3, {"futures": [0.1] * 3}),
        ("other", [0] * 3, {"lr": 1e-2, "futures": [0.1] * 3}),
    )
    for run, share in ((same, 1.001), (other, 1.003)):
        run.done["v001"]["future_loss_before"] *= share
    found = [note for note in compare([base, same, other]).notes if "exactly paired" in note]
    assert len(found) == 1 and found[0].startswith("other: before adapting the loss")
    assert "on 1 of 3 videos (by more than 0.2%)" in found[0]


def test_every_table_has_its_references(runs):
    base, run = runs(("base", [0, 0], {"steps": 0}), ("run", [1, 1], {}))
    for i, record in enumerate(base.done.values()):
        record["references"]["repeat_last"] = {"psnr_db": 18.0 + i}
    *_, last = table(compare([base, run]), "psnr_db")
    assert last["method"] == "(last frame repeated)" and last["mean"] == 18.5


def test_seeds_are_averaged_and_are_the_noise_floor(runs):
    found = runs(
        ("base_1", [0, 0, 0], {"steps": 0, "seed": 1}),
        ("base_2", [0, 0, 0], {"steps": 0, "seed": 2}),
        ("run_1", [1, 2, 3], {"seed": 1}),
        ("run_2", [2, 3, 4], {"seed": 2}),
    )
    base, run = table(compare(found), "psnr_db")
    assert base["noise"] == 0 and run["noise"] == pytest.approx(np.sqrt(0.5))
    assert run["gain"] == pytest.approx(2.5) and run["method"] == "run_*"


def test_numbers_keep_digits_that_count():
    assert [number(x) for x in (0.0004, 0.25, 12.3456, 0)] == ["0.0004", "0.250", "12.35", "0.000"]
    assert number(-0.0123, "+") == "-0.0123" and number(None) == ""


def test_shared_videos_only_and_what_is_missing(runs):
    found = runs(("base", [0, 0, 0, None], {"steps": 0}), ("run", [1, None, 3, 4], {}))
    comparison = compare(found)
    assert comparison.videos == ["v000", "v002"]
    notes = "\n".join(comparison.notes)
    assert "2 of 4 videos are in every run" in notes and "run lacks 1 videos: too short" in notes
    found[1].done["v000"]["diverged"] = True
    assert "run: adaptation diverged on 1 of 3 videos" in "\n".join(compare(found).notes)


MISMATCHES = {
    "no seed .* base has 42; run has 43": {"seed": 43},
    "--anchor .32 there, 48 here": {"anchor": 48},
    "--gen-frames": {"gen_frames": 4},
    "--guidance-scale .None there, 2.0 here": {"guidance_scale": 2.0},
}


@pytest.mark.parametrize("message", MISMATCHES)
def test_runs_that_generate_otherwise_are_refused(message, runs):
    found = runs(("base", [0], {"steps": 0}), ("run", [1], MISMATCHES[message]))
    with pytest.raises(UsageError, match=message):
        compare(found)


@pytest.mark.parametrize("fact", ["manifest_sha256", "checkpoint_sha256"])
def test_other_data_or_weights_are_refused(fact, runs):
    base, run = runs(("base", [0], {"steps": 0}), ("run", [1], {}))
    run.config[fact] = "0" * 64
    with pytest.raises(UsageError, match=f"{fact} .*aaaa|{fact} .*bbbb"):
        compare([base, run])
    run.config[fact] = base.config[fact]
    run.done["v000"]["video_sha256"] = "0" * 64
    with pytest.raises(UsageError, match="the file of video v000"):
        compare([base, run])
    run.done["v000"]["video_sha256"] = base.done["v000"]["video_sha256"]
    for each, digest in ((base, "a"), (run, "b")):
        each.done["v000"]["truth_sha256"] = digest * 64
    with pytest.raises(UsageError, match="differ in the truth of video v000"):
        compare([base, run])


def test_one_baseline_is_needed(runs):
    first, second = runs(("a", [0], {"steps": 0}), ("b", [0], {"steps": 0, "lr": 1}))
    with pytest.raises(UsageError, match="got a, b"):
        compare([first, second])
    (other,) = runs(("c", [0], {}))
    with pytest.raises(UsageError, match="got none"):
        compare([other])
    with pytest.raises(UsageError, match="are the same run"):
        compare([first, other, other])


def test_broken_folders(tmp_path, script, capsys):
    def refused(*folders):
        assert script(compare_script, *folders, "--out", tmp_path / "report") == 2
        return capsys.readouterr().err

    base = make_run(tmp_path / "base", [0, 0], steps=0)
    assert "no such folder" in refused(base, tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert "no run; it has no whole config.json" in refused(base, tmp_path / "empty")
    run = make_run(tmp_path / "run", [1, 1])
    config = run / "config.json"
    whole = config.read_text()
    for text in (whole[:50], whole.replace("arguments", "args")):
        config.write_text(text)
        assert str(run) in refused(base, run)
    config.write_text(whole)
    half = make_run(tmp_path / "half", [None, None], lr=1e-2)
    assert "no video of the baseline is done" in refused(
        make_run(tmp_path / "new", [None], steps=0), run
    )
    whole = (run / "videos" / "v001.json").read_text()
    for text in ('{"id": "v001", "status": "do', "[]", whole.replace('"caption"', '"text"')):
        (run / "videos" / "v001.json").write_text(text)
        assert script(compare_script, base, run, "--out", tmp_path / "report") == 0
        assert "run: v001.json is damaged" in capsys.readouterr().out
    assert script(compare_script, base, run, half, "--out", tmp_path / "report") == 0
    said = capsys.readouterr().out
    assert "run: v001.json is damaged" in said and "half lacks 2 videos: too short" in said


def test_tables_are_written(tmp_path, script):
    base = make_run(tmp_path / "base", [0] * 4, steps=0)
    run = make_run(tmp_path / "run", [1, 2, 3, -4])
    assert script(compare_script, base, run, "--out", tmp_path / "report") == 0
    with open(tmp_path / "report" / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["metric"] for row in rows} >= {"psnr_db", "ssim", "flow_error_px"}
    found = json.loads((tmp_path / "report" / "results.json").read_text())
    assert found["comparisons"]["runs"]["tables"]["psnr_db"][1]["gain"] == pytest.approx(0.5)
    assert (
        "| run | +0.500 | too few | 75 % | 4 | 4 |"
        in (tmp_path / "report" / "table.md").read_text()
    )
    page = (tmp_path / "report" / "index.html").read_text()
    assert page.count("<svg") >= 6 and "{{" not in page and "http" not in page.replace(
        "http://www.w3.org", ""
    )  # fmt: skip


def test_a_sweep_is_compared_set_by_set(tmp_path, script):
    """Seeds are one set and its noise, other generation settings sets of their own; the figure
    spans them."""
    rows = []
    for seed in (1, 2):
        make_run(tmp_path / f"base_seed{seed}", [0, 0], steps=0, seed=seed)
        make_run(tmp_path / f"run_seed{seed}", [seed, seed], seed=seed)
        rows += [(f"base_seed{seed}", None, {}, "")]
        rows += [(f"run_seed{seed}", f"base_seed{seed}", {"seed": seed}, "run_seed{seed}")]
    for frames in (14, 30):
        make_run(tmp_path / f"base_{frames}", [0, 0], steps=0, gen_frames=frames, anchor=48)
        rows += [(f"base_{frames}", None, {}, "")]
        for lr in (1e-3, 1e-2):
            name = f"gen{frames}_lr{lr}"
            make_run(tmp_path / name, [1, lr], gen_frames=frames, anchor=48, lr=lr)
            rows += [(name, f"base_{frames}", {"gen": frames, "lr": lr}, "gen{gen}_lr{lr}")]
    rows += [("later", "base_14", {}, "later")]
    keys = ("name", "baseline", "over", "template")
    listed = [dict(zip(keys, row, strict=True)) for row in rows]
    make_run(tmp_path / "changed", [9, 9], gen_frames=14, anchor=48, lr=0.5)
    there = json.loads((tmp_path / "changed" / "config.json").read_text())["arguments"]
    changed = {"name": "changed", "baseline": "base_14", "over": {}, "template": "changed"}
    listed.append(changed | {"arguments": there | {"lr": 0.1}})
    (tmp_path / "sweep.json").write_text(json.dumps({"rows": listed}))
    assert script(compare_script, "--sweep", tmp_path, "--out", tmp_path / "report") == 0
    found = json.loads((tmp_path / "report" / "results.json").read_text())
    assert list(found["comparisons"]) == ["base_seed1", "base_14", "base_30"]
    run = found["comparisons"]["base_seed1"]["tables"]["psnr_db"][1]
    assert run["method"] == "run_seed*" and run["noise"] == pytest.approx(np.sqrt(0.5))
    assert found["notes"] == [
        "later: not begun",
        "changed: left out, its folder holds another run (--lr is 0.5 there, 0.1 here)",
    ]
    page = (tmp_path / "report" / "index.html").read_text()
    assert page.count("<h2>gen{gen}_lr{lr}</h2>") == 1 and "<h2>run_seed{seed}" not in page


def test_flags_that_only_follow_another_are_no_axis():
    values = [
        {"cond": str(c), "context": str(2 * c), "groups": str(g)} for c in (1, 2) for g in (1, 4)
    ]
    assert telling(values) == ["cond", "groups"]
    assert telling(values[:2]) == ["groups"] and telling(values[:1]) == []


def test_runs_of_one_name_are_told_apart(tmp_path):
    paths = [make_run(tmp_path / a / "run", [0]) for a in "xy"] + [make_run(tmp_path / "z", [0])]
    assert [run.name for run in read_runs(paths)][:2] == ["x/run", "y/run"]
    assert read_runs(paths[:1])[0].name == "run"


def test_shown_clips_are_best_worst_and_between(runs):
    comparison = compare(runs(("base", [0] * 5, {"steps": 0}), ("run", [3, 1, 5, 2, 4], {})))
    assert chosen_videos(comparison, "psnr_db", 3) == ["v002", "v000", "v001"]
    assert len(chosen_videos(comparison, "psnr_db", 9)) == 5


def test_pareto():
    points = [(0, 0), (1, 2), (2, 1), (3, 3)]
    assert figures.pareto(points) == [(0, 0), (1, 2), (3, 3)]


@pytest.mark.slow
def test_a_hundred_videos_and_ten_runs(tmp_path):
    """Under 20 seconds and 1 GB, everything included."""
    generator = np.random.default_rng(0)
    names = [tmp_path / f"run_{i}" for i in range(10)]
    for i, name in enumerate(names):
        sources = [f"s{j // 4}" for j in range(100)]
        gains, losses = generator.normal(0.1 * i, 1, 100), generator.normal(0.2, 0.01, 100)
        make_run(name, list(gains), 5 * (i > 0), lr=i, sources=sources, futures=list(losses))
    clip = tmp_path / "clip.mp4"
    pictures = F.interpolate(torch.rand(27, 3, 8, 16), (256, 512), mode="bilinear")
    write_video(clip, pictures, 24)
    for name in names:
        for j in range(100):
            os.link(clip, name / "videos" / f"v{j:03d}.mp4")
    measured = (  # not getrusage, which begins with what the parent had
        "import re, runpy, sys; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: sys.exit(re.search('VmHWM.*', open('/proc/self/status').read())[0])"
    )
    flags = [*names, "--out", tmp_path / "report"]
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", measured, *map(str, [ROOT / "compare.py", *flags])],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    seconds, peak = time.perf_counter() - started, int(done.stderr.split()[-2]) / 1e6
    assert (tmp_path / "report" / "index.html").is_file(), done.stderr
    print(f"{seconds:.1f} s, {peak:.2f} GB")
    assert peak < 1.0  # how long it took is printed: machines differ
