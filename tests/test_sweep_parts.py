"""Sweeps that choose their settings on other shifts and sources than those they report, and whoever
tries to mix the two."""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from folders import change, make_run
from test_prepare import pan, write_avi
from test_run import ROOT

import compare
import sweep
from common.data import sha256
from common.errors import UsageError
from prepare import shift
from report.chosen import reported
from report.rows import read_rows
from runs.lists import list_videos
from sweeps import started
from sweeps.lists import Lists, shared_out
from sweeps.rows import read_sweep

NANO, DEMO = ROOT / "nano" / "checkpoint", ROOT / "nano" / "demo" / "manifest.csv"
TWO = """
baseline: adasteer.py
shared: --no-generate --steps 1 --future-draws 1
choose: {shifts: [noise 2, blur 1], sources: 25 %}
report: {shifts: [clean, dark 3], sources: 75 %}
rows:
  - name: adasteer_lr{lr}
    script: adasteer.py
    flags: --lr {lr}
    over: {lr: [1e-3, 1e-2]}
  - {name: delta_c, script: delta_c.py}
"""


ONLY_CLEAN = TWO.replace("noise 2, blur 1", "clean").replace("clean, dark 3", "clean")


def write(tmp_path, text=TWO):
    path = tmp_path / "two.yaml"
    path.write_text(text)
    return path


def test_a_prompt_of_all_rows_is_in_the_captions_of_the_lists(tmp_path):
    shutil.copy(DEMO.parent / "scene_0.mp4", tmp_path)
    shutil.copy(DEMO.parent / "scene_1.mp4", tmp_path)
    for prompt in ("--prompt 'a toy'", "--prompt='a toy'"):
        text = ONLY_CLEAN.replace("shared:", f"shared: {prompt}")
        flags = (), ["--checkpoint", str(NANO), "--videos", str(tmp_path)]
        path, out = write(tmp_path, text), tmp_path / "out"
        Lists.of(path, out, *flags).make()
        rows, _ = read_sweep(path, out, *flags)
        for row in rows:  # what a run does first
            (video,), _ = list_videos(row.args.videos, row.args.prompt)
            assert video.caption == "a toy"
    own = ONLY_CLEAN.replace("--lr {lr}", "--lr {lr} --prompt toys")
    with pytest.raises(UsageError, match="--prompt 'toys': the clips are the same for all rows"):
        read_sweep(write(tmp_path, own), out, *flags)


def test_rows_of_a_set_are_its_lists_and_share_its_baseline(tmp_path):
    rows, unfit = read_sweep(write(tmp_path), tmp_path, (), ["--videos", "x.csv"])
    sets = ["choose_noise-2", "choose_blur-1", "report_clean", "report_dark-3"]
    own = ["baseline", "adasteer_lr1e-3", "adasteer_lr1e-2", "delta_c"]
    assert [row.name for row in rows] == [f"{name}_{row}" for name in sets for row in own]
    assert not unfit
    for row in rows:
        name = next(name for name in sets if row.name.startswith(name))
        assert row.args.videos == tmp_path / "lists" / f"{name}.csv" and name.startswith(row.part)
        assert "x.csv" not in row.flags
        assert row.baseline in (None, f"{name}_baseline")


WRONG = {
    "noise in choose and in report: settings would be chosen on a shift": ("dark 3", "noise 4"),
    "choose and report want 105 % of the sources": ("25 %", "30 %"),
    "has choose and no report; settings need both": ("report: {sh", "# {sh"),
    "report of the file has no sources": (", sources: 75 %", ""),
    "got 'fog 1'; kinds are noise, blur,": ("blur 1", "fog 1"),
    "got 'blur 6'": ("blur 1", "blur 6"),
    "got 'blur'": ("blur 1", "blur"),
    "each once, got 'noise 2'": ("blur 1", "noise 2"),
    "shifts of choose of the file must be a list": ("[noise 2, blur 1]", "{}"),
    "sources of choose of the file must be a share as 25 %, got 'some'": ("25 %", "some"),
    "must be a share as 25 %, got '100 %'": ("25 %", "100 %"),
    "choose and report are for runs on videos": ("baseline: adasteer.py", "baseline: vjepa_tta.py"),
}


