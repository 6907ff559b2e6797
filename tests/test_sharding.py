"""Several processes of torchrun on one video: the numbers of one process, whatever happens."""

import json
import os
import shutil
import signal
import time

import pytest
from sharded import differences, furthest, our_lines, records, run, start
from test_run import ROOT

import adasteer
import runs
import vjepa_tta
from common.errors import UsageError
from runs.identity import read_config

FLAGS = ["--limit", 1, "--sampling-steps", 2, "--save-adapter"]
FULL, QUICK = ROOT / "full_tta.py", ["--steps", 2, "--limit", 1, "--no-generate"]
METHODS = {
    "adamw": ("full_tta", "--steps", 2, "--limit", 2),
    "sgd": (
        "full_tta", "--steps", 3, "--optimizer", "sgd", "--lr", 1e-2, "--stop-every", 1,
        "--l2-to-start", 0.1, "--ewc", 0.1, "--checkpointing", "all", "--draws", 2,
    ),
    "lora": ("lora_tta", "--steps", 3, "--draws", 2),
    "adasteer": ("adasteer", "--steps", 3, "--groups", 2, "--stop-every", 1),
    "last layer": ("last_layer_tta", "--steps", 2),
}  # fmt: skip


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """A function that gives the folder of a run without torchrun, run once for the same flags."""
    done = {}

    def call(script, *flags):
        if (script, flags) not in done:
            out = done[script, flags] = tmp_path_factory.mktemp("one") / "out"
            run(0, script, *flags, "--out", out)
        return done[script, flags]

    return call


@pytest.mark.slow  # processes are started: ten seconds each on a free machine
@pytest.mark.parametrize("name", METHODS)
def test_two_processes_reproduce_one(name, one_process, tmp_path):
    script, *flags = METHODS[name]
    flags = [*FLAGS, *flags]
    alone = one_process(ROOT / f"{script}.py", *flags)
    run(2, ROOT / f"{script}.py", *flags, "--out", tmp_path)
    assert not differences(records(alone), records(tmp_path))
    assert furthest(alone, tmp_path) < 1e-5


@pytest.mark.slow  # four processes on two cores
def test_four_processes_reproduce_one(one_process, tmp_path):
    flags = ["--steps", 2, "--lr", 1e-4, *FLAGS, "--no-generate"]
    alone = one_process(FULL, *flags)
    run(4, FULL, *flags, "--out", tmp_path)
    assert not differences(records(alone), records(tmp_path)) and furthest(alone, tmp_path) < 1e-5
    (placement,) = [json.loads(p.read_text())["placement"] for p in (tmp_path / "videos").glob("*")
                    if p.suffix == ".json"]  # fmt: skip
    assert placement["processes"] == 4


@pytest.mark.slow  # three processes are started
def test_saved_weights_are_started_from(one_process, tmp_path):
    """Of one process by two, each of which takes its part."""
    saved = one_process(FULL, "--steps", 2, "--lr", 1e-4, *FLAGS, "--no-generate") / "videos"
    flags = ["--adapter", saved, "--steps", 1, "--lr", 1e-4, "--limit", 1, "--no-generate"]
    flags += ["--save-adapter"]
    alone = one_process(FULL, *flags)
    run(2, FULL, *flags, "--out", tmp_path)
    assert not differences(records(alone), records(tmp_path))
    assert furthest(alone, tmp_path) < 1e-5


@pytest.mark.slow  # two processes are started
def test_one_process_of_torchrun_is_none(one_process, tmp_path):
    flags = ["--steps", 2, "--lr", 1e-4, *FLAGS, "--no-generate"]
    run(1, FULL, *flags, "--out", tmp_path)
    assert records(tmp_path) == records(one_process(FULL, *flags))
    assert furthest(one_process(FULL, *flags), tmp_path) == 0


