"""Folders of CogVideoX: configurations that are refused, every method from the command line, and
flags that a model cannot follow."""

import contextlib
import importlib
import json
import re

import pytest
from diffusers import CogVideoXDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import SHARED
from test_cogvideox import NEWER, TEXT_ONLY
from test_configs import ANYTHING, EXTRA, GONE, changed, use
from test_scripts import SCRIPTS
from toy import COGVIDEOX_VAE, make_cogvideox

import adasteer
import backbones

CLIPS = SHARED / "clips" / "metadata.csv"
needs_clips = pytest.mark.skipif(not CLIPS.is_file(), reason=f"no real clips at {SHARED}")
DIT, SCHEDULER, VAE = (
    "transformer/config.json",
    "scheduler/scheduler_config.json",
    "vae/config.json",
)
TEXT, INDEX = "text_encoder/config.json", "model_index.json"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_cogvideox(tmp_path_factory.mktemp("toy") / "CogVideoX-5b-I2V")


@pytest.fixture(scope="module")
def any_size(tmp_path_factory):
    """Without learned positions."""
    folder = tmp_path_factory.mktemp("toy") / "CogVideoX-5b-I2V"
    return make_cogvideox(folder, use_learned_positional_embeddings=False)


@pytest.fixture(scope="module")
def newer(tmp_path_factory):
    """1.5-5B-I2V, with the other scheduler."""
    config = NEWER | {"ofs_embed_dim": 16, "sample_frames": 13}
    folder = tmp_path_factory.mktemp("toy") / "CogVideoX1.5-5B-I2V"
    vae = COGVIDEOX_VAE | {"invert_scale_latents": True}
    return make_cogvideox(folder, CogVideoXDPMScheduler, vae, **config)


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


WRONG = [
    (DIT, "in_channels", 48, "48; it must be 16 (text-to-video) or 32 (image-to-video)"),
    (DIT, "out_channels", 8, "8; it must be 16, the latent_channels of the vae"),
    (DIT, "text_embed_dim", 64, "64; it must be 32, the d_model of the text encoder"),
    (DIT, "num_layers", 3, "has no place in its config.json for"),
    (DIT, "attention_head_dim", 24, "24; it must be a multiple of 16"),
    (DIT, "ofs_embed_dim", 8, "8; it must be null or time_embed_dim = 16"),
    (DIT, "patch_size", 3, "3; it must be 1 or 2 or 4 or 8"),
    (DIT, "patch_size_t", 0, "a whole number from 1 to 8, or null"),
    (DIT, "sample_frames", 16, "16; it must be 4k + 1"),
    (DIT, "sample_frames", 13, "pos_embedding expected shape"),
    (DIT, "use_rotary_positional_embeddings", False, "true beside use_learned_positional"),
    (DIT, "norm_elementwise_affine", False, "false; it must be true"),
    (DIT, "temporal_compression_ratio", 8, "8; it must be 4"),
    (SCHEDULER, "prediction_type", "epsilon", 'it must be "v_prediction"'),
    (SCHEDULER, "rescale_betas_zero_snr", False, "false; it must be true"),
    (SCHEDULER, "timestep_spacing", "leading", '"trailing" or "linspace"'),
    (SCHEDULER, "snr_shift_scale", 0, "a number from 0.01 to 100"),
    (SCHEDULER, "_class_name", "DDIMScheduler", "CogVideoXDDIMScheduler or CogVideoXDPM"),
    (VAE, "scaling_factor", GONE, "has no scaling_factor"),
    (VAE, "norm_num_groups", 3, "multiples of norm_num_groups = 3"),
    (VAE, "_class_name", "AutoencoderKLWan", '"AutoencoderKLCogVideoX"'),
    (TEXT, "model_type", "umt5", '"umt5"; it must be "t5"'),
    (INDEX, "height", 40, "40; it must be a multiple of 16"),
]


@pytest.mark.parametrize(("file", "key", "value", "right"), WRONG)
def test_wrong_values_are_named(file, key, value, right, checkpoint, tmp_path):
    folder = changed(checkpoint, tmp_path / "changed", file, **{key: value})
    with pytest.raises(backbones.CheckpointError) as found:
        backbones.load(folder)
    said = str(found.value)
    assert right in said and "\n" not in said and file.split("/")[0] in said


@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_any_configuration_gives_a_model_or_one_line(data, any_size, tmp_path_factory):
    file = data.draw(st.sampled_from((DIT, SCHEDULER, VAE, TEXT, INDEX)))
    keys = [*json.loads((any_size / file).read_text()), *EXTRA]
    key, value = data.draw(st.sampled_from(keys)), data.draw(st.just(GONE) | ANYTHING)
    folder = tmp_path_factory.mktemp("any") / "changed"
    changed(any_size, folder, file, **{key: value})
    with contextlib.suppress(backbones.CheckpointError):
        use(backbones.load(folder))


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


@needs_clips
@pytest.mark.parametrize("name", SCRIPTS)
def test_every_method_from_the_command_line(name, checkpoint, script, tmp_path):
    """The column CogVideoX of the README's table of methods."""
    flags = ["--checkpoint", checkpoint, "--videos", CLIPS, "--limit", 1, "--save-adapter"]
    flags += ["--steps", 2, "--sampling-steps", 2, "--sampling", "dynamic_guidance=true"]
    assert script(importlib.import_module(name), *flags, "--out", tmp_path) == 0
    (path,) = (tmp_path / "videos").glob("*.json")
    record = json.loads(path.read_text())
    assert record["kept"] == "adapted" and len(record["losses"]) == 2
    assert record["preflight"]["loss"] < record["preflight"]["zero_loss"]
    assert record["frame_indices"]["conditioning"] == [16, 17]
    assert record["frame_indices"]["generated"] == [17, 33] and record["psnr_db"] > 0
    assert record["future_loss"] != record["future_loss_before"]


@needs_clips
def test_memory_and_time_are_traded_without_a_number_changing(newer, script, tmp_path):
    """On 1.5, whose window of 13 frames is 4 latents, and with held-out latents."""
    flags = ["--checkpoint", newer, "--videos", CLIPS, "--limit", 1, "--steps", 2, "--draws", 2]
    flags += ["--groups", 2, "--sampling-steps", 2, "--stop-every", 1, "--no-preflight"]
    ways = {
        "plain": ["--checkpointing", "none"],
        "streamed": ["--checkpointing", "auto", "--offload", "blocks"],
    }
    records = []
    for name, way in ways.items():
        assert script(adasteer, *flags, *way, "--out", tmp_path / name) == 0
        (path,) = (tmp_path / name / "videos").glob("*.json")
        records.append(json.loads(path.read_text()))
    for key in ("losses", "future_loss", "psnr_db_per_frame", "norms"):
        assert all(record[key] == records[0][key] for record in records)
    placed = [(r["placement"]["offload"], r["placement"]["recomputed_blocks"]) for r in records]
    assert placed == [("none", 0), ("blocks", 4)]
