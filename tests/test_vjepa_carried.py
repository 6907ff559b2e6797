"""--carry-over: what is learned goes on from clip to clip, in one order, by one worker; a run that
was killed goes on as if it had not been."""

import json
import shutil

import pytest
import torch
from kills import killed_at
from latent_folders import make_clips, make_predictor
from test_vjepa_run import records

import vjepa_tta
from runs import carry
from runs.claims import Claims

TIMES = ("seconds", "memory", "git_revision")
CLIPS = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    predictor, clips = make_predictor(folder / "p"), make_clips(folder / "c", CLIPS)
    flags = ["--checkpoint", predictor, "--videos", clips, "--carry-over", 1, "--lr", "1e-2"]
    return [*flags, "--preset", "extended", "--save-adapter"]


@pytest.fixture
def run(data, script, tmp_path):
    def call(name, *flags, code=0):
        assert script(vjepa_tta, *data, "--out", tmp_path / name, *flags) == code
        return tmp_path / name

    return call


def numbers(folder):
    """All that a run has found out, to the bit, but how long it took."""
    known = [
        {key: value for key, value in record.items() if not any(word in key for word in TIMES)}
        for record in records(folder)
    ]
    adapters = {p.name: p.read_bytes() for p in folder.glob("videos/*.safetensors")}
    (state,) = (folder / "state").glob("*.pt")
    return known, adapters, state.name, flat(torch.load(state, weights_only=True))


def flat(state):
    """A nested state as text and lists of numbers, which can be compared."""
    if isinstance(state, torch.Tensor):
        return state.tolist()
    if isinstance(state, dict):
        return {key: flat(value) for key, value in state.items()}
    return list(map(flat, state)) if isinstance(state, list | tuple) else state


def test_it_goes_on_from_clip_to_clip(run):
    carried, each = records(run("never")), records(run("clip", "--carry-over", 0))
    assert carried[0]["pre_adapt_loss"] == carried[0]["untouched_loss"]
    same = [key for key in carried[0] if key.endswith(("loss", "losses", "per_frame"))]
    assert [carried[0][key] for key in same] == [each[0][key] for key in same]
    for own, other in zip(carried[1:], each[1:], strict=True):
        assert own["untouched_loss"] == other["untouched_loss"] != own["pre_adapt_loss"]
    assert carried[-1]["pre_adapt_loss"] < carried[-1]["untouched_loss"]  # the clips are alike
    assert sum(carried[-1]["distances"].values()) > sum(each[-1]["distances"].values())


def test_the_optimiser_goes_on_as_well(run):
    _, _, name, state = numbers(run("never"))
    steps = {value["step"] for value in state["optimizer"]["state"].values()}
    assert name == f"c{CLIPS - 1}.pt" and steps == {5.0 * CLIPS}


def test_a_share_goes_on(run):
    alone, half, whole = (
        records(run(f"keep{keep}", "--carry-over", keep, "--limit", 2)) for keep in (0, 0.5, 1)
    )
    assert half[0]["post_adapt_loss"] == whole[0]["post_adapt_loss"]
    before = [found[1]["pre_adapt_loss"] for found in (alone, half, whole)]
    assert before[0] > before[1] > before[2]  # the clips are alike


def test_a_run_that_is_killed_anywhere_equals_an_undisturbed_one(run, data, tmp_path):
    """Between state and record, between record and the next, within each."""
    whole, times = run("whole"), 2
    while killed_at(vjepa_tta, times, *data, "--out", tmp_path / "killed"):
        times += 1
    assert times > 5
    assert numbers(tmp_path / "killed") == numbers(whole)


def test_a_larger_limit_goes_on(run):
    for count in (1, 3):
        run("parts", "--limit", count)
    assert numbers(run("parts")) == numbers(run("whole"))


