"""Runs in which what is learned goes on from video to video: one order, one worker, and a run that
was killed goes on as if it had not been."""

import json
import math
import os
import shutil
import signal
from types import SimpleNamespace

import pytest
import torch
from folders import make_run
from kills import killed_at
from safetensors.torch import load_file
from test_run import demo_rows, write_manifest
from test_vjepa_carried import flat

import adasteer
import compare as compare_script
import lora_tta
from adasteer import AdaSteer
from runs import carry
from runs.scores import Scores

TIMES = ("seconds", "memory", "git_revision")
WINDOW = "--anchor 9 --tta-frames 9 --cond-frames 5 --context-latents 1 --gen-frames 4"
FAST = (
    f"--no-preflight --steps 2 --lr 0.1 --future-draws 1 --size 32x32 --sampling-steps 1 {WINDOW}"
)
ONE = ["--carry-over", 1]


@pytest.fixture(scope="module")
def shared(toy_checkpoint):
    return ["--checkpoint", toy_checkpoint, *FAST.split(), "--sampling=enhance_hf=false"]


@pytest.fixture
def run(shared, script, tmp_path):
    """Runs adasteer.py on the demo clips with a random model."""

    def call(name, *flags, code=0, frames=False):
        flags = [*flags, *([] if frames else ["--no-generate"])]
        assert script(adasteer, *shared, "--out", tmp_path / name, *flags) == code
        return tmp_path / name

    return call


def numbers(folder):
    """{id: all that was found out of it, but how long it took}, in the order of the run."""
    found = [json.loads(path.read_text()) for path in folder.glob("videos/*.json")]
    found.sort(key=lambda record: record.get("place", -1))
    return {
        r["id"]: {k: v for k, v in r.items() if not any(word in k for word in TIMES)} for r in found
    }


def state(folder):
    (path,) = (folder / "state").glob("*.pt")
    return path.name, torch.load(path, weights_only=True)["parameters"]["delta.0"].tolist()


def test_nothing_kept_is_each_video_alone_to_the_bit(run):
    alone, nothing = run("alone"), run("nothing", "--carry-over", 0, "--reset-on-degradation")
    assert numbers(nothing) == numbers(alone) and len(numbers(alone)) == 4
    assert not (nothing / "state").exists()
    for record in numbers(alone).values():
        assert record["future_loss_online"] == record["future_loss_before"]


def test_files_of_others_in_its_folder_stay(run, tmp_path):
    mine = tmp_path / "carried" / "state" / "mine.pt"
    mine.parent.mkdir(parents=True)
    mine.write_text("not the run's")
    folder = run("carried", *ONE, "--limit", 2)
    assert mine.read_text() == "not the run's"
    assert len(list(mine.parent.iterdir())) == 2 and len(numbers(folder)) == 2


def test_each_video_begins_where_the_last_one_ended(run):
    """And is scored before it is adapted to, and after."""
    alone, folder = numbers(run("alone")), run("carried", *ONE)
    first, *rest = numbers(folder).values()
    same = [key for key in alone[first["id"]] if "loss" in key]
    assert [first[key] for key in same] == [alone[first["id"]][key] for key in same]
    for record in rest:
        other = alone[record["id"]]
        assert record["future_loss_before"] == other["future_loss_before"]
        assert record["future_loss_online"] != record["future_loss_before"]
        assert record["future_loss"] not in (record["future_loss_online"], other["future_loss"])
    last = list(numbers(folder))[-1]
    assert state(folder)[0] == f"{last}.pt" and torch.tensor(state(folder)[1]).norm() > 0
    summary = json.loads((folder / "summary.json").read_text())
    online = [r["future_loss_online"] for r in (first, *rest)]
    assert summary["mean_future_loss_online"] == pytest.approx(sum(online) / 4)


def test_no_later_clip_of_a_source_comes_before_an_earlier_one():
    """Its frames may be what the earlier one is scored by."""
    clips = [SimpleNamespace(id=f"{s}{i}", source=s) for s in "abc" for i in range(4)]
    args = SimpleNamespace(order="seed", kind=SimpleNamespace(carries=lambda _: True))
    orders = []
    for args.seed in range(5):
        orders.append([clip.id for clip in carry.in_order(clips, args)])
        assert sorted(orders[-1]) == [clip.id for clip in clips]
        for source in "abc":
            assert [x for x in orders[-1] if x[0] == source] == [f"{source}{i}" for i in range(4)]
        assert len({x[0] for x in orders[-1][:4]}) > 1  # yet mixed
    assert len(set(map(tuple, orders))) == 5


