"""What a run says at its end, and what it knows of its baseline."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys

import av
import numpy as np
import pytest
from cluster import wait_for
from folders import change
from test_run import QUICK, ROOT, demo_rows, finished_run, results, write_manifest
from workers import start_worker

import adasteer
import compare

TWO = [*QUICK, "--limit", 2]


@pytest.fixture(scope="module")
def unadapted(tmp_path_factory):
    out = tmp_path_factory.mktemp("unadapted") / "out"
    return finished_run(out, *TWO, "--steps", 0, "--save-frames")


@pytest.fixture
def baseline(unadapted, tmp_path):
    """A copy, which a test may change."""
    return shutil.copytree(unadapted, tmp_path / "baseline")


def commands(text):
    """The lines to copy, as words, without the Python that runs them."""
    return [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("    ")]


def test_the_commands_it_ends_with_lead_to_a_report(tmp_path, script, capsys):
    script(adasteer, *TWO, "--lr", 1e-2, "--out", tmp_path / "mine")
    base, report = commands(capsys.readouterr().out)
    assert base[0] == "adasteer.py" and "--lr" not in base  # which is the adaptation's
    assert base[base.index("--steps") :] == ["--steps", "0", "--out", str(tmp_path / "baseline")]
    assert report[0] == "compare.py"
    assert script(adasteer, *base[1:]) == script(compare, *report[1:]) == 0
    assert (tmp_path / "report" / "index.html").is_file()


@pytest.mark.slow
def test_the_commands_work_from_another_folder(tmp_path):
    """And where the Python on the path is another."""
    flags = [*TWO, "--no-generate", "--future-draws", 1, "--out", "mine"]
    line = list(map(str, [sys.executable, ROOT / "adasteer.py", *flags]))
    env = {**os.environ, "PATH": "/usr/bin:/bin"}
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    for line in [x for x in done.stdout.splitlines() if x.startswith("    ")]:
        assert subprocess.run(shlex.split(line), cwd=tmp_path, env=env).returncode == 0
    assert (tmp_path / "report" / "index.html").is_file()


def test_the_commands_fit_an_early_anchor(tmp_path, script, capsys):
    flags = [*TWO[2:], "--no-generate", "--anchor", 16, "--tta-frames", 13, "--context-latents", 2]
    assert script(adasteer, *flags, "--steps", 1, "--out", tmp_path / "mine") == 0
    base, _ = commands(capsys.readouterr().out)
    assert script(adasteer, *base[1:]) == 0
    shutil.rmtree(tmp_path / "mine")
    assert script(adasteer, *base[1:]) == 0  # all is done
    adapt, _ = commands(capsys.readouterr().out.split("next: ")[-1])
    assert script(adasteer, *adapt[1:]) == 0


def test_of_a_baseline_it_says_how_to_adapt(baseline, tmp_path, script, capsys):
    script(adasteer, *TWO, "--steps", 0, "--out", baseline)  # all is done
    said = capsys.readouterr().out
    assert "repeating the last frame" in said
    adapt, report = commands(said)
    assert "--steps" not in adapt and adapt[-1] == report[2] == str(tmp_path / "adasteer")
    assert script(adasteer, *map(str, adapt[1:])) == 0


def test_means_are_shown_beside_the_baselines(baseline, tmp_path, script, capsys):
    script(adasteer, *TWO, "--lr", 0.1, "--out", tmp_path / "mine")
    said = capsys.readouterr().out
    runs = [results(tmp_path / name).values() for name in ("baseline", "mine")]
    changes = [r["future_loss"] / r["future_loss_before"] - 1 for r in runs[1]]
    assert f"({50 * sum(changes):+.1f} %)  lower is better" in said
    before, after = (sum(r["psnr_db"] for r in run) / 2 for run in runs)
    assert (
        f"PSNR                     {before:.2f} -> {after:.2f} dB ({after - before:+.2f})" in said
    )
    repeated = sum(r["references"]["repeat_last"]["psnr_db"] for r in runs[0]) / 2
    assert f"repeating the last frame {repeated:.2f}" in said
    assert commands(said) == [
        ["compare.py", str(baseline), str(tmp_path / "mine"), "--out", str(tmp_path / "report")]
    ]


def test_only_the_videos_that_both_have_are_compared(baseline, tmp_path, script, capsys):
    (baseline / "videos" / "scene_1.json").unlink()
    script(adasteer, *TWO, "--out", tmp_path / "mine")
    before = results(baseline)["scene_0"]["psnr_db"]
    after = results(tmp_path / "mine")["scene_0"]["psnr_db"]
    said = capsys.readouterr().out
    assert f"{before:.2f} -> {after:.2f} dB" in said
    assert "scores are those of the 1 video that the baseline has done too" in said


def test_how_far_frames_moved_from_the_baselines(baseline, tmp_path, script, capsys):
    flags = ["--save-frames", "--baseline", baseline]
    script(adasteer, *TWO, "--lr", 0.1, *flags, "--out", tmp_path / "mine")
    for name, record in results(tmp_path / "mine").items():
        frames = [np.load(x / "videos" / f"{name}.npz")["generated"].astype(float)
                  for x in (baseline, tmp_path / "mine")]  # fmt: skip
        expected = np.sqrt(np.mean((frames[1] - frames[0]) ** 2))
        assert record["moved_from_baseline"] == pytest.approx(expected) and expected > 0
    assert "of 255 levels" in capsys.readouterr().out


def test_unmoved_frames_and_frames_that_were_not_kept(baseline, tmp_path, script):
    flags = [*TWO, "--lr", 1e-30, "--baseline", baseline]
    (baseline / "videos" / "scene_1.npz").unlink()
    script(adasteer, *flags, "--out", tmp_path / "mine")
    found = results(tmp_path / "mine")
    assert [found[f"scene_{i}"]["moved_from_baseline"] for i in (0, 1)] == [0, None]


def test_frames_of_the_baseline_that_cannot_be_read(baseline, tmp_path, script, capsys):
    path = baseline / "videos" / "scene_0.npz"
    path.write_bytes(path.read_bytes()[:1000])
    flags = [*TWO, "--baseline", baseline, "--out", tmp_path / "mine"]
    assert script(adasteer, *flags) == 2
    assert f"--baseline {baseline}: scene_0.npz cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, why",
    [
        (["--baseline", "nowhere"], "is no run's folder"),
        (["--seed", 1], "--seed is 42 there, 1 here"),
        (["--sampling-steps", 3], "--sampling-steps is 2 there, 3 here"),
        (["--no-generate"], "--no-generate is False there, True here"),
    ],
)
def test_another_runs_baseline_is_refused(flags, why, baseline, tmp_path, script, capsys):
    flags = ["--baseline", baseline, *flags, "--out", tmp_path / "mine"]
    assert script(adasteer, *TWO, *flags) == 2
    assert why in capsys.readouterr().err


def test_a_run_that_adapts_is_no_baseline(baseline, tmp_path, script, capsys):
    change(baseline / "config.json", lambda config: config["arguments"].update(steps=3))
    flags = ["--baseline", baseline, "--out", tmp_path / "mine"]
    assert script(adasteer, *TWO, *flags) == 2
    assert "adapts" in capsys.readouterr().err


def test_losses_before_and_after_are_of_the_same_draws(tmp_path, script, capsys):
    """Before: the preflight's. Where nothing moves they are equal to the last bit."""
    for name, rate in (("still", 1e-30), ("moved", 1e-1)):
        script(adasteer, *TWO, "--no-generate", "--lr", rate, "--out", tmp_path / name)
    said = capsys.readouterr().out
    for name, record in results(tmp_path / "still").items():
        assert record["fixed_loss_before"] == record["preflight"]["loss"]
        assert record["fixed_loss_after"] == record["fixed_loss_before"]
        moved = results(tmp_path / "moved")[name]
        assert moved["fixed_loss_before"] == record["fixed_loss_before"]
        assert moved["fixed_loss_after"] != record["fixed_loss_before"]
        before, after = moved["fixed_loss_before"], moved["fixed_loss_after"]
        assert f"{name}: loss {before:.4f} -> {after:.4f} (" in said