@pytest.mark.parametrize("message", WRONG)
def test_a_file_that_would_leak_or_is_wrong_is_refused(message, script, tmp_path, capsys):
    text = TWO.replace(*WRONG[message])
    if "vjepa" in text:
        rows = "rows:\n  - {name: a, script: vjepa_tta.py, flags: --steps 1}\n"
        text = text.partition("rows:")[0].replace(" --no-generate --steps 1 --future-draws 1", "")
        text = f"{text}{rows}"
    path, out = write(tmp_path, text), tmp_path / "out"
    assert script(sweep, path, "--nano", "--local", "--out", out) == 2
    said = capsys.readouterr().err
    assert message in said and "two.yaml" in said and said.count("\n") == 1 and not out.exists()


def test_sources_are_shared_out_by_their_names():
    names, shares = {f"tape {i}" for i in range(40)}, {"choose": 0.25, "report": 0.75}
    found = shared_out(names, shares)
    assert [len(found[part]) for part in shares] == [10, 30]
    assert found["choose"] | found["report"] == names
    assert shared_out(set(sorted(names, reverse=True)), shares) == found
    few = shared_out(names, {"choose": 0.25, "report": 0.5})
    assert few["choose"] == found["choose"] and few["report"] < found["report"]
    two = shared_out({"a", "b"}, {"choose": 0.01, "report": 0.99})
    assert sorted(map(len, two.values())) == [1, 1] and not two["choose"] & two["report"]
    with pytest.raises(UsageError, match="has 1 source; choose and report need one each"):
        shared_out({"a"}, shares)


def test_lists_of_the_parts_share_no_source(tmp_path, capfd):
    text = TWO.replace("noise 2, blur 1", "dark 1").replace("clean, dark 3", "clean")
    flags = (), ["--checkpoint", str(NANO), "--videos", str(DEMO)]
    lists = Lists.of(write(tmp_path, text), tmp_path / "out", *flags)
    lists.make()
    clean, _ = list_videos(DEMO)
    found = {each.name: list_videos(each.list)[0] for each in lists.sets}
    ids = {name: {video.source for video in videos} for name, videos in found.items()}
    assert not ids["choose_dark-1"] & ids["report_clean"] and len(ids["choose_dark-1"]) == 1
    assert len(ids["report_clean"]) == 3
    for name, videos in found.items():
        for video in videos:
            (own,) = [each for each in clean if each.id == video.id]
            shown = video.path if name == "report_clean" else video.beside["truth"]
            assert shown.samefile(own.path) and video.caption == own.caption
    assert {v.columns["shift"] for v in found["choose_dark-1"]} == {"dark"}
    before = {each.list: each.list.read_bytes() for each in lists.sets}
    capfd.readouterr()
    lists.make()  # goes on with the clips that are there
    assert "clips" not in capfd.readouterr().out
    assert all(path.read_bytes() == content for path, content in before.items())
    for more, words in ((["--gen-frames", "10"], "min_frames"), (["--batch-end", "3"], "list")):
        other = Lists.of(tmp_path / "two.yaml", tmp_path / "out", (), [*flags[1], *more])
        with pytest.raises(UsageError, match=f"dark-1: was made with another {words} "):
            other.make()


def test_a_limit_is_one_of_the_whole_list(tmp_path):
    """What is not run is not encoded either."""
    flags = (), ["--checkpoint", str(NANO), "--videos", str(DEMO), "--batch-end", "3"]
    lists = Lists.of(write(tmp_path, ONLY_CLEAN), tmp_path / "out", *flags)
    lists.make()
    assert len(list_videos(lists.all)[0]) == 3
    assert [len(list_videos(each.list)[0]) for each in lists.sets] == [1, 2]


LISTS = {  # sources and shift of each set
    "choose_noise-2": (["a", "b"], "noise"), "choose_blur-1": (["a", "b"], "blur"),
    "report_clean": (["c", "d", "e"], None), "report_dark-3": (["c", "d", "e"], "dark"),
}  # fmt: skip
GAINS = {  # in dB, of lr 1e-3 and 1e-2
    "choose_noise-2": (0.5, 1.0), "choose_blur-1": (1.0, 0.2),
    "report_clean": (0.1, 9.0), "report_dark-3": (0.2, 9.0),
}  # fmt: skip