def test_the_order_is_the_seeds_or_the_lists(run, capsys):
    def order(*flags):
        capsys.readouterr()
        run("out", "--dry-run", *flags)
        lines = capsys.readouterr().out.splitlines()
        return [line.split()[2].rstrip(":") for line in lines if line.startswith("to do")]

    listed, seeds = order(), [order(*ONE, "--seed", seed) for seed in (1, 2, 3)]
    assert listed == ["scene_0", "scene_1", "scene_2", "scene_3"] == order(*ONE, "--order", "list")
    assert all(sorted(each) == listed for each in seeds) and len(set(map(tuple, seeds))) > 1
    assert order("--seed", 1) == listed  # where nothing goes on


def test_a_run_goes_on_where_it_was(run):
    whole = run("whole", *ONE, "--order", "list", "--limit", 3)
    for count in (1, 3):
        run("parts", *ONE, "--order", "list", "--limit", count)
    assert numbers(whole.parent / "parts") == numbers(whole)
    assert state(whole) == state(whole.parent / "parts")
    run("parts", "--carry-over", 0.5, "--order", "list", code=2)  # another run


def test_a_smaller_range_takes_no_state_away(run, tmp_path, capsys):
    """Its one video is skipped and would be tried again; what was done after it stands."""
    given = ["--videos", with_damaged(tmp_path, "scene_0"), *ONE, "--order", "list"]
    found = state(run("out", *given, "--limit", 2, code=3))
    run("out", *given, "--limit", 1, code=2)
    assert "scene_1 is done, is not in this range" in capsys.readouterr().err
    assert state(tmp_path / "out") == found


def content_of(path):
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path)


@pytest.mark.slow  # a run is begun again after each of its files
@pytest.mark.parametrize("flags", ["--carry-over 0.9", "--start-from bank", "--reptile 0.5"])
def test_a_run_that_is_killed_anywhere_equals_an_undisturbed_one(flags, run, shared, tmp_path):
    """With kill -9, before each file that it writes: state, adapter, pictures, record, summary."""
    whole, times = run("whole", *flags.split(), frames=True), 2
    while killed_at(adasteer, times, *shared, *flags.split(), "--out", tmp_path / "killed"):
        times += 1
    assert times > 5
    assert numbers(tmp_path / "killed") == numbers(whole)
    for path in [*whole.glob("state/*"), *whole.rglob("*.safetensors")]:
        content, twin = content_of(path), tmp_path / "killed" / path.relative_to(whole)
        assert flat(content_of(twin)) == flat(content)


def with_damaged(folder, name):
    """A copy of the demo's list in which that clip is no video."""
    rows = []
    for path, caption in demo_rows():
        shutil.copy(path, folder / path.name)
        rows.append((path.name, caption))
        if path.stem == name:
            (folder / path.name).write_bytes(b"damaged")
    return write_manifest(folder / "list.csv", rows)


def test_what_is_skipped_or_diverges_leaves_nothing(run, tmp_path, monkeypatch, capsys):
    videos = ["--videos", with_damaged(tmp_path, "scene_1"), *ONE, "--order", "list"]
    skipped, loss = run("skipped", *videos, code=3), AdaSteer.loss
    run("skipped", *videos, "--dry-run")
    said = capsys.readouterr().out
    assert (
        "skipped  scene_1" in said and "done   scene_2" in said and "the mean of 3 finished" in said
    )

    def diverging(self, draw):
        return loss(self, draw) * (float("nan") if draw.problem.video.id == "scene_1" else 1)

    monkeypatch.setattr(AdaSteer, "loss", diverging)
    diverged = numbers(run("diverged", *ONE, "--order", "list"))
    assert diverged["scene_1"]["diverged"] and diverged["scene_1"]["kept"] == "carried"
    assert diverged["scene_1"]["future_loss"] == diverged["scene_1"]["future_loss_online"]
    for name in ("scene_0", "scene_2", "scene_3"):
        one, other = numbers(skipped)[name], diverged[name]
        assert [one[k] for k in one if "loss" in k] == [other[k] for k in one if "loss" in k]
    assert state(skipped) == state(tmp_path / "diverged")


@pytest.mark.parametrize("flag", ["--carry-over", "--reptile"])
def test_a_last_video_that_is_not_scored_leaves_nothing(flag, run, shared, monkeypatch):
    """Killed before that, and begun again."""
    given, of, happens = [flag, 0.5, "--order", "list"], Scores.of, []
    first = run("first", *given, "--limit", 1)
    folder, given = first.parent / "more", [*given, "--limit", 2]

    def failing(self, clip, *more):
        if clip.video.id == "scene_1":
            happens[0]()
        return of(self, clip, *more)

    def killed():
        os.kill(os.getpid(), signal.SIGKILL)

    def fails():
        raise ValueError("simulated")

    def starts():
        """Of the runs that learn one."""
        found = [sorted(path.glob("start.*")) for path in (first, folder)]
        return [flat([*map(content_of, paths)]) for paths in found]

    monkeypatch.setattr(Scores, "of", failing)
    happens[:] = [killed]
    assert killed_at(adasteer, math.inf, *shared, *given, "--no-generate", "--out", folder)
    assert starts()[0] == starts()[1] and bool(starts()[0]) == (flag == "--reptile")
    happens[:] = [fails]
    run("more", *given, code=3)
    assert state(folder) == state(first)
    assert starts()[0] == starts()[1]


