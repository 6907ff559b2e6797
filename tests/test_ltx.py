"""The LTX-Video backbone against diffusers' own transformer and pipeline."""

from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.pipelines.ltx import pipeline_ltx_condition as official
from oracles import assert_near
from toy import loss_of, make_ltx, sample, toy_clip

import backbones
from backbones.ltx_sampling import linear_quadratic, schedule
from backbones.sampling import generator_of

OF_0_9_0 = {  # its scheduler
    "use_dynamic_shifting": True, "base_shift": 0.95, "max_shift": 2.05,
    "base_image_seq_len": 1024, "max_image_seq_len": 4096, "shift_terminal": 0.1,
}  # fmt: skip
VAE_OF_0_9_1 = {
    "latent_channels": 8, "block_out_channels": [8, 8, 8, 8], "layers_per_block": [1] * 5,
    "decoder_block_out_channels": [8, 16, 32], "decoder_layers_per_block": [1] * 4,
    "decoder_spatio_temporal_scaling": [True] * 3,
    "decoder_inject_noise": [True, True, True, False], "upsample_residual": [True] * 3,
    "upsample_factor": [2] * 3, "timestep_conditioning": True,
}  # fmt: skip
VAE_OF_0_9_0 = {
    "latent_channels": 8, "block_out_channels": [8, 8, 8, 8], "layers_per_block": [1] * 5,
    "decoder_block_out_channels": [8, 8, 8, 8], "decoder_layers_per_block": [1] * 5,
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_ltx(tmp_path_factory.mktemp("toy") / "LTX-Video-0.9.5")


@pytest.fixture
def model(checkpoint):
    return backbones.load(checkpoint)


@pytest.fixture(scope="module")
def clip(checkpoint):
    return toy_clip(backbones.load(checkpoint))


@pytest.fixture(scope="module")
def theirs(checkpoint):
    """diffusers' transformer as its pipeline calls it: (latents, sigma of each, text) -> output."""
    folder = checkpoint / "transformer"
    dit = diffusers.LTXVideoTransformer3DModel.from_pretrained(folder).eval()
    pipe = official.LTXConditionPipeline

    @torch.no_grad()
    def call(latents, sigmas, text):
        shape = latents.shape[2:]
        places = pipe._scale_video_ids(pipe._prepare_video_ids(1, *shape)).float()
        places[:, 0] = places[:, 0] * (1.0 / 25)
        each = sigmas.repeat_interleave(shape[1] * shape[2])[None]
        out = dit(
            pipe._pack_latents(latents), text["embeds"][:, 0], 1000 * each, text["mask"],
            video_coords=places, return_dict=False,
        )[0]  # fmt: skip
        return pipe._unpack_latents(out, *shape)

    return call


@pytest.mark.parametrize("known", [0, 1, 2])
def test_velocity_is_the_transformers_own_output(model, theirs, clip, known):
    """noise - latents, as it is: the minus in diffusers' pipeline is its scheduler's."""
    context = clip.context[:, :, :known]
    found = model.velocity(clip.target, torch.tensor([0.3]), context, clip.text)
    sigmas = torch.tensor([0.0] * known + [0.3, 0.3])
    expected = theirs(torch.cat([context, clip.target], dim=2), sigmas, clip.text)
    assert expected.abs().max() > 0.1
    assert_near(found, expected[:, :, known:], 1e-5)


def test_draws_in_a_batch_are_those_of_one_each(model, theirs, clip):
    noisy, sigma = torch.randn(3, *clip.target.shape[1:]), torch.tensor([0.1, 0.5, 0.9])
    found = model.velocity(noisy, sigma, clip.context, clip.text)
    for each, s, v in zip(noisy, sigma, found, strict=True):
        latents = torch.cat([clip.context, each[None]], dim=2)
        expected = theirs(latents, s * torch.tensor([0, 0, 1, 1]), clip.text)
        assert_near(v[None], expected[:, :, 2:], 1e-5)


def test_padding_of_a_prompt_is_not_seen(model, clip):
    plain, none = loss_of(model, clip), clip.text["mask"][:, None, :, None] == 0
    assert none.any()
    losses = []
    for changed in (none, ~none):
        text = clip.text | {"embeds": clip.text["embeds"] + changed}
        losses.append(loss_of(model, SimpleNamespace(**vars(clip) | {"text": text})))
    assert_near(losses[0], plain, 1e-6)
    assert abs(losses[1] - plain) > 1e-4


def draws_of(noise, known, steps):
    """What the pipeline draws, in its order, where ours draws the same: the initial noise, and at
    every step that on the context."""
    generator, shape = generator_of(noise), (1, 8, known, *noise.shape[3:])
    contexts = [torch.randn(shape, generator=generator) for _ in range(max(1, steps))]
    yield torch.cat([contexts[0], noise], dim=2)
    for context in contexts[:steps]:
        yield official.LTXConditionPipeline._pack_latents(torch.cat([context, noise], dim=2))


GENERATIONS = {"pixels": (1.0, 0.0, "pt"), "clean": (1.0, 0.0, "latent")}
GENERATIONS |= {"noise": (1.0, 0.15, "latent"), "weak": (0.2, 0.0, "latent")}


@pytest.mark.parametrize(("strength", "scale", "kind"), GENERATIONS.values(), ids=GENERATIONS)
def test_a_generation_is_diffusers_pipeline(model, checkpoint, monkeypatch, strength, scale, kind):
    """With its options of the context, which is a clip of 17 frames."""
    frames = (torch.rand(17, 3, 64, 96, generator=torch.Generator().manual_seed(1)) * 255).round()
    noise = torch.randn(1, 8, 2, 2, 3)
    queue = draws_of(noise, 3, 4 if scale else 0)
    decoders = torch.randn(1, 8, 5, 2, 3, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(official, "randn_tensor", lambda *_, **__: next(queue, decoders))
    # where it samples the context's posterior, mode is ours
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, _: self.mode())
    pipe = official.LTXConditionPipeline(**parts(checkpoint))
    pipe.set_progress_bar_config(disable=True)
    options = {"strength": strength, "image_cond_noise_scale": scale}
    expected = pipe(
        video=[list(frames / 255)], prompt="a red ball", negative_prompt="a cat", num_frames=33,
        height=64, width=96, frame_rate=25, max_sequence_length=16, num_inference_steps=4,
        guidance_scale=4.0, decode_timestep=0.05, decode_noise_scale=0.025, output_type=kind,
        **options,
    ).frames  # fmt: skip
    text, negative = model.embed_each(["a red ball", "a cat"])
    context = model.encode(frames.transpose(0, 1)[None] / 255)
    found = model.generate(context, text, negative, noise, 4, 4.0, **options)
    if kind == "latent":
        assert_near(found, expected[:, :, 3:], 1e-4)
    else:
        pixels = model.decode(torch.cat([context, found], dim=2)).transpose(1, 2)
        assert pixels.shape[1] == 33 and expected.std() > 0.01
        assert_near(pixels, expected, 1e-4)


def parts(checkpoint):
    """What the toy's model_index.json, which lists no classes, leaves to say."""
    from transformers import AutoTokenizer, T5EncoderModel

    return {
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
        "vae": diffusers.AutoencoderKLLTXVideo.from_pretrained(checkpoint / "vae").eval(),
        "text_encoder": T5EncoderModel.from_pretrained(checkpoint / "text_encoder").eval(),
        "tokenizer": AutoTokenizer.from_pretrained(checkpoint / "tokenizer"),
        "transformer": diffusers.LTXVideoTransformer3DModel.from_pretrained(
            checkpoint / "transformer"
        ).eval(),
    }


def test_the_schedules_are_its_pipelines():
    """From 0.9.5 on the linear and quadratic one, before that even sigmas, shifted."""
    for steps in (1, 2, 5, 40):
        assert_near(linear_quadratic(steps), official.linear_quadratic_schedule(steps), 1e-6)
    shifting = diffusers.FlowMatchEulerDiscreteScheduler(**OF_0_9_0)
    for steps, tokens in ((4, 30), (50, 1650)):
        mu = official.calculate_shift(tokens, 1024, 4096, 0.95, 2.05)
        sigmas = np.linspace(1.0, 1 / steps, steps)
        official.retrieve_timesteps(shifting, sigmas=sigmas, mu=mu)
        expected = shifting.sigmas.clone()
        assert expected[-2] == pytest.approx(0.1)
        assert_near(schedule(shifting, steps, tokens), expected, 1e-6)


def test_of_0_9_0_the_number_of_places_shifts(tmp_path):
    """Context and continuation together; its decoder has no timestep."""
    model = backbones.load(make_ltx(tmp_path / "0.9.0", VAE_OF_0_9_0, **OF_0_9_0))
    clip, seen = toy_clip(model), []
    with model.timestep_embedding(lambda i, e, sigma: seen.append(sigma[0, -1].item()) or e):
        found = sample(model, clip, 5)
    assert seen[::5] == pytest.approx(schedule(model.scheduler, 5, 4 * 4 * 6)[:5].tolist())
    latents = torch.cat([clip.cond_latents, found], dim=2)
    z = latents * model.vae.latents_std.view(1, -1, 1, 1, 1)
    expected = model.vae.decode(z + model.vae.latents_mean.view(1, -1, 1, 1, 1)).sample
    assert_near(model.decode(latents), (expected / 2 + 0.5).clamp(0, 1), 1e-6)


def test_of_0_9_0_the_first_latent_counts_as_any_other(tmp_path):
    """Places as LTXPipeline and LTXImageToVideoPipeline tell them."""
    folder = make_ltx(tmp_path / "0.9.0", VAE_OF_0_9_0, **OF_0_9_0)
    model = backbones.load(folder)
    clip, pipe = toy_clip(model), official.LTXConditionPipeline
    theirs = diffusers.LTXVideoTransformer3DModel.from_pretrained(folder / "transformer").eval()
    latents = torch.cat([clip.context, clip.target], dim=2)
    shape, sigmas = latents.shape[2:], torch.tensor([0.0, 0.0, 0.3, 0.3])
    with torch.no_grad():
        out = theirs(
            pipe._pack_latents(latents), clip.text["embeds"][:, 0],
            1000 * sigmas.repeat_interleave(shape[1] * shape[2])[None], clip.text["mask"],
            *shape, rope_interpolation_scale=(8 / 25, 32, 32), return_dict=False,
        )[0]  # fmt: skip
    found = model.velocity(clip.target, torch.tensor([0.3]), clip.context, clip.text)
    assert_near(found, pipe._unpack_latents(out, *shape)[:, :, 2:], 1e-5)


def test_of_0_9_1_decoding_draws_nothing_of_others(tmp_path):
    """Its decoder's layers add noise of their own, from torch's global stream."""
    folder = make_ltx(tmp_path / "0.9.1", VAE_OF_0_9_1, **OF_0_9_0)
    model, latents = backbones.load(folder), torch.randn(1, 8, 3, 2, 3)
    for name, p in model.vae.named_parameters():
        if "per_channel_scale" in name:
            p.fill_(0.5)
    before = torch.random.get_rng_state()
    found = model.decode(latents)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.randn(3)
    assert torch.equal(model.decode(latents), found)
    model.decode_noise_scale = 0.5
    assert not torch.equal(model.decode(latents), found)