def swept(folder, lists=None, gains=None):
    """A sweep's folder with all its runs."""
    rows = []
    for name, (sources, kind) in {**LISTS, **(lists or {})}.items():
        for lr, gain in ((None, 0.0), *zip((1e-3, 1e-2), (gains or GAINS)[name], strict=True)):
            own = f"{name}_{'baseline' if lr is None else f'lr{lr}'}"
            run = make_run(
                folder / own, [gain] * len(sources), steps=0 if lr is None else 5,
                sources=sources, **({} if lr is None else {"lr": lr}),
            )  # fmt: skip
            change(run / "config.json", lambda config, n=name: config.update(manifest_sha256=n))
            for path in (run / "videos").glob("*.json"):
                change(path, lambda record, n=name, s=kind: mark(record, n, s))
            row = {"name": own, "baseline": None, "over": {}, "template": ""}
            if lr is not None:
                row |= {"baseline": f"{name}_baseline", "over": {"lr": lr}, "template": "lr{lr}"}
            rows.append(row | dict(zip(("part", "shift"), name.split("_"), strict=True)))
    (folder / "sweep.json").write_text(json.dumps({"rows": rows}))
    return folder


def mark(record, name, shift):
    """The clip's own file, and the shift that it is under."""
    record["video_sha256"] = f"{record['source']} {name}"
    if shift:
        record["columns"] |= {"shift": shift, "truth_sha256": record["source"]}


def test_the_setting_is_chosen_on_one_part_and_reported_on_the_other(tmp_path, script):
    """lr 1e-2 is the best on one of two shifts, and on what is reported: that does not count."""
    swept(tmp_path)
    kept, notes = reported(tmp_path, read_rows(tmp_path))
    names = [
        f"{name}_{own}" for name in LISTS if "report" in name for own in ("baseline", "lr0.001")
    ]
    assert [row["name"] for row in kept] == names
    assert notes == [
        "settings were chosen on other shifts and sources than those reported: on blur, noise, 2 "
        "sources",
        "lr{lr}: mean gain in psnr_db where it was chosen: lr 0.001 +0.75 (chosen); lr 0.01 +0.60",
    ]
    assert script(compare, "--sweep", tmp_path, "--out", tmp_path / "report") == 0
    found = json.loads((tmp_path / "report" / "results.json").read_text())
    assert list(found["comparisons"]) == ["report_clean_baseline", "report_dark-3_baseline"]
    tables = found["comparisons"]["report_dark-3_baseline"]["tables"]["psnr_db"]
    assert [row["method"] for row in tables][:2] == names[2:]
    assert tables[1]["gain"] == pytest.approx(0.2)
    assert found["notes"] == notes
    (shifts,) = found["shifts"].values()  # no run here has a clean truth
    (gains,) = shifts.values()
    assert {k: v["gain"] for k, v in gains.items()} == pytest.approx({"clean": 0.1, "dark-3": 0.2})
    text = (tmp_path / "report" / "table.md").read_text()
    assert "| method | clean, 3 sources | dark-3, 3 sources |" in text
    assert "| lr0.001 | +0.10 (too few) | +0.20 (too few) |" in text
    page = (tmp_path / "report" / "index.html").read_text()
    assert page.index("+0.20 (too few)") < page.index("the same in words")


def test_clean_may_be_in_both_parts_and_is_said(tmp_path):
    swept(tmp_path, {"choose_blur-1": (["a", "b"], None)})
    assert reported(tmp_path, read_rows(tmp_path))[1][0] == (
        "settings were chosen on other shifts (but for clean) and sources than those reported: on "
        "clean, noise, 2 sources"
    )


def test_a_control_is_reported_at_the_setting_of_what_it_is_a_control_of(tmp_path):
    """However well another setting of its own does."""
    rows = read_rows(swept(tmp_path))
    for row in [row for row in rows if row["baseline"] and row["part"] == "report"]:
        own = row["name"].replace("lr", "random")
        folder = shutil.copytree(tmp_path / row["name"], tmp_path / own)
        change(folder / "config.json", lambda config: config["arguments"].update(control="random"))
        for path in (folder / "videos").glob("*.json"):
            lr = row["over"]["lr"]
            change(path, lambda record, lr=lr: record.update(psnr_db=30 + 100 * lr))
        rows.append(row | {"name": own, "template": "random{lr}", "control_of": row["name"]})
    kept, notes = reported(tmp_path, rows)
    names = [f"{part}_{own}0.001" for own in ("lr", "random") for part in [*LISTS][2:]]
    assert [row["name"] for row in kept if row["baseline"]] == names
    assert len(notes) == 2 and notes[1].startswith("lr{lr}: ")