def test_the_order_is_that_of_the_list_or_of_the_seed(run):
    orders = [[record["id"] for record in records(run("list"))]]
    for seed in (1, 2):
        folder = run(f"seed{seed}", "--order", "seed", "--seed", seed)
        orders.append([record["id"] for record in records(folder)])
        first = records(folder)[0]
        assert first["place"] == 0 and first["pre_adapt_loss"] == first["untouched_loss"]
    assert orders[0] == ["c0", "c1", "c2", "c3"] == sorted(orders[1]) == sorted(orders[2])
    assert len({tuple(order) for order in orders}) == 3


def test_a_clip_that_is_skipped_leaves_nothing(run, data, script, tmp_path):
    clips = make_clips(tmp_path / "clips", CLIPS)
    (clips / "clips" / "c1.safetensors").write_bytes(b"damaged")
    flags = [*data, "--videos", clips]
    assert script(vjepa_tta, *flags, "--out", tmp_path / "with") == 3
    lines = (clips / "manifest.csv").read_text().splitlines()
    (clips / "manifest.csv").write_text("\n".join(line for line in lines if "c1," not in line))
    assert script(vjepa_tta, *flags, "--out", tmp_path / "without") == 0
    found = numbers(tmp_path / "with"), numbers(tmp_path / "without")
    assert found[0][1:] == found[1][1:]  # adapters and state
    assert script(vjepa_tta, *data, "--videos", clips, "--out", tmp_path / "with") == 2


def test_one_worker_alone(run, data, script, tmp_path, capsys):
    run("out", "--limit", 1)
    with carry.alone(tmp_path / "out"):
        assert script(vjepa_tta, *data, "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "another worker is at it, and one runs alone: what is learned from a clip goes" in said
    assert len(records(tmp_path / "out")) == 1
    run("out")


@pytest.mark.parametrize("flags", [["--shard", "0/2"], ["--batch-start", 1]])
def test_parts_of_the_list_are_refused(flags, data, script, tmp_path, capsys):
    assert script(vjepa_tta, *data, *flags, "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{flags[0]} {flags[1]}: not with --carry-over" in said
    assert not (tmp_path / "out").exists()
    more = ["--steps", 0, "--limit", 1]  # a baseline has no order
    assert script(vjepa_tta, *data, *flags, *more, "--out", tmp_path / "out") == 0


def test_a_gap_or_a_lost_state_is_refused(run, data, script, tmp_path, capsys):
    folder = run("out", "--limit", 3)
    shutil.copytree(folder, tmp_path / "gap")
    (tmp_path / "gap" / "videos" / "c1.json").unlink()
    assert script(vjepa_tta, *data, "--out", tmp_path / "gap") == 2
    assert "lacks the record of c1, which later ones were adapted after" in capsys.readouterr().err
    (folder / "state" / "c2.pt").write_bytes(b"PK")
    assert script(vjepa_tta, *data, "--out", folder) == 2
    assert "c2.pt: the state after c2 cannot be read" in capsys.readouterr().err


def test_records_say_what_they_need_to_be_read(run):
    folder = run("out", "--limit", 2)
    config = json.loads((folder / "config.json").read_text())
    assert next(iter(config["metrics"])) == "pre_adapt_loss"
    summary = json.loads((folder / "summary.json").read_text())
    before = [record["pre_adapt_loss"] for record in records(folder)]
    assert summary["pre_adapt_loss_rolling_50"] == [before[0], sum(before) / 2]
    assert len(summary["untouched_loss_rolling_50"]) == 2


def test_a_clip_that_another_worker_still_has_is_not_jumped_over(run, data, tmp_path, capsys):
    """As after a machine died: its claim of a clip may outlast that of the run."""
    videos = run("out", "--limit", 1) / "videos"
    with Claims(videos) as others:
        assert others.take("c1")
        run("out", code=1)
    assert "another worker has one before c2" in capsys.readouterr().err
    assert [record["id"] for record in records(tmp_path / "out")] == ["c0"]
    run("out")
    assert numbers(tmp_path / "out") == numbers(run("undisturbed"))