@pytest.fixture
def three_clips(tmp_path):
    """The second cannot be read."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for name, clip in (("a", "scene_0"), ("c", "scene_1")):
        shutil.copy(ROOT / "nano" / "demo" / f"{clip}.mp4", folder / f"{name}.mp4")
    (folder / "b.mp4").write_text("no video")
    return ["--videos", folder, "--prompt", "two things move"]


@pytest.mark.slow  # three processes are started
def test_a_skipped_video_and_one_that_diverges(three_clips, tmp_path):
    """The third is adapted to as if there were no other: all that was learned is gone."""
    flags = ["--lr", 1e30, *three_clips, "--steps", 3, "--no-generate"]
    run(0, FULL, *flags, "--out", tmp_path / "one", code=3)
    said, errors = run(2, FULL, *flags, "--out", tmp_path / "two", code=1)  # torchrun's own
    found = records(tmp_path / "two")
    assert not differences(records(tmp_path / "one"), found)
    assert found["a"]["diverged"] and found["c"]["diverged"] and found["b"]["status"] == "skipped"
    assert "1 video skipped" in said and not our_lines(errors)


def wait_for(condition, seconds=600):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow  # two processes are started
def test_a_signal_stops_all_with_one_line(tmp_path):
    process = start(2, FULL, "--steps", 500, "--limit", 1, "--no-generate", "--out", tmp_path)
    wait_for(lambda: [*tmp_path.glob("videos/*.claim")])
    process.send_signal(signal.SIGTERM)
    (line,) = our_lines(process.communicate(timeout=600)[1])
    assert line == "stopped by SIGTERM; the same command goes on where this ended"
    assert not [*tmp_path.glob("videos/*")]  # its claim is given back


HUNGRY = """
import runs, torch, full_tta
from devices import agreement, ranks

agreement.IMPATIENCE = {patience}
WHERE, RANKS = {where!r}, {ranks!r}


def once(function, name):
    def call(*args, **more):
        if WHERE == name and ranks.rank() in RANKS:
            RANKS.clear()
            raise torch.OutOfMemoryError("simulated")
        return function(*args, **more)
    return call


class Hungry(full_tta.FullTTA):
    def __init__(self, model, clip, args):
        super().__init__(model, clip, args)
        self.loss = once(self.loss, "loss")
        model.decode = once(model.decode, "decode")


full_tta.FullTTA = Hungry
runs.run_script(full_tta.main)
"""


@pytest.mark.slow  # two processes are started
@pytest.mark.parametrize("where, ranks", [("loss", {0, 1}), ("decode", {1})], ids=str)
def test_memory_that_runs_out_in_one_does_so_in_all(where, ranks, one_process, tmp_path):
    """All take the stricter plan together, and give the same numbers."""
    (tmp_path / "hungry.py").write_text(HUNGRY.format(where=where, ranks=ranks, patience=600))
    flags = ["--steps", 2, "--limit", 1, "--sampling-steps", 2]
    run(2, tmp_path / "hungry.py", *flags, "--out", tmp_path / "out")
    (path,) = (tmp_path / "out" / "videos").glob("*.json")
    placement = json.loads(path.read_text())["placement"]
    assert placement["out_of_memory"] == 1
    assert (placement["offload"], placement["recomputed_blocks"]) == {
        "loss": ("none", 12), "decode": ("vae", placement["recomputed_blocks"])
    }[where]  # fmt: skip
    assert not differences(records(one_process(FULL, *flags)), records(tmp_path / "out"))


@pytest.mark.slow  # two processes are started
def test_memory_that_runs_out_where_the_other_waits_ends_the_job(tmp_path):
    (tmp_path / "hungry.py").write_text(HUNGRY.format(where="loss", ranks={1}, patience=3))
    errors = run(2, tmp_path / "hungry.py", *QUICK, "--out", tmp_path / "out", code=1)[1]
    (line,) = our_lines(errors)
    assert "rank 1 of 2: out of memory (simulated)" in line and "--checkpointing all" in line


@pytest.mark.slow  # two processes are started
def test_an_error_of_the_user_is_one_line(tmp_path):
    """Whether all meet it, or the first alone, which looks into the folder."""
    errors = run(2, FULL, "--steps", "few", "--out", tmp_path, code=1)[1]
    assert len(our_lines(errors)) == 1
    run(0, FULL, *QUICK, "--out", tmp_path)
    (line,) = our_lines(run(2, FULL, *QUICK, "--lr", 1, "--out", tmp_path, code=1)[1])
    assert "holds another run" in line and read_config(tmp_path)["arguments"]["lr"] != 1


@pytest.mark.parametrize(
    "flags", [("--compile",), ("--weights", "fp8"), ("--offload", "blocks")], ids=str
)
def test_what_does_not_go_with_shared_weights_is_refused(flags, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=f"^{' '.join(flags)}: not with several processes"):
        runs.parse_args(None, adasteer.AdaSteer, flags)


def test_a_predictor_runs_in_one_process(monkeypatch, script, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert script(vjepa_tta, "--checkpoint", os.devnull, "--videos", os.devnull) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