def test_a_setting_without_results_on_every_shift_is_not_chosen(tmp_path):
    swept(tmp_path)
    (tmp_path / "choose_blur-1_lr0.001" / "config.json").unlink()
    kept, _ = reported(tmp_path, read_rows(tmp_path))
    assert {row["over"].get("lr") for row in kept} == {None, 0.01}
    (tmp_path / "choose_noise-2_lr0.01" / "config.json").unlink()
    with pytest.raises(UsageError, match="no setting can be chosen yet: none has results on every"):
        reported(tmp_path, read_rows(tmp_path))


LEAKS = {
    "the source 'b' was used to choose": {"report_clean": (["b", "d", "e"], None)},
    "the shift 'noise' was used to choose": {"report_dark-3": (["c", "d", "e"], "noise")},
}


@pytest.mark.parametrize("message", LEAKS)
def test_who_reports_what_settings_were_chosen_on_is_refused(message, tmp_path, script, capsys):
    swept(tmp_path, LEAKS[message])
    assert script(compare, "--sweep", tmp_path, "--out", tmp_path / "report") == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and not (tmp_path / "report").exists()


def test_a_clip_under_the_name_of_another_source_is_refused(tmp_path):
    swept(tmp_path)
    path = next((tmp_path / "choose_blur-1_baseline" / "videos").glob("*.json"))
    change(path, lambda record: record["columns"].update(truth_sha256="c"))  # reported as source c
    with pytest.raises(
        UsageError, match="the file 'c' was used to choose settings and is reported"
    ):
        reported(tmp_path, read_rows(tmp_path))


@pytest.mark.parametrize("kind", ["flip", "noise"])
def test_a_shifted_clip_is_known_by_its_original(kind, tmp_path, monkeypatch):
    """prepare.shift writes it anew, at another size the clean one too."""
    swept(tmp_path)
    file = tmp_path / "own.avi"
    write_avi(file, pan(1, 12))
    flags = ["--kind", kind, "--severity", "1", "--size", "16x16", "--min-frames", "4"]
    argv = ["shift", str(file), *flags, "--out", str(tmp_path / "shifted")]
    monkeypatch.setattr(sys, "argv", argv)
    assert shift.main() == 0
    (video,) = list_videos(tmp_path / "shifted" / "manifest.csv", allow_empty=True)[0]
    for path in tmp_path.glob("choose_blur-1_*/videos/v000.json"):
        change(path, lambda record: record.update(columns=video.columns, video_sha256="new"))
    for path in tmp_path.glob("report_clean_*/videos/v000.json"):
        change(path, lambda record: record.update(video_sha256=sha256(file)))
    with pytest.raises(UsageError, match=f"the file '{sha256(file)}' was used to choose"):
        reported(tmp_path, read_rows(tmp_path))


def test_a_column_of_the_lists_own_is_no_shift(tmp_path):
    swept(tmp_path, {"choose_blur-1": (["a", "b"], None)})
    for pattern in ("choose_blur-1_*", "report_clean_*"):
        for path in tmp_path.glob(f"{pattern}/videos/*.json"):
            change(path, lambda record: record["columns"].update(shift="day"))
    _, notes = reported(tmp_path, read_rows(tmp_path))
    assert "on clean, noise, 2 sources" in notes[0]


def test_choosing_on_the_reported_runs_is_refused(tmp_path):
    """By hand, in sweep.json: the rows of `report` stand in for those of `choose`."""
    swept(tmp_path)
    rows = read_rows(tmp_path)
    own = [row for row in rows if row["part"] == "report"]
    copies = [row | {"part": "choose"} for row in own]
    with pytest.raises(UsageError, match="was used to choose settings and is reported"):
        reported(tmp_path, [*copies, *own])


