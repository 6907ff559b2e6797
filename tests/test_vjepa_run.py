"""vjepa_tta.py as a program: honest scores, what is skipped, what is refused, and what it says."""

import json
import math

import pytest
import torch
from latent_folders import make_clips, make_predictor, make_study_clip
from safetensors.torch import load_file, save_file

import vjepa_tta
from runs.latent_summary import rolling

FRAMES, SEEN = 8, 4  # of the clips; --adapt-frames half


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Flags that name a tiny predictor and six clips."""
    folder = tmp_path_factory.mktemp("data")
    predictor, clips = make_predictor(folder / "predictor"), make_clips(folder / "clips")
    return ["--checkpoint", predictor, "--videos", clips]


@pytest.fixture
def run(data, script, tmp_path):
    """Runs with these flags into a folder of that name; gives the records in the run's order."""

    def call(name, *flags, code=0):
        assert script(vjepa_tta, *data, "--out", tmp_path / name, *flags) == code
        return records(tmp_path / name)

    return call


def records(folder):
    found = [json.loads(path.read_text()) for path in (folder / "videos").glob("*.json")]
    return sorted(found, key=lambda record: record.get("place", math.inf))


def test_without_flags_it_runs_on_what_is_bundled(script, tmp_path, capsys):
    assert script(vjepa_tta, "--limit", 2, "--out", tmp_path) == 0
    for record in records(tmp_path):
        assert record["post_adapt_loss"] < record["pre_adapt_loss"] < 0.5  # a trained predictor
        assert len(record["look_ahead_loss_per_frame"]) == record["frames"] - record["frames_seen"]
    assert "nano/vjepa: the first half of each clip adapt" in capsys.readouterr().out


def test_before_after_and_untouched_on_frames_seen_and_ahead(run):
    baseline, adapted = run("baseline", "--steps", 0), run("clip", "--lr", 1e-3)
    assert [record["id"] for record in adapted] == [f"c{i}" for i in range(6)]
    for before, after in zip(baseline, adapted, strict=True):
        assert after["pre_adapt_loss"] == after["untouched_loss"] == before["post_adapt_loss"]
        assert after["untouched_look_ahead_loss"] == before["look_ahead_loss"]
        assert after["look_ahead_loss"] != before["look_ahead_loss"]
        assert after["post_adapt_loss"] < after["pre_adapt_loss"]
        assert after["losses"][0] == pytest.approx(after["pre_adapt_loss"], rel=1e-6)
        assert len(after["losses"]) == 5 and not before["losses"]
        assert (after["kept"], before["kept"]) == ("adapted", "baseline")
        for name, count in (("pre_adapt_loss", SEEN - 1), ("look_ahead_loss", FRAMES - SEEN)):
            listed = after[f"{name}_per_frame"]
            assert len(listed) == count and math.isclose(sum(listed) / count, after[name])


def test_frames_ahead_do_not_reach_the_adaptation(data, script, tmp_path):
    """Another end of a clip, the same losses on its beginning."""
    folder = make_clips(tmp_path / "other", 1)
    (path,) = (folder / "clips").iterdir()
    arrays = load_file(path)
    arrays["features"][SEEN:] = 7 * torch.randn(FRAMES - SEEN, 4, 8)
    arrays["actions"][SEEN - 1 :] = 3.0
    save_file(arrays, path)
    both = []
    for name, videos in (("a", data[3]), ("b", folder)):
        flags = ["--checkpoint", data[1], "--videos", videos, "--limit", 1]
        assert script(vjepa_tta, *flags, "--out", tmp_path / name) == 0
        both += records(tmp_path / name)
    a, b = both
    assert a["losses"] == b["losses"] and a["post_adapt_loss"] == b["post_adapt_loss"]
    assert a["look_ahead_loss"] != b["look_ahead_loss"]