def test_what_is_carried_survives_a_step_that_runs_out_of_memory(run, monkeypatch):
    given, loss, failed = [*ONE, "--order", "list", "--limit", 2], AdaSteer.loss, []
    plain = run("plain", *given)

    def failing(self, draw):
        if draw.problem.video.id == "scene_1" and not failed:
            failed.append(draw)
            raise torch.OutOfMemoryError("simulated")
        return loss(self, draw)

    monkeypatch.setattr(AdaSteer, "loss", failing)
    found, expected = numbers(run("failed", *given)), numbers(plain)
    assert found["scene_1"]["placement"]["out_of_memory"] == 1
    for record in (*found.values(), *expected.values()):
        record.pop("placement")
    assert found == expected and state(plain) == state(plain.parent / "failed")


def test_a_bank_gives_the_nearest_earlier_video(run, capsys):
    folder = run("bank", "--start-from", "bank", "--reset-on-degradation")
    first, *rest = numbers(folder).values()
    assert (first["started_from"], first["distance"]) == (None, None)
    earlier = [first]
    for record in rest:
        own = torch.tensor(record["latent_mean"])
        far = {r["id"]: (torch.tensor(r["latent_mean"]) - own).norm() for r in earlier}
        assert record["started_from"] == min(far, key=far.get)
        assert record["distance"] == pytest.approx(float(min(far.values())), rel=1e-4)
        earlier.append(record)
    last = next(r for r in reversed(rest) if not r["degradation"]["reset"])
    path = folder / "videos" / f"{last['started_from']}.safetensors"
    again = numbers(run("again", "--start-from", path))[last["id"]]
    keys = ("losses", "future_loss_online", "future_loss", "fixed_loss_online", "norms")
    assert [again[key] for key in keys] == [last[key] for key in keys]
    (folder / "videos" / f"{record['id']}.json").unlink()
    (folder / "videos" / f"{record['started_from']}.safetensors").unlink()
    run("bank", "--start-from", "bank", "--reset-on-degradation", code=2)
    assert f"has lost the adapter of {record['started_from']}" in capsys.readouterr().err


def test_a_start_is_learned_and_used_on_other_videos(run, tmp_path, script, shared, capsys):
    folder = run("learned", "--reptile", 0.5, "--save-adapter", "--limit", 2)
    start = torch.zeros(16)
    for name in numbers(folder):
        adapted = load_file(folder / "videos" / f"{name}.safetensors")["delta.0"]
        start = start + 0.5 * (adapted - start)
    torch.testing.assert_close(load_file(folder / "start.safetensors")["delta.0"], start)
    file = folder / "start.safetensors"
    own = [flag for flag in shared if flag not in ("--steps", "2")]
    given = [*own, "--no-generate", "--start-from", file, "--out", tmp_path / "used"]
    seen = numbers(folder).keys()
    assert len(seen) == 2 and script(adasteer, *map(str, given)) == 2
    said = capsys.readouterr().err
    assert f"was learned on the source {min(seen)}, which this run scores; give --videos" in said
    others = [row for row in demo_rows() if row[0].stem not in seen]
    given += ["--videos", write_manifest(tmp_path / "others.csv", others), "--limit", 1]
    assert script(adasteer, *map(str, given)) == 0
    (record,) = numbers(tmp_path / "used").values()
    assert len(record["losses"]) == 5 and record["kept"] == "adapted"
    assert record["future_loss_online"] not in (record["future_loss_before"], record["future_loss"])