def test_status_says_when_the_reported_rows_begin(tmp_path, script, capsys):
    path, out = write(tmp_path, ONLY_CLEAN), tmp_path / "out"
    assert script(sweep, path, "--nano", "--dry-run", "--out", out) == 0
    assert capsys.readouterr().out.count(f"{out}/lists/choose_clean.csv") == 4 and not out.exists()
    assert script(sweep, path, "--nano", "--status", "--out", out) == 0
    said = capsys.readouterr().out
    assert "lists" in said and "not made yet" in said and not out.exists()
    flags = ["--checkpoint", str(NANO), "--videos", str(DEMO)]
    Lists.of(path, out, (), flags).make()
    (out / "sweep.json").write_text(json.dumps({"flags": ["--nano"]}))
    assert script(sweep, path, "--status", "--out", out) == 0
    said = capsys.readouterr().out
    assert "report" in said.splitlines()[-1] and "begins when those of choose are done" in said
    assert "report_clean_" not in said


def test_the_queue_gets_the_rows_to_choose_on_first(tmp_path, script, monkeypatch, capsys):
    """With a queue that takes everything and runs nothing."""
    for name, line in (("sbatch", "echo $RANDOM"), ("squeue", "true")):
        (tmp_path / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.chdir(ROOT)
    assert (
        script(sweep, write(tmp_path, ONLY_CLEAN), "--nano", "--slurm", "--out", tmp_path / "out")
        == 0
    )
    said = capsys.readouterr().out
    assert said.count("sbatch --parsable") == 4 == said.count("--job-name=choose_clean_")
    assert "compare.sbatch" not in said and "the same command submits those that are" in said


def test_videos_that_the_choice_lacks_show_in_the_exit_code(tmp_path, monkeypatch):
    """With a machine that does nothing, and all videos of the first rows done or one skipped."""
    rows, _ = read_sweep(write(tmp_path, ONLY_CLEAN), tmp_path, (), ["--videos", str(DEMO)])
    args = argparse.Namespace(slurm=False, jobs=None)
    monkeypatch.setattr(started, "is_finished", lambda row: True)
    for complete, code, expected in ((True, 0, 0), (True, 3, 3), (False, 0, 3), (False, 1, 1)):
        monkeypatch.setattr(started, "is_complete", lambda row, complete=complete: complete)
        monkeypatch.setattr(started, "run_here", lambda *_, code=code: code)
        assert started.start_parts(args, tmp_path, rows, None, lambda out: []) == expected


@pytest.mark.slow  # seven runs of nano: two minutes
def test_a_sweep_chooses_and_reports(tmp_path):
    text = TWO.replace("noise 2, blur 1", "noise 2").replace("clean, dark 3", "dark 3")
    path, out = write(tmp_path, text), tmp_path / "out"
    words = [sys.executable, ROOT / "sweep.py", path, "--nano", "--local", "--out", out]
    done = subprocess.run([*map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    begun = {each.parent.name for each in out.glob("*/config.json")}
    assert len([name for name in begun if name.startswith("choose_")]) == 4
    assert len([name for name in begun if name.startswith("report_dark-3_adasteer")]) == 1
    assert len(begun) == 7  # and a baseline and Delta-C
    found = json.loads((out / "report" / "results.json").read_text())
    assert list(found["comparisons"]) == ["report_dark-3_baseline"]
    assert "future_loss_clean" in found["comparisons"]["report_dark-3_baseline"]["tables"]
    assert list(found["shifts"]) == ["future_loss", "future_loss_clean"]
    (first,), (second,) = (
        [c["dark-3"]["gain"] for c in t.values()][:1] for t in found["shifts"].values()
    )
    assert first != second
    again = subprocess.run([*map(str, words)], capture_output=True, text=True)
    assert again.returncode == 0 and "[1/3]" in again.stdout and "video" in again.stdout
    (chosen,) = out.glob("report_dark-3_adasteer*")
    shutil.rmtree(chosen)  # as if it had not begun
    words[words.index("--local")] = "--status"
    shown = subprocess.run([*map(str, words)], capture_output=True, text=True).stdout
    assert re.search(rf"{chosen.name} +0 +0 +0 +[1-9]", shown)
    assert len(re.findall("report_dark-3_adasteer", shown)) == 1