@pytest.mark.parametrize("mode", ["rollout", "sequential", "jump", "sequential-jump", "teacher"])
def test_every_mode_is_scored_in_one_of_two_ways(mode, run):
    """So that modes can be compared: what they learn from differs, not what they are read by."""
    (found,), way = run(mode, "--mode", mode, "--limit", 1), "jump" if "jump" in mode else "rollout"
    assert len(found["losses"]) == (SEEN - 1 if "sequential" in mode else 5)
    assert len(found["look_ahead_loss_per_frame"]) == FRAMES - SEEN
    (base,) = run("base", "--steps", 0, "--score", way, "--limit", 1)
    assert found["untouched_loss_per_frame"] == base["post_adapt_loss_per_frame"]
    assert found["untouched_look_ahead_loss"] == base["look_ahead_loss"]


def test_jumps_have_no_context_to_be_scored_with(data, script, tmp_path, capsys):
    flags = ["--score", "jump", "--context-frames", 2, "--out", tmp_path / "out"]
    assert script(vjepa_tta, *data, *flags) == 2
    assert "--context-frames 2: not with --score jump" in capsys.readouterr().err


def test_the_studys_protocol_and_its_names(run, tmp_path):
    found = run("all", "--adapt-frames", "all", "--preset", "conservative")
    assert all(record["look_ahead_loss"] is None for record in found)
    results = json.loads((tmp_path / "all" / "test_results.json").read_text())
    metrics, last = results["metrics"], found[-1]["post_adapt_loss_per_frame"]
    post = [record["post_adapt_loss"] for record in found]
    first = [record["post_adapt_loss_per_frame"][0] for record in found]
    assert metrics["test/tta_loss_rollout"] == pytest.approx(sum(post) / 6)
    assert metrics["test/loss_step_1"] == pytest.approx(sum(first) / 6)
    assert f"test/loss_step_{FRAMES - 1}" in metrics and "test/loss_step_0" not in metrics
    assert metrics["test/final_median_loss_rollout"] == sorted(post)[3]
    assert metrics["test/tta_epoch_total_adaptations"] == 6
    assert results["best"][0]["loss_rollout"] == min(post) == results["worst"][-1]["loss_rollout"]
    assert results["clips"][-1]["per_timestep_losses"]["step_1"] == last[0]
    config = json.loads((tmp_path / "all" / "config.json").read_text())
    assert config["metrics"]["post_adapt_loss"]["leads"]
    assert "look_ahead_loss" not in config["metrics"]


def test_a_baseline_has_the_same_steps_but_no_adaptation(run, tmp_path):
    run("baseline", "--steps", 0)
    metrics = json.loads((tmp_path / "baseline" / "test_results.json").read_text())["metrics"]
    assert {"test/loss_rollout", "test/loss_step_1"} <= metrics.keys()
    assert not any("tta" in name for name in metrics)


def test_the_rolling_mean_is_of_the_last_fifty():
    found = rolling([float(i) for i in range(120)])
    assert found[0] == 0 and found[1] == 0.5
    assert found[119] == sum(range(70, 120)) / 50


FAULTS = {  # features, actions of the study's folder; what is said
    "missing": (None, (8, 2), "feature_maps/ holds no arrays"),
    "no actions": ((8, 4, 8), None, "actions_states/actions.npy is missing"),
    "short": ((2, 4, 8), (8, 2), "has 2 frames; --adapt-frames half and --context-frames 1 need 3"),
    "wide": ((8, 4, 9), (8, 2), "features are (8, 4, 9): 9 wide, not 8"),
    "wide actions": ((8, 4, 8), (8, 3), "actions are (7, 3); (7, 2) is needed"),
}


def test_clips_that_cannot_be_used_are_skipped_with_their_reason(data, script, tmp_path, capsys):
    make_study_clip(tmp_path / "study" / "clip_00000")
    for i, (features, actions, _) in enumerate(FAULTS.values(), 1):
        make_study_clip(tmp_path / "study" / f"clip_{i:05}", features, actions)
    flags = ["--checkpoint", data[1], "--videos", tmp_path / "study", "--out", tmp_path / "out"]
    assert script(vjepa_tta, *flags) == 3
    reasons = json.loads((tmp_path / "out" / "summary.json").read_text())["videos_skipped"]
    assert len(reasons) == len(FAULTS)
    for reason, (_, _, said) in zip(reasons.values(), FAULTS.values(), strict=True):
        assert said in reason
    assert "5 clips skipped, summary.json has the reasons" in capsys.readouterr().out


