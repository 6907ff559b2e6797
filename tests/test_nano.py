"""The bundled checkpoint, the scenes it learned from, and the scripts that make it."""

import csv
import itertools
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import backbones
from backbones.linear_autoencoder import LinearVideoAutoencoder
from common.video import read_frames
from nano import autoencoders, pretrain, scenes
from nano.recipe import babbled
from runs.identity import ROOT

DIT = "dit/diffusion_pytorch_model.safetensors"


def call(*command):
    command = [sys.executable, *map(str, command)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def drawn(count, frames):
    clips = [scenes.clip(seed, frames)[0] for seed in range(count)]
    return torch.stack(clips).transpose(1, 2) * 2 - 1


def test_the_checkpoint_is_small_and_native_at_64_pixels():
    folder = ROOT / "nano" / "checkpoint"
    assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) < 24e6
    model = backbones.load(folder)
    assert model.geometry.size == (64, 64)
    assert model.depth == 12 and type(model.vae).__name__ == "LinearVideoAutoencoder"
    assert model.network_sign == -1


def test_a_seed_is_a_clip():
    frames, caption = scenes.clip(7, 9)
    again, same = scenes.clip(7, 9)
    assert torch.equal(frames, again) and caption == same
    assert frames.shape == (9, 3, 64, 64) and 0 <= frames.min() and frames.max() <= 1
    assert not torch.equal(frames, scenes.clip(8, 9)[0])


@pytest.mark.slow
def test_scenes_have_all_that_is_promised():
    captions = " ".join(scenes.clip(seed, 2)[1] for seed in range(400))
    for words in (
        "pans left", "zooms in", "turns", "is still", "flames", "rippling water", "large letters",
        "post in front", "changing light", "seen through moving water", "soft colours", "blob",
        "heap of patches", "patchy",
        "spinning", "rocking", "showing", "striped", "bounces", "circles", "swings", "moves up",
    ):  # fmt: skip
        assert words in captions, words


def test_the_demo_holds_its_scenes_and_none_of_them_was_trained_on():
    folder = ROOT / "nano" / "demo"
    rows = list(csv.DictReader((folder / "manifest.csv").open()))
    for seed, row in zip(scenes.DEMO_SEEDS, rows, strict=True):
        frames, caption = scenes.clip(seed, 97, photos=scenes.HELD_OUT)
        assert seed >= scenes.UNSEEN and row["caption"] == caption
        stored = read_frames(folder / row["filename"], 0, 97, (64, 64))[0]
        assert (stored - frames).abs().mean() < 0.03  # what H.264 costs
    assert not scenes.HELD_OUT.keys() & scenes.TRAINING.keys()


@torch.no_grad()
def test_the_linear_autoencoder_fits_and_normalises():
    clips = drawn(40, 9)
    vae = autoencoders.fit_linear(clips)
    z = vae.encode(clips).latent_dist.mode()
    assert (vae.decode(z).sample - clips).square().mean() < 0.2 * clips.var()
    mean, std = (torch.tensor(vae.config[name]) for name in ("latents_mean", "latents_std"))
    normal = (z.movedim(1, -1) - mean) / std
    assert normal.mean((0, 1, 2, 3)).abs().max() < 1e-3
    assert normal.var((0, 1, 2, 3)).mean() == pytest.approx(1, rel=0.01)
    same = LinearVideoAutoencoder.from_config(vae.config)
    same.load_state_dict(vae.state_dict())
    assert torch.equal(same.encode(clips).latent_dist.mode(), z)


@pytest.mark.slow
def test_the_wan_autoencoder_learns(monkeypatch):
    """On a clock that a step moves by one second, however fast the machine is."""
    monkeypatch.setattr(autoencoders, "WAN", {"base_dim": 8, "num_res_blocks": 1, "z_dim": 16})
    torch.manual_seed(0)
    clips = drawn(20, 9)[..., :32, :32]

    def error(steps):
        clock = itertools.count()
        monkeypatch.setattr(autoencoders, "time", SimpleNamespace(time=lambda: next(clock)))
        vae = autoencoders.train_wan(clips, (steps + 1) / 60, "cpu")
        assert len(vae.config.latents_std) == 16
        with torch.no_grad():
            z = vae.encode(clips).latent_dist.mode()
            assert z.shape == (20, 16, 3, 4, 4)
            return (vae.decode(z).sample - clips).square().mean()

    assert error(150) < 0.5 * error(1)


