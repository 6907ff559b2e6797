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

METRICS = {
    "psnr_db": 20.0, "ssim": 0.6, "lpips": None, "temporal_psnr_db": 25.0, "temporal_ssim": 0.5,
    "flow_error_px": 1.0, "warping_error": 0.1, "truth_warping_error": 0.1,
}  # fmt: skip


def make_run(folder, gains, steps=5, seed=42, sources=None, **arguments):
    """A run's folder as the scripts write it; gains in dB by video, None for a skipped one."""
    videos = folder / "videos"
    videos.mkdir(parents=True)
    flags = {
        "steps": steps, "seed": seed, "lr": 5e-3, "videos": "list.csv", "out": str(folder),
        "checkpoint": "nano", "anchor": 32, "cond_frames": 13, "gen_frames": 14,
    }  # fmt: skip
    config = {
        "method": "AdaSteer", "arguments": flags | arguments, "manifest_sha256": "a" * 64,
        "checkpoint_sha256": "b" * 64,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    for i, gain in enumerate(gains):
        name = f"v{i:03d}"
        record = {"id": name, "source": sources[i] if sources else name, "caption": "a red ball"}
        if gain is None:
            record |= {"status": "skipped", "reason": "too short"}
        else:
            record |= METRICS | {
                "status": "done", "video_sha256": "c" * 64, "columns": {"motion": str(i)},
                "psnr_db": 20 + i % 7 + gain, "psnr_db_per_frame": [22.0 + gain, 20.0, None],
                "losses": [0.5, None, 0.4][:steps], "anchor_losses": [[0, 0.5], [2, 0.4]],
                "stop_step": None, "diverged": False, "kept": "adapted", "seed": seed,
                "preflight": {"loss": 0.4, "zero_loss": 1.5, "negated_loss": 6.0},
                "frame_indices": {"conditioning": [19, 32], "generated": [32, 46]},
                "adapt_seconds": 0.1 * steps, "peak_memory_gb": 1.0, "adapted_parameters": 64,
                "target_values": 12288, "cond_motion": 0.01 * i, "norms": {"d": 1.0},
                "distances": {"d": 1.0},
            }  # fmt: skip
        (videos / f"{name}.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def runs(tmp_path):
    """Gives run folders in a row: (name, gains, flags)."""

    def call(*rows):
        return read_runs([make_run(tmp_path / name, gains, **kw) for name, gains, kw in rows])

    return call


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


def test_every_table_has_its_references(runs):
    base, run = runs(("base", [0, 0], {"steps": 0}), ("run", [1, 1], {}))
    for i, record in enumerate(base.done.values()):
        record["references"] = {
            "repeat_last": {"psnr_db": 18.0 + i}, "reconstruction": {"psnr_db": None}
        }  # fmt: skip
    *_, last = table(compare([base, run]), "psnr_db")
    assert last["method"] == "(last frame repeated)" and last["mean"] == 18.5


def test_lower_is_better_where_it_is(runs):
    base, run = runs(("base", [0, 0], {"steps": 0}), ("run", [0, 0], {}))
    for record in run.done.values():
        record["flow_error_px"] = 0.4
    assert table(compare([base, run]), "flow_error_px")[1]["gain"] == pytest.approx(0.6)


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


def test_seeds_without_a_partner_are_left_out(runs):
    found = runs(
        ("base_1", [0, 0], {"steps": 0, "seed": 1}),
        ("base_2", [None, None], {"steps": 0, "seed": 2}),
        ("run_1", [1, 2], {"seed": 1}),
        ("run_2", [7, 8], {"seed": 2}),
        ("other_2", [7, 8], {"seed": 2, "lr": 0.5}),
    )
    comparison = compare(found[:4])
    assert table(comparison, "psnr_db")[1]["gain"] == pytest.approx(1.5)
    assert "seeds [1, 2], its baseline of [1]; compared at [1]" in "\n".join(comparison.notes)
    assert comparison.baseline.seeds == [1] and comparison.videos == ["v000", "v001"]
    both = compare(found)
    assert [m.name for m in both.methods] == ["run_*"] and "at none" in "\n".join(both.notes)
    with pytest.raises(UsageError, match=r"other_2 has results of the seeds \[2\]"):
        compare([found[0], found[4]])


def test_a_seed_that_no_method_has_takes_no_videos_away(runs):
    found = runs(
        ("base_1", [0, 0, 0], {"steps": 0, "seed": 1}),
        ("base_2", [5, None, None], {"steps": 0, "seed": 2}),
        ("run_1", [1, 2, 3], {"seed": 1}),
    )
    base, run = table(compare(found), "psnr_db")
    assert base["videos"] == 3 and run["mean"] - base["mean"] == pytest.approx(run["gain"])


def test_a_copied_script_is_another_method(runs):
    """`cp adasteer.py my_variant.py`, with the class left as it is called."""
    found = runs(
        ("base_1", [0, 0], {"steps": 0, "seed": 1, "script": "adasteer"}),
        ("base_2", [0, 0], {"steps": 0, "seed": 2, "script": "adasteer"}),
        ("run", [1, 1], {"seed": 1, "script": "adasteer"}),
        ("mine", [-1, -1], {"seed": 2, "script": "my_variant"}),
    )
    gains = {row["method"]: row["gain"] for row in table(compare(found), "psnr_db")}
    assert (gains["run"], gains["mine"]) == (1, -1)


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
    r"run has results of the seeds \[43\], its baseline of \[42\]": {"seed": 43},
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
    assert "| run | 4 |" in (tmp_path / "report" / "table.md").read_text()
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
        make_run(name, list(generator.normal(0.1 * i, 1, 100)), 5 * (i > 0), lr=i, sources=sources)
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
    assert seconds < 20 and peak < 1.0