@pytest.mark.parametrize("module", [adasteer, lora_tta])
def test_a_random_change_as_large_as_what_was_carried(module, shared, script, tmp_path, capsys):
    """From where all videos of the run began; LoRA's start is drawn."""
    common = [*shared, "--no-generate", "--limit", 2]
    assert script(module, *common, *ONE, "--save-adapter", "--out", tmp_path / "run") == 0
    own = [flag for flag in common if flag not in ("--steps", "2")]
    lent = ["--limit", 2, "--adapter", tmp_path / "run" / "videos", "--out", tmp_path / "control"]
    lent += ["--control", "random"]
    assert script(module, *own, *lent) == 0
    carried, random = numbers(tmp_path / "run"), numbers(tmp_path / "control")
    first, last = carried
    assert random[first]["distances"] == pytest.approx(carried[first]["distances"], rel=1e-4)
    for name, further in random[last]["distances"].items():  # the second began at the first's
        assert further != pytest.approx(carried[last]["distances"][name], rel=1e-4)
    assert random[last]["future_loss"] != carried[last]["future_loss"]
    capsys.readouterr()
    lent[lent.index("random")] = "other"
    assert script(module, *own, *lent) == 2
    assert "is of a run with --carry-over; give one in which each" in capsys.readouterr().err
    lent[lent.index("other")] = "random"
    assert script(module, *own, *lent, "--seed", 7, "--out", tmp_path / "seed") == 2
    assert "is of a run with --seed 42, which a method may begin with" in capsys.readouterr().err


def test_another_order_is_refused(run, capsys):
    """A larger --limit draws videos in between."""
    run("out", *ONE, "--limit", 1)
    run("out", *ONE, code=2)
    said = capsys.readouterr().err.splitlines()[-1]
    assert "lacks the record of" in said and "--order seed mixes all of the range, so" in said


def test_one_worker_alone(run, tmp_path, capsys):
    given = [*ONE, "--order", "list"]
    run("out", *given, "--limit", 1)
    with carry.alone(tmp_path / "out"):
        run("out", *given, code=2)
    assert "another worker is at it, and one runs alone" in capsys.readouterr().err


@pytest.mark.parametrize("flags, why", [
    ("--carry-over 1 --shard 0/2", "--shard 0/2: not with --carry-over: what is learned"),
    ("--carry-over 1 --batch-start 1", "--batch-start 1: not with --carry-over: what is learned"),
    ("--start-from bank --shard 1/2", "--shard 1/2: not with --start-from bank: what is learned"),
    ("--reptile 0.1 --shard 1/2", "--shard 1/2: not with --reptile: what is learned"),
    ("--carry-over 1.5", "--carry-over: must be from 0 to 1, got 1.5"),
    ("--carry-over 1 --reptile 0.1", "--reptile: not with --carry-over"),
    ("--carry-over 1 --start-from bank", "--carry-over: not with --start-from"),
    ("--adapter nano --start-from nano", "--start-from: not with --adapter"),
    ("--adapter nano --carry-over 1", "--adapter nano: holds each video's own, and --carry-over"),
    ("--adapter adasteer.py --carry-over 1", "--carry-over 1: with --adapter and --steps 0, its"),
    ("--start-from adasteer.py --steps 0 --reptile 0.1", "--reptile 0.1: with --adapter and"),
    ("--start-from absent", "--start-from absent: no such file or folder, nor bank"),
    ("--order list", "--order: nothing goes on from video to video here; leave it out, or"),
    ("--reset-on-degradation", "--reset-on-degradation: needs --carry-over or --start-from bank"),
    ("--carry-over 1 --reset-on-degradation --stop-draws 1",
     "--reset-on-degradation: --stop-draws 1 has no standard error; give 2 or more"),
])  # fmt: skip
def test_flags_that_cannot_be(flags, why, script, tmp_path, capsys):
    assert script(adasteer, *flags.split(), "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and why in said and not (tmp_path / "out").exists()


def test_of_torchrun_one_process(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert script(adasteer, *ONE, "--out", tmp_path / "out") in (1, 2)
    assert "--carry-over: of torchrun one process" in capsys.readouterr().err


def test_a_report_says_what_is_carried_over(tmp_path, script, capsys):
    given = {
        "base": {"steps": 0, "futures": [0.2] * 9, "samples": {"future_loss_online": 0.2}},
        "alone": {"futures": [0.19] * 9, "samples": {"future_loss_online": 0.2}},
        "mine": {
            "futures": [0.18] * 9, "samples": {"future_loss_online": 0.19, "place": 0},
            "carry_over": 0.9,
        },
        "idle": {
            "steps": 0, "futures": [0.19] * 9, "samples": {"future_loss_online": 0.2},
            "carry_over": 1.0, "adapter": "a",
        },
    }  # fmt: skip
    folders = [make_run(tmp_path / name, [1] * 9, **more) for name, more in given.items()]
    assert script(compare_script, *folders, "--out", tmp_path / "report") == 0
    said = capsys.readouterr().out
    assert "mine (carried over) helps" in said and "alone helps" in said
    assert "mine: what is learned goes on from one to the next" in said
    assert "idle helps" in said  # without updates nothing goes on
    page = (tmp_path / "report" / "index.html").read_text()
    assert "one after the other" in page and "mine (carried over)" in page
