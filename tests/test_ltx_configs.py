"""The configurations of an LTX-Video folder, and what the model cannot take."""

import contextlib
import json

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_configs import ANYTHING, EXTRA, GONE, NAN, changed
from test_ltx import CLIPS, OF_0_9_0, needs_clips
from toy import make_ltx

import adasteer
import backbones
from benchmarks import ltx_memory

DIT, SCHEDULER, VAE = (
    "transformer/config.json", "scheduler/scheduler_config.json", "vae/config.json"
)  # fmt: skip
TEXT = "text_encoder/config.json"
FILES = (DIT, SCHEDULER, VAE, TEXT, "model_index.json")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_ltx(tmp_path_factory.mktemp("toy") / "LTX-Video-0.9.5")


WRONG = [
    (DIT, "num_layers", 0, "a whole number from 1 to 256"),
    (DIT, "num_layers", 3, "has no place in its config.json for"),
    (DIT, "cross_attention_dim", 32, "32; it must be 48, as wide as the tokens"),
    (DIT, "caption_channels", 64, "64; it must be 32, the d_model of the text encoder"),
    (DIT, "in_channels", 16, "16; it must be 8, the latent_channels of the vae"),
    (DIT, "patch_size", 2, "2; it must be 1"),
    (DIT, "num_attention_heads", GONE, "has no num_attention_heads"),
    (VAE, "latent_channels", 10**9, "a whole number from 1 to 256"),
    (VAE, "encoder_causal", False, "false; it must be true"),
    (VAE, "scaling_factor", 0.5, "0.5; it must be 1"),
    (VAE, "downsample_type", ["spatial"] * 4, "such that encoder and decoder"),
    (VAE, "decoder_spatio_temporal_scaling", [True, True, False], "such that encoder and"),
    (VAE, "spatial_compression_ratio", 16, "16; it must be 32 with these layers"),
    (VAE, "_class_name", "AutoencoderKLWan", '"AutoencoderKLLTXVideo"'),
    (SCHEDULER, "shift", 3.0, "3.0; it must be 1"),
    (SCHEDULER, "shift_terminal", 0.1, "0.1; it must be null"),
    (SCHEDULER, "use_dynamic_shifting", "yes", '"yes"; it must be true'),
    (SCHEDULER, "base_shift", NAN, "NaN; it must be a finite number"),
    (SCHEDULER, "_class_name", "DDIMScheduler", '"FlowMatchEulerDiscreteScheduler"'),
    ("model_index.json", "height", 48, "48; it must be a multiple of 32"),
    (TEXT, "model_type", "umt5", '"umt5"; it must be "t5"'),
]


@pytest.mark.parametrize(("file", "key", "value", "right"), WRONG)
def test_wrong_values_are_named(file, key, value, right, checkpoint, tmp_path):
    folder = changed(checkpoint, tmp_path / "changed", file, **{key: value})
    with pytest.raises(backbones.CheckpointError) as found:
        backbones.load(folder)
    said = str(found.value)
    assert right in said and "\n" not in said and file.split("/")[0] in said


def test_a_shifting_scheduler_has_two_lengths(checkpoint, tmp_path):
    shifting = OF_0_9_0 | {"base_image_seq_len": 4096}
    folder = changed(checkpoint, tmp_path / "changed", SCHEDULER, **shifting)
    with pytest.raises(backbones.CheckpointError, match="4096; it must be more than base_image"):
        backbones.load(folder)


@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_any_configuration_gives_a_model_or_one_line(data, checkpoint, tmp_path_factory):
    file = data.draw(st.sampled_from(FILES))
    keys = [*json.loads((checkpoint / file).read_text()), *EXTRA]
    key, value = data.draw(st.sampled_from(keys)), data.draw(st.just(GONE) | ANYTHING)
    folder = tmp_path_factory.mktemp("any") / "changed"
    changed(checkpoint, folder, file, **{key: value})
    with contextlib.suppress(backbones.CheckpointError):
        use(backbones.load(folder))


@torch.no_grad()
def use(model):
    torch.manual_seed(0)
    latents = model.encode(torch.rand(1, 3, 9, 64, 64))
    text = {"embeds": torch.randn(1, 1, 4, 32), "mask": torch.ones(1, 4, dtype=torch.long)}
    found = model.generate(latents, text, text, torch.randn(1, 8, 1, 2, 2), 2)
    assert latents.isfinite().all() and found.isfinite().all()
    assert model.decode(latents).isfinite().all()


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
    "0.9.5": (ltx_memory.VAE, {}),
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