def test_babble_follows_a_caption_or_takes_its_place():
    ids = torch.tensor([[5, 6, 7, 1, 0, 0, 0, 0]]).repeat(2000, 1)
    mask = (ids > 0).long()
    torch.manual_seed(0)
    found, shown = babbled(ids, mask, 0.5, 1024)
    assert ((found > 0) == shown.bool()).all() and found.max() < 1024
    own, longer = (found[:, :4] == ids[:, :4]).all(1), shown.sum(1) > 4
    assert (own & ~longer).float().mean() == pytest.approx(0.5 + 0.25 / 2, abs=0.05)
    assert (own & longer).float().mean() == pytest.approx(0.25 / 2, abs=0.03)
    assert torch.equal(babbled(ids, mask, 0.0, 1024)[0], ids)


@pytest.mark.parametrize("flag, value, there", [
    ("--width", 64, 128), ("--depth", 2, 12), ("--patch", 1, 2), ("--channels", 8, 16),
])  # fmt: skip
def test_another_shape_than_that_of_the_start_is_refused(
    flag, value, there, monkeypatch, capsys, tmp_path
):
    words = ["pretrain", "--start", "nano/checkpoint", flag, str(value), "--work", f"{tmp_path}/w"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as end:
        pretrain.main()
    said = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 2 and not (tmp_path / "w").exists()
    assert f"nano/checkpoint has {flag} {there}, got {flag} {value}" in said


@pytest.mark.parametrize("flag", ["--autoencoder wan", "--temper 1"])
def test_the_start_keeps_its_autoencoder(flag, monkeypatch, capsys, tmp_path):
    words = ["pretrain", "--start", "nano/checkpoint", *flag.split(), "--work", f"{tmp_path}/w"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit):
        pretrain.main()
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"nano/checkpoint keeps its autoencoder: without {flag}" in said


REFUSED = {  # before a clip is drawn
    "--batch 16: 3 processes cannot share it evenly": ["--batch", "16"],
    "--width 100: must be a multiple of 32": ["--width", "100"],
    "--muon-lr 0.001: needs torch 2.9, this is ": ["--muon-lr", "1e-3"],
}


@pytest.mark.parametrize("right", REFUSED)
def test_what_cannot_be_trained_is_one_line(right, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.delattr(torch.optim, "Muon", raising=False)  # as an older torch
    monkeypatch.setattr(sys, "argv", ["pretrain", *REFUSED[right], "--work", f"{tmp_path}/w"])
    with pytest.raises(SystemExit) as end:
        pretrain.main()
    assert end.value.code == 2 and not (tmp_path / "w").exists()
    assert right in capsys.readouterr().err


@pytest.mark.slow
def test_pretraining_resumes_and_its_checkpoint_runs(tmp_path):
    flags = ["-m", "nano.pretrain", "--clips", 100, "--batch", 4, "--width", 64, "--depth", 2]
    flags += ["--work", tmp_path / "work", "--out", tmp_path / "out"]
    flags += ["--muon-lr", 3e-3, "--no-context", 0.2, "--context-noise", 0.1]
    for steps in (8, 12):
        call(*flags, "--steps", steps)
        assert (tmp_path / "work" / "curve.png").stat().st_size > 1000
        assert torch.load(tmp_path / "work" / "state.pt")["progress"][0] == steps
    assert (tmp_path / "work" / "samples.png").stat().st_size > 1000
    run = ["adasteer.py", "--checkpoint", tmp_path / "out", "--no-preflight", "--limit", 1]
    call(*run, "--sampling-steps", 2, "--out", tmp_path / "results")
    flags = ["-m", "nano.pretrain", "--clips", 50, "--batch", 4, "--start", tmp_path / "out"]
    further = tmp_path / "further"
    call(*flags, "--work", tmp_path / "work2", "--steps", 6, "--out", further)
    for part in ("vae", "tokenizer"):
        for path in (tmp_path / "out" / part).iterdir():
            assert (further / part / path.name).read_bytes() == path.read_bytes()
    first, second = (load_file(f / DIT) for f in (tmp_path / "out", further))
    assert any(not torch.equal(first[k], second[k]) for k in first)
    text = (further / "dit" / "config.json").read_text()
    assert str(tmp_path) not in text and "_name_or_path" not in text
    # -- since torchrun would take --start for a flag of its own
    both = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "-m", "--"]
    call(*both, *flags[1:], "--work", tmp_path / "work3", "--steps", 6, "--out", tmp_path / "both")
    third = load_file(tmp_path / "both" / DIT)
    moved, apart = (sum((x[k] - second[k]).float().norm() for k in x) for x in (first, third))
    assert apart < 0.02 * moved
