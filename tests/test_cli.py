"""The command line: errors in one line, help, --dry-run."""

import pytest

import adasteer


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--cond-frames", 14], "--cond-frames: frames must number 4k + 1, got 14"),
        (["--sampling", "shine=1"], "--sampling shine=1: this model has no shine; known are enh"),
        (["--sampling", "enhance_hf=maybe"], "enhance_hf=maybe: must be true or false"),
        (["--sampling", "context_noise=1"], "context_noise=1: must be from 0 to 0.9"),
        (["--steps", -1], "--steps: must be at least 0"),
        (["--steps", "many"], "--steps: invalid whole number value: 'many'"),
        (["--lr", 0], "--lr: must be a positive number"),
        (["--groups", 0], "--groups: must be at least 1, got 0"),
        (["--groups", 13], "--groups must be in 1..12, got 13"),
        (["--checkpoint", "nowhere"], "--checkpoint nowhere: no such folder"),
        (["--videos", "nowhere.csv"], "--videos nowhere.csv: no such file"),
        (["--prompt", "x"], "--prompt is for files and folders"),
        (["--batch-start", 4], "the range holds none"),
        (["--size", "60x60"], "--size 60x60: this checkpoint needs multiples of 16"),
        (["--size", "big"], "--size: must be WIDTHxHEIGHT"),
        (["--device", "gpu"], "--device gpu: not usable here"),
        (["--guidance-scale", "nan"], "--guidance-scale: must be a finite number"),
        (["--weight-decay", -1], "--weight-decay: must not be negative"),
        (["--stepz", 3], "unrecognized arguments: --stepz"),
        (["--groups", "many"], "--groups: invalid"),
        (["--blocks", "first:3"], "--blocks: must be all, last:K or a list as 0,5,7, got first:3"),
        (["--draws", 3, "--antithetic"], "--antithetic needs an even number of --draws, got 3"),
        (["--stop-sigmas", "0.5,2"], "--stop-sigmas: must be sigmas in (0, 1]"),
        (["--stop-every", 1, "--context-latents", 7], "--stop-every holds out a target latent"),
        (["--forgetting", "nowhere.csv"], "--forgetting nowhere.csv: no such file"),
        (["--steps", 3, "--stop-every", 4], "--stop-every 4: no check falls within --steps 3"),
        (["--values-per-parameter", 5], "--values-per-parameter is for --groups auto"),
        (["--target", "hidden", "--time-slope"], "need --target timestep"),
    ],
)
def test_usage_errors_are_one_line(tmp_path, script, capsys, flags, complaint):
    assert script(adasteer, "--out", tmp_path / "out", *flags) == 2
    said = capsys.readouterr().err.splitlines()
    (error,) = [line for line in said if not line.startswith("LPIPS is not computed")]
    assert error.startswith("adasteer.py: error: ") and complaint in error


def test_dry_run_prints_the_plan_and_writes_nothing(tmp_path, script, capsys):
    assert script(adasteer, "--dry-run", "--groups", 2, "--out", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "to do  scene_0" in said and "groups = 2" in said and "frames 19..31" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags", ["--size 60x60", "--compile --offload blocks"])
def test_what_files_alone_tell_is_refused_before_anything_is_written(
    tmp_path, script, capsys, flags
):
    for more in ([], ["--dry-run"]):
        assert script(adasteer, *flags.split(), *more, "--out", tmp_path / "out") == 2
    assert not (tmp_path / "out").exists()


def test_help_shows_groups_of_flags_and_defaults(script, capsys):
    assert script(adasteer, "--help") == 0
    said = capsys.readouterr().out
    for heading in (
        "data and model:",
        "frame window:",
        "AdaSteer (this script):",
        "sampling:",
        "run:",
    ):
        assert heading in said
    assert "(default: 5)" in said and "delta[floor(i * G / L)]" in said


def test_the_checkpoint_says_what_no_flag_does(tmp_path, script, capsys):
    """Its own window and sampling options; of these several may be given, and the last counts."""
    more = ["--sampling", "enhance_hf=true", "--sampling", "enhance_hf=FALSE"]
    assert script(adasteer, "--dry-run", "--out", tmp_path / "out", *more) == 0
    said = capsys.readouterr().out
    assert "anchor = 32" in said and "tta_frames = 29" in said and "gen_frames = 14" in said
    assert "sampling = {'enhance_hf': False, 'context_noise': 0.0}" in said


def test_a_run_begins_with_its_model_and_frames(tmp_path, script, capsys):
    flags = ["--no-generate", "--steps", 0, "--limit", 1, "--anchor", 30, "--out", tmp_path / "out"]
    assert script(adasteer, *flags, "--tta-frames", 25) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("LongCat")]
    assert "nano/checkpoint at 64x64" in line
    assert "frames 5..29 adapt, 17..29 condition, 30..43 are generated" in line
