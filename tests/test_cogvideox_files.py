"""Folders of CogVideoX: what their configurations say, and flags that a model cannot follow."""

import re

import pytest
from diffusers import CogVideoXDPMScheduler
from test_cogvideox import NEWER, TEXT_ONLY
from test_configs import changed
from toy import COGVIDEOX_VAE, make_cogvideox

import adasteer
import backbones

DIT, INDEX = "transformer/config.json", "model_index.json"


def make_any_size(folder):
    """Without learned positions."""
    return make_cogvideox(folder, use_learned_positional_embeddings=False)


def make_newer(folder):
    """1.5-5B-I2V, with the other scheduler."""
    config = NEWER | {"ofs_embed_dim": 16, "sample_frames": 13}
    vae = COGVIDEOX_VAE | {"invert_scale_latents": True}
    return make_cogvideox(folder, CogVideoXDPMScheduler, vae, **config)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_cogvideox(tmp_path_factory.mktemp("toy") / "CogVideoX-5b-I2V")


@pytest.fixture(scope="module")
def newer(tmp_path_factory):
    return make_newer(tmp_path_factory.mktemp("toy") / "CogVideoX1.5-5B-I2V")


@pytest.fixture(scope="module")
def text_to_video(tmp_path_factory):
    return make_cogvideox(tmp_path_factory.mktemp("toy") / "CogVideoX-5b", **TEXT_ONLY)


def test_geometry_is_read_from_the_configurations(checkpoint, newer, tmp_path):
    own = backbones.geometry(checkpoint)
    assert own.fps == 8 and own.sizes == ((32, 48), (32, 48)) and not own.sampling["dpm"]
    released = {"sample_height": 60, "sample_width": 90, "sample_frames": 49}
    released = changed(checkpoint, tmp_path / "5b-I2V", DIT, **released)
    (released / INDEX).unlink()
    own = backbones.geometry(released)
    assert own.size == (480, 720) and own.limits["tta_frames"] == 49
    assert own.window == {
        "anchor": 49, "cond_frames": 1, "tta_frames": 49, "context_latents": 1, "gen_frames": 48
    }  # fmt: skip
    released = changed(newer, tmp_path / "1.5", DIT, sample_frames=81)
    (released / INDEX).unlink()
    own = backbones.geometry(released)
    assert own.size == (768, 1360) and own.sizes == ((0, 0), (2400, 2400)) and own.fps == 16
    assert own.window["tta_frames"] == 81 and own.sampling["dpm"]


REFUSED = [
    ("--size 720x480", "--size 720x480: .* nearest that fits is 48x32"),
    ("--cond-frames 4", r"4k \+ 1, got 4: .* try 1 or 5"),
    ("--cond-frames 5", "--cond-frames: 2 latents of context; this model was made for 1"),
    ("--context-latents 2", "--context-latents: 2 latents of context; this model was made for 1"),
    ("--context varying", "made for 1 latents"),
    ("--tta-frames 21 --anchor 21", "--tta-frames 21: this checkpoint takes at most 17"),
    ("--gen-frames 17", "--gen-frames 17: this checkpoint takes at most 16"),
    ("--sampling-steps 1001", "--sampling-steps 1001: this checkpoint takes at most 1000"),
    ("--sampling shift=3", "no shift; known are dynamic_guidance=false dpm=false"),
]


@pytest.mark.parametrize(("flags", "said"), REFUSED)
def test_what_the_flags_ask_too_much_of(flags, said, checkpoint, script, capsys, tmp_path):
    given = ["--checkpoint", checkpoint, *flags.split(), "--out", tmp_path / "out"]
    assert script(adasteer, *given) == 2
    assert_line(said, capsys)


def assert_line(said, capsys):
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(said, line), line


def test_a_text_to_video_model_is_refused_with_the_reason(text_to_video, script, capsys, tmp_path):
    assert script(adasteer, "--checkpoint", text_to_video, "--out", tmp_path / "out") == 2
    assert_line("CogVideoX-5b: a text-to-video model: .* can continue none", capsys)


def test_a_size_beyond_the_positions_of_1_5(newer, script, capsys, tmp_path):
    given = ["--checkpoint", newer, "--size", "2560x1440", "--out", tmp_path / "out"]
    assert script(adasteer, *given) == 2
    assert_line("--size 2560x1440: .* nearest that fits is 2400x1440", capsys)