def test_a_skipped_video_is_said_once(tmp_path, script, capsys):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    path = write_manifest(tmp_path / "list.csv", [("broken.mp4", "x"), demo_rows()[1]])
    assert script(adasteer, *QUICK, "--videos", path, "--out", tmp_path / "out") == 3
    said = capsys.readouterr()
    assert (said.out + said.err).count("cannot be opened as a video") == 1
    assert "1 video skipped, summary.json has the reasons: broken" in said.out


def test_a_stopped_run_has_a_summary(tmp_path):
    said = tmp_path / "said"
    worker = start_worker(said, "--out", tmp_path, "--sampling-steps", 5)
    assert wait_for(lambda: said.is_file() and "scene_0: loss" in said.read_text(), 300)
    os.kill(worker.pid, signal.SIGINT)
    worker.join(300)
    assert worker.exitcode == 75
    done = len([r for r in results(tmp_path).values() if r["status"] == "done"])
    assert json.loads((tmp_path / "summary.json").read_text())["videos_done"] == done >= 1


def test_the_mp4_has_words_and_is_long_enough_to_see(baseline):
    with av.open(str(baseline / "videos" / "scene_0.mp4")) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert len(frames) / stream.average_rate >= 4 and len(frames) % 27 == 0
    height, width = frames[0].shape[:2]
    orange = [f[: height // 8, width // 2 :].astype(int) for f in (frames[12], frames[13])]
    given, generated = ((np.ptp(each, axis=2) > 100).any() for each in orange)
    assert generated and not given


def test_a_notebook_runs_what_the_readme_says(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (code,) = [block for block in blocks if "runs.parse_args" in block]
    monkeypatch.chdir(tmp_path)
    exec(code, {"__name__": "__main__"})
    (record,) = results(tmp_path / "results" / "notebook").values()
    assert record["kept"] == "adapted" and record["psnr_db"] > 10


def test_a_baseline_that_comes_after_is_compared_with_what_is_there(tmp_path, script, capsys):
    for name, flags in (("mine", []), ("other_seed", ["--seed", 1]), ("baseline", ["--steps", 0])):
        script(adasteer, *TWO, "--no-generate", *flags, "--out", tmp_path / name)
    *_, last = commands(capsys.readouterr().out)
    folders = [str(tmp_path / name) for name in ("baseline", "mine", "report")]
    assert last == ["compare.py", *folders[:2], "--out", folders[2]]


def test_a_baseline_that_takes_more_time_is_compared_as_a_control(
    baseline, tmp_path, script, capsys
):
    assert script(adasteer, *TWO, "--out", tmp_path / "mine") == 0
    capsys.readouterr()
    flags = ["--steps", 0, "--best-of", 3, "--out", tmp_path / "best"]
    assert script(adasteer, *TWO, *flags) == 0
    (report,) = commands(capsys.readouterr().out)
    assert report[1:4] == [str(tmp_path / name) for name in ("baseline", "mine", "best")]
    assert script(compare, *report[1:]) == 0
    assert "mine beside its controls" in capsys.readouterr().out


def test_a_report_is_whole_when_nobody_reads_what_is_printed(baseline, tmp_path):
    command = [sys.executable, ROOT / "compare.py", baseline, "--out", tmp_path / "report"]
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        subprocess.run([*map(str, command)], stdout=closed, stderr=subprocess.DEVNULL)
    assert (tmp_path / "report" / "index.html").read_text().rstrip().endswith("</html>")
    assert (tmp_path / "report" / "table.md").is_file()