def test_a_diverged_clip_is_put_back_and_recorded(run):
    found = run("wild", "--lr", 1e36, "--limit", 2)
    for record in found:
        assert record["diverged"] and record["kept"] == "baseline"
        assert record["post_adapt_loss"] == record["untouched_loss"]


def test_saved_adapters_are_what_was_learned(run, tmp_path):
    run("saved", "--save-adapter", "--limit", 1)
    saved = load_file(tmp_path / "saved" / "videos" / "c0.safetensors")
    assert saved.keys() == {name for name in saved if "norm" in name} and len(saved) == 10


def test_the_same_command_goes_on_and_other_flags_are_refused(run, data, script, tmp_path, capsys):
    first = run("run", "--limit", 2)
    assert run("run")[:2] == first  # not done again, to the second
    out = ["--out", tmp_path / "run"]
    assert script(vjepa_tta, *data, *out, "--adapt-frames", 3) == 2
    assert "holds another run (--adapt-frames is half there, 3 here)" in capsys.readouterr().err


def test_two_shards_equal_one_run(run, data, script, tmp_path):
    whole = run("whole")
    for i in (1, 0):
        run("parts", "--shard", f"{i}/2")
    parts = records(tmp_path / "parts")
    for key in ("id", "place", "losses", "look_ahead_loss_per_frame", "distances"):
        assert [record[key] for record in parts] == [record[key] for record in whole]


def test_another_file_under_the_same_name_is_refused(data, script, tmp_path, capsys):
    clips = make_clips(tmp_path / "clips", 2)
    flags = ["--checkpoint", data[1], "--videos", clips, "--out", tmp_path / "out"]
    assert script(vjepa_tta, *flags, "--limit", 1) == 0
    (clips / "clips" / "c0.safetensors").write_bytes(
        (clips / "clips" / "c1.safetensors").read_bytes()
    )
    assert script(vjepa_tta, *flags) == 2
    assert "c0.safetensors is not what" in capsys.readouterr().err


@pytest.mark.parametrize("flags, said", [
    (["--videos", "nowhere"], "--videos nowhere: nowhere: no such folder"),
    (["--checkpoint", "nowhere"], "--checkpoint nowhere: no such file or folder"),
    (["--adapt-frames", 1], "--adapt-frames: must be at least 2"),
    (["--adapt-frames", "some"], "--adapt-frames: "),
    (["--carry-over", 2], "--carry-over: must be from 0 to 1, got 2"),
    (["--batch-start", 6], "the range holds none"),
    (["--order", "shuffle"], "--order: invalid choice"),
    (["--groups", 2], "unrecognized argument --groups"),
])  # fmt: skip
def test_bad_flags_are_one_line(flags, said, data, script, tmp_path, capsys):
    assert script(vjepa_tta, *data, *flags, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and said in error and not (tmp_path / "out").exists()


def test_help_and_plan(data, script, tmp_path, capsys):
    assert script(vjepa_tta, "--help") == 0
    said = capsys.readouterr().out
    for heading in ("VJEPAAdaptation (this script):", "adaptation:", "data and model:", "run:"):
        assert heading in said
    assert script(vjepa_tta, *data, "--dry-run", "--limit", 2, "--out", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "VJEPAAdaptation on 2 clips of" in said and "to do  c1" in said
    assert "  --preset stronger" in said and not (tmp_path / "out").exists()


def test_it_ends_with_what_the_errors_are_read_against(run, capsys):
    run("baseline", "--steps", 0)
    assert "next: adapt, from the same clips, and compare" in capsys.readouterr().out
    run("run")
    said = capsys.readouterr().out
    assert "6 clips done" in said and "frames not adapted to; lower is better" in said
    assert "what of it can be believed, with intervals:" in said
