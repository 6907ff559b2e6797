"""The command line: errors in one line, help, --dry-run."""

import importlib
import json
import shutil
import types

import pytest
import torch
from safetensors.torch import load_file
from test_run import ROOT
from test_scripts import SCRIPTS

import adasteer
import compare
import film_tta
import lora_tta
import runs
import sweep
from prepare import check, clips, ucf101
from runs.flags import kept_by_baseline

NANO, DIT = ROOT / "nano" / "checkpoint", "dit/diffusion_pytorch_model.safetensors"


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
        (["--checkpoint", "LongCat"], "`hf download meituan-longcat/LongCat-Video`"),
        (["--videos", "nowhere.csv"], "--videos nowhere.csv: no such file"),
        (["--prompt", "x"], "--prompt is for files and folders"),
        (["--batch-start", 4], "the range holds none"),
        (["--size", "60x60"], "--size 60x60: this checkpoint needs multiples of 16"),
        (["--size", "big"], "--size: must be WIDTHxHEIGHT"),
        (["--device", "gpu"], "--device gpu: not usable here"),
        (["--guidance-scale", "nan"], "--guidance-scale: must be a finite number"),
        (["--weight-decay", -1], "--weight-decay: must not be negative"),
        (["--stepz", 3], "unrecognized argument --stepz; did you mean --steps?"),
        (["--seperate=3"], "unrecognized argument --seperate"),
        (["--zzzzzz"], "unrecognized argument --zzzzzz; --help lists those there are"),
        (["extra"], "unrecognized argument extra"),
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


@pytest.mark.parametrize(
    ("module", "flags", "complaint"),
    [
        (sweep, ["x.yaml", "--limt", 4, "--local"], "--limt; did you mean --limit?"),
        (sweep, ["x.yaml", "--stat"], "--stat; did you mean --status?"),
        (compare, ["a", "b", "--outt", "x"], "--outt; did you mean --out?"),
        (check, ["list.csv", "--shet=x.png"], "--shet; did you mean --sheet?"),
        (clips, ["videos", "--siz", "64x64", "--out", "x"], "--siz; did you mean --size?"),
        (ucf101, ["UCF-101", "--caption-templat", "--x {action}", "--out", "x"], "--caption-templ"),
    ],
)
def test_every_program_says_what_was_meant(module, flags, complaint, script, capsys):
    program = types.SimpleNamespace(__name__=module.__name__, main=module.main, runs=runs)
    assert script(program, *flags) == 2
    said = capsys.readouterr().err
    assert f"error: unrecognized argument {complaint}" in said and said.count("\n") == 1
    assert script(program, "--help") == 0
    usage, empty, description = capsys.readouterr().out.splitlines()[:3]
    assert usage.startswith("usage: ") and "[flags]" in usage and not empty
    assert module.__doc__.startswith(description)


def test_a_value_may_look_like_a_flag(script, tmp_path, capsys):
    """As argparse takes it: with a space in it, or after an equals sign."""
    flags = ["--dry-run", "--out", tmp_path / "out", "--negative-prompt", "--ugly and blurred"]
    assert script(adasteer, *flags) == 0
    assert "  * --negative-prompt '--ugly and blurred'" in capsys.readouterr().out
    args = runs.parse_args(None, adasteer.AdaSteer, list(map(str, flags)))
    words = ["--negative-prompt", "--ugly and blurred"]
    assert kept_by_baseline(words, args.flags) == words
    assert script(adasteer, "--dry-run", "--out", tmp_path / "out", "--caption=--x") == 0


