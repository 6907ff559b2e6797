"""The configurations of an LTX-Video folder, and what the model cannot take."""

import diffusers
import pytest
import torch
from oracles import SHARED
from test_configs import changed
from test_ltx import OF_0_9_0
from toy import make_ltx

import adasteer
import backbones
from benchmarks import random_models

CLIPS = SHARED / "clips" / "metadata.csv"
needs_clips = pytest.mark.skipif(not CLIPS.is_file(), reason=f"no real clips at {SHARED}")
DIT, SCHEDULER, VAE = (
    "transformer/config.json", "scheduler/scheduler_config.json", "vae/config.json"
)  # fmt: skip
TEXT = "text_encoder/config.json"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_ltx(tmp_path_factory.mktemp("toy") / "LTX-Video-0.9.5")


def test_a_shifting_scheduler_has_two_lengths(checkpoint, tmp_path):
    shifting = OF_0_9_0 | {"base_image_seq_len": 4096}
    folder = changed(checkpoint, tmp_path / "changed", SCHEDULER, **shifting)
    with pytest.raises(backbones.CheckpointError, match="4096; it must be more than base_image"):
        backbones.load(folder)


RELEASES = {  # autoencoder and scheduler as diffusers' conversion writes them
    "0.9.0": ({}, OF_0_9_0),
    "0.9.1": (
        {
            "decoder_block_out_channels": [256, 512, 1024],
            "decoder_layers_per_block": [5, 6, 7, 8],
            "decoder_spatio_temporal_scaling": [True] * 3, "upsample_residual": [True] * 3,
            "decoder_inject_noise": [True, True, True, False], "upsample_factor": [2] * 3,
            "timestep_conditioning": True,
        },
        OF_0_9_0,
    ),
    "0.9.5": (random_models.LTX_VAE, {}),
}  # fmt: skip


@pytest.mark.parametrize(("vae", "scheduling"), RELEASES.values(), ids=RELEASES)
def test_the_geometry_of_a_release(vae, scheduling, checkpoint, tmp_path):
    """Where model_index.json says no size, as diffusers writes it."""
    with torch.device("meta"):
        dit, vae = diffusers.LTXVideoTransformer3DModel(), diffusers.AutoencoderKLLTXVideo(**vae)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**scheduling)
    files = {file: part.to_json_string() for file, part in ((DIT, dit), (VAE, vae))}
    files |= {SCHEDULER: scheduler.to_json_string(), "model_index.json": "{}"}
    folder = changed(checkpoint, tmp_path / "text", TEXT, d_model=4096)
    for i, (file, text) in enumerate(files.items()):
        folder = changed(folder, tmp_path / str(i), file, text=text)
    geometry = backbones.geometry(folder)
    assert geometry.size == (480, 704) and geometry.size_multiple == 32 and geometry.fps == 25
    assert geometry.depth == 28 and geometry.embedding_width == geometry.hidden_width == 2048
    assert geometry.trained_contexts == ((0, 1) if scheduling else None)
    assert [geometry.latents_of(n) for n in (1, 9, 17, 33)] == [1, 2, 3, 5]
    with pytest.raises(ValueError, match="8k . 1, got 13: .* try 9 or 17"):
        geometry.latents_of(13)


@needs_clips
@pytest.mark.parametrize(("flags", "said"), [
    (["--cond-frames", 13], ["13", "9 or 17"]),
    (["--size", "100x64"], ["--size", "32"]),
    (["--sampling", "strength=1.5"], ["strength=1.5", "from 0 to 1"]),
    (["--sampling", "shift=3"], ["strength=1.0", "image_cond_noise_scale=0.0"]),
])  # fmt: skip
def test_what_the_model_cannot_take_is_one_line(flags, said, checkpoint, script, capsys, tmp_path):
    given = ["--checkpoint", checkpoint, "--videos", CLIPS, "--out", tmp_path / "out"]
    assert script(adasteer, *given, *flags) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert all(words in line for words in said)