def test_dry_run_prints_the_plan_and_writes_nothing(tmp_path, script, capsys):
    assert script(adasteer, "--dry-run", "--groups", 2, "--out", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "to do  scene_0" in said and "frames 19..31" in said
    assert not (tmp_path / "out").exists()


def test_dry_run_has_the_headings_of_the_help_and_marks_what_was_given(tmp_path, script, capsys):
    flags = ["--steps", 3, "--size", "96x64", "--final-layer", "--no-preflight", "--lr=5e-3"]
    assert script(adasteer, "--dry-run", *flags, "--limit", 1, "--out", tmp_path / "out") == 0
    said = capsys.readouterr().out.splitlines()
    assert script(adasteer, "--help") == 0
    helped = capsys.readouterr().out.splitlines()
    headings = [line for line in said if line.endswith(":") and line in helped]
    assert headings == [line for line in helped if line in headings] and len(headings) == 9
    assert headings[0] == "AdaSteer (this script):" and headings[1] == "adaptation:"
    marked = {line[4:].split()[0]: line[4:] for line in said if line.startswith("  * ")}
    assert marked.keys() == {
        "--steps", "--size", "--final-layer", "--no-preflight", "--lr", "--limit", "--out",
        "--dry-run",
    }  # fmt: skip
    assert marked["--size"] == "--size 96x64" and marked["--no-preflight"] == "--no-preflight"
    adaptation = said[said.index("adaptation:") + 1 :]
    assert [line[:3] for line in adaptation[:4]] == ["  *"] * 3 + ["   "]
    assert "    --videos nano/demo/manifest.csv" in said and "    --shard 0/1" in said
    assert "    --stop-sigmas 0.25,0.5,0.75" in said


def test_dry_run_says_what_its_estimate_is_made_of(tmp_path, script, capsys):
    """Weights by the headers of their files; time by what is finished there, else none."""
    flags = ["--steps", 1, "--no-generate", "--device", "cpu", "--out", tmp_path / "out"]
    assert script(adasteer, *flags, "--dry-run") == 0
    memory, _, time = capsys.readouterr().out.splitlines()[-3:]
    weights = sum(tensor.numel() for tensor in load_file(NANO / DIT).values())
    assert f"files: dit {4 * weights / 1e6:.3g} MB, text_encoder " in memory
    assert "time: not known before the first video" in time
    assert script(adasteer, *flags, "--limit", 2) == 0
    found = [json.loads(path.read_text()) for path in (tmp_path / "out" / "videos").glob("*.json")]
    capsys.readouterr()
    assert script(adasteer, *flags, "--dry-run") == 0
    each = sum(record["total_seconds"] for record in found) / 2
    *_, time = capsys.readouterr().out.splitlines()
    assert time.startswith(f"time: {each:.1f} s a video, the mean of 2 finished here (peak ")
    assert f"2 to do: about {2 * each / 60:.3g} minutes" in time


@pytest.mark.parametrize(("free", "plan"), [(40e9, "none"), (8.62e6, "vae"), (1e6, "blocks")])
def test_dry_run_plans_as_a_run_would_on_a_gpu(free, plan, tmp_path, script, capsys, monkeypatch):
    monkeypatch.setattr(runs.plan, "pick_device", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr(runs.plan, "free_bytes", lambda device: int(free))
    assert script(adasteer, "--dry-run", "--out", tmp_path / "out") == 0
    memory, _, planned = capsys.readouterr().out.splitlines()[-4:-1]
    weights = sum(tensor.numel() for tensor in load_file(NANO / DIT).values())
    assert f"files: dit {2 * weights / 1e6:.3g} MB" in memory
    assert planned.endswith(f"--offload {plan}")


def test_dry_run_names_a_damaged_file_of_weights(tmp_path, script, capsys):
    shutil.copytree(NANO, tmp_path / "nano")
    (tmp_path / "nano" / DIT).write_bytes(b"no weights")
    flags = ["--checkpoint", tmp_path / "nano", "--out", tmp_path / "out"]
    assert script(adasteer, "--dry-run", *flags) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"--checkpoint: {tmp_path / 'nano' / DIT} cannot be read" in error


@pytest.mark.parametrize(
    ("module", "flags"), [(adasteer, ()), (sweep, (ROOT / "sweeps" / "norm.yaml", "--local"))]
)
def test_a_folder_that_is_no_checkpoint_is_refused_before_it_is_read(
    module, flags, tmp_path, script, capsys, monkeypatch
):
    """Home, say: hashing it would take hours."""
    for name in ("weights.safetensors", "model/config.json"):
        (tmp_path / "home" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "home" / name).write_text("{}")
    opened = []
    monkeypatch.setattr("runs.identity.files_in", opened.append)
    monkeypatch.setattr("runs.run.chosen_videos", opened.append)
    more = ["--checkpoint", tmp_path / "home", "--out", tmp_path / "out"]
    more += ["--videos", NANO.parent / "demo" / "manifest.csv"]
    assert script(module, *flags, *more) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and not opened and not (tmp_path / "out").exists()
    assert "is no checkpoint: it holds no dit/config.json or transformer/config.json" in said
    assert "LongCatVideoTransformer3DModel" in said


def test_flags_that_no_model_of_this_depth_can_follow_are_refused_at_once(script, tmp_path, capsys):
    """Before weights are read: here there are none."""
    shutil.copytree(NANO, tmp_path / "nano")
    (tmp_path / "nano" / DIT).write_bytes(b"no weights")
    flags = ["--checkpoint", tmp_path / "nano", "--out", tmp_path / "out"]
    for module, more, why in (
        (adasteer, "--groups 48", "--groups must be in 1..12, got 48"),
        (adasteer, "--dims 65", "--dims must be in 1..64, got 65"),
        (adasteer, "--dims 129 --target hidden", "--dims must be in 1..128, got 129"),
        (adasteer, "--blocks 3,12", "--blocks must be in 0..11, got 3,12"),
        (film_tta, "--groups 13", "--groups must be in 1..12, got 13"),
        (lora_tta, "--blocks last:13", "--blocks last:K needs K in 1..12, got last:13"),
        (lora_tta, "--rank 129", "--rank must be in 1..128, got 129"),
    ):
        assert script(module, *more.split(), *flags) == 2
        assert capsys.readouterr().err == f"{module.__name__}.py: error: {why}\n"
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
    places = [
        said.index(text)
        for text in ("usage: adasteer.py [flags]\n", "delta[floor(i * G / L)]",
        "AdaSteer (this script):", "adaptation:", "data and model:", "run:", "sampling:",
        "frame window:")
    ]  # fmt: skip
    assert places == sorted(places) and places[0] == 0
    assert "(default: 5," in said and "(default: nano/checkpoint)" in said
    assert str(ROOT) not in said


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_a_flag_does_is_said_in_two_lines(name, script, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert script(importlib.import_module(name), "--help") == 0
    lines, flag = {}, None
    for line in capsys.readouterr().out.splitlines():
        if line.startswith("  -"):
            flag = line.split()[0]
            lines[flag] = 1 if line[25:27].strip() and line[25] == " " else 0
        elif line.startswith(" " * 26) and flag:
            lines[flag] += 1
    assert len(lines) > 40 and {f for f, count in lines.items() if count not in (1, 2)} == set()


def test_the_checkpoint_says_what_no_flag_does(tmp_path, script, capsys):
    """Its own window and sampling options; of these several may be given, and the last counts."""
    more = ["--sampling", "enhance_hf=true", "--sampling", "enhance_hf=FALSE"]
    assert script(adasteer, "--dry-run", "--out", tmp_path / "out", *more) == 0
    said = capsys.readouterr().out
    assert "--anchor 32" in said and "--tta-frames 29" in said and "--gen-frames 14" in said
    assert "--sampling enhance_hf=false context_noise=0.0" in said


def test_a_run_begins_with_its_model_and_frames(tmp_path, script, capsys):
    flags = ["--no-generate", "--steps", 0, "--limit", 1, "--anchor", 30, "--out", tmp_path / "out"]
    assert script(adasteer, *flags, "--tta-frames", 25) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("LongCat")]
    assert "nano/checkpoint at 64x64" in line
    assert "frames 5..29 adapt, 17..29 condition, 30..43 are generated" in line
