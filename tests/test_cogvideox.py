"""The CogVideoX backbone against diffusers' own transformer and pipelines, its conversion of
v-prediction, and what it does not take. Its folders are in test_cogvideox_files.py."""

import diffusers
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from oracles import assert_near
from toy import COGVIDEOX_SCHEDULE, COGVIDEOX_VAE, make_cogvideox, new, toy_clip
from transformers import AutoTokenizer, T5EncoderModel

import backbones
from adasteer import AdaSteer
from backbones import vprediction
from backbones.sampling import generator_of, noise_beside

TEXT_ONLY = {"in_channels": 16, "use_learned_positional_embeddings": False}
NEWER = {
    "patch_size_t": 2, "patch_bias": False, "sample_height": 300, "sample_width": 300,
    "use_learned_positional_embeddings": False,
}  # fmt: skip
KINDS = {  # what differs from 5b-I2V, and its autoencoder
    "5b-I2V": ({}, {}),
    "1.5-5B-I2V": (NEWER | {"ofs_embed_dim": 16}, {"invert_scale_latents": True}),
    "1.5-5B": (NEWER | TEXT_ONLY, {}),
    "5b": (TEXT_ONLY, {}),
    "2b": (TEXT_ONLY | {"use_rotary_positional_embeddings": False}, {}),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """kind -> its checkpoint, made when it is first asked for."""
    found = {}

    def checkpoint(kind):
        if kind not in found:
            config, vae = KINDS[kind]
            folder = tmp_path_factory.mktemp("toy") / f"CogVideoX-{kind}"
            found[kind] = make_cogvideox(folder, vae=COGVIDEOX_VAE | vae, **config)
        return found[kind]

    return checkpoint


@pytest.fixture
def model(made):
    return backbones.load(made("5b-I2V"))


@pytest.fixture(scope="module")
def clip(made):
    return toy_clip(backbones.load(made("5b-I2V")))


def pipeline(folder, kind):
    """diffusers' own, of the parts in a folder."""
    scheduler = diffusers.CogVideoXDDIMScheduler.from_pretrained(folder / "scheduler")
    cls = diffusers.CogVideoXImageToVideoPipeline
    if not kind.endswith("I2V"):
        cls = diffusers.CogVideoXPipeline
    pipe = cls(
        AutoTokenizer.from_pretrained(folder / "tokenizer"),
        T5EncoderModel.from_pretrained(folder / "text_encoder"),
        diffusers.AutoencoderKLCogVideoX.from_pretrained(folder / "vae").eval(),
        diffusers.CogVideoXTransformer3DModel.from_pretrained(folder / "transformer").eval(),
        scheduler,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


# The conversion


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_conversion_is_exact_at_every_timestep(shift):
    """Against diffusers' own noise and v-prediction, in float64."""
    scheduler = diffusers.CogVideoXDDIMScheduler(**COGVIDEOX_SCHEDULE | {"snr_shift_scale": shift})
    t = torch.arange(1000)
    latents, noise = torch.randn(2, 1000, 7, dtype=torch.float64)
    x_t = scheduler.add_noise(latents, noise, t)
    v = scheduler.get_velocity(latents, noise, t)
    sigmas = vprediction.sigmas_of(scheduler.alphas_cumprod)
    noisy = (1 - sigmas[:, None]) * latents + sigmas[:, None] * noise
    assert (sigmas.diff() > 0).all() and sigmas[-1] == 1
    assert_near(vprediction.scaled(noisy, sigmas), x_t, 1e-9)
    assert_near(vprediction.velocity_of(v, x_t, sigmas), noise - latents, 1e-9)
    assert_near(vprediction.v_of(noise - latents, x_t, sigmas), v, 1e-9)
    assert torch.equal(vprediction.timestep_of(sigmas, sigmas), t.double())


def test_between_timesteps_they_are_interpolated_and_below_the_first_there_is_none():
    sigmas = torch.tensor([0.1, 0.2, 0.4, 1.0], dtype=torch.float64)
    given = torch.tensor([0.0, 0.1, 0.15, 0.35, 0.7, 1.0], dtype=torch.float64)
    found = vprediction.timestep_of(given, sigmas)
    assert found.tolist() == pytest.approx([0, 0, 0.5, 1.75, 2.5, 3])


def test_the_lowest_sigma_is_that_of_the_first_timestep(model):
    """snr_shift_scale raises it; draws of a run are bounded by it."""
    bar = 1 - 0.00085
    a, s = bar**0.5, (1 - bar) ** 0.5
    assert model.sigma_min == pytest.approx(s / (a + s), rel=1e-6)
    shifted = diffusers.CogVideoXDDIMScheduler(**COGVIDEOX_SCHEDULE | {"snr_shift_scale": 3.0})
    assert vprediction.sigmas_of(shifted.alphas_cumprod)[0] > model.sigma_min


# Against diffusers


def expected_velocity(pipe, noisy, t, sigma, cond, text):
    """x_t of the pipelines' layout, v of their transformer, noise - latents by the inverse of x_t
    and v; and how many latents came before the new ones."""
    config, bar = pipe.transformer.config, pipe.scheduler.alphas_cumprod[t].float()
    a, s = bar.sqrt(), (1 - bar).sqrt()
    span, known = config.patch_size_t or 1, cond.shape[2]
    first = cond[:, :, :1].expand(-1, -1, -(known + noisy.shape[2]) % span, -1, -1)
    clean = torch.cat([first, cond], dim=2)
    beside = noise_beside(noisy, clean.shape[2]) if clean.shape[2] else clean
    x_t = torch.cat([a * clean + s * beside, noisy * (a + s)], dim=2).transpose(1, 2)
    given = x_t
    if config.in_channels == 32:
        image = torch.zeros_like(x_t)
        factor = pipe.vae.config.scaling_factor if pipe.vae.config.invert_scale_latents else 1
        image[:, :known] = cond.transpose(1, 2) / factor**2
        given = torch.cat([x_t, image], dim=2)
    size = 8 * x_t.shape[3], 8 * x_t.shape[4]
    rotary = None
    if config.use_rotary_positional_embeddings:
        rotary = pipe._prepare_rotary_positional_embeddings(*size, x_t.shape[1], "cpu")
    ofs = None if config.ofs_embed_dim is None else torch.full((1,), 2.0)
    v = pipe.transformer(
        given, text["embeds"][0], t.view(1), ofs=ofs, image_rotary_emb=rotary, return_dict=False
    )[0]
    clean, noise = a * x_t - s * v, s * x_t + a * v
    return (noise - clean).transpose(1, 2)[:, :, -noisy.shape[2] :]


@pytest.mark.parametrize(
    ("kind", "known", "count", "size"),
    [
        ("5b-I2V", 1, 4, (4, 6)),  # as many as positions are learned for
        ("1.5-5B-I2V", 1, 4, (4, 6)),  # the first twice
        ("1.5-5B-I2V", 1, 3, (6, 4)),
        ("1.5-5B", 0, 4, (4, 6)),
        ("5b", 0, 5, (4, 8)),  # positions scaled and cropped
        ("2b", 0, 5, (4, 6)),
        ("2b", 0, 7, (6, 6)),
    ],
)
@torch.no_grad()
def test_velocity_is_that_of_the_transformers_own_output(made, kind, known, count, size):
    model, pipe = backbones.load(made(kind)), pipeline(made(kind), kind)
    noisy, cond = torch.randn(1, 16, count, *size), torch.randn(1, 16, known, *size)
    text = next(model.embed_each(["a red ball"]))
    for t in torch.tensor([0, 300, 999]):
        sigma = model.sigmas[t].view(1)
        expected = expected_velocity(pipe, noisy, t, sigma, cond, text)
        found = model.velocity(noisy, sigma, cond, text)
        assert found.dtype == torch.float32 and expected.abs().max() > 0.1
        assert_near(found, expected, 1e-5)


@torch.no_grad()
def test_a_shorter_video_has_the_first_learned_positions(made, model, clip):
    """diffusers' transformer has sines in their place there; ours is what it makes of a table cut
    off after them."""
    kind = "5b-I2V"
    pipe = pipeline(made(kind), kind)
    embed = pipe.transformer.patch_embed
    noisy, sigma = clip.target, model.sigmas[400].view(1)
    given = noisy, torch.tensor(400), sigma, clip.cond_latents, clip.text
    sines = expected_velocity(pipe, *given)
    embed.sample_frames, embed.pos_embedding = 9, embed.pos_embedding[:, : 16 + 3 * 2 * 3]
    found = model.velocity(noisy, sigma, clip.cond_latents, clip.text)
    assert_near(found, expected_velocity(pipe, *given), 1e-5)
    assert (found - sines).abs().max() > 1e-3


@torch.no_grad()
def test_one_group_is_a_hook_on_the_time_embedding(made, model, clip):
    """Blocks, the text's modulation in them, and final layer: all that reads the embedding."""
    delta = torch.linspace(-0.5, 0.5, model.embedding_width)
    method, _ = new(AdaSteer, "--groups 1 --final-layer", model, clip)
    method.named_parameters()["delta.0"].copy_(delta)
    noisy = torch.randn(1, 16, 4, 4, 6)
    sigma, cond = model.sigmas[500].view(1), clip.cond_latents
    with method.attached():
        found = model.velocity(noisy, sigma, cond, clip.text)
    pipe = pipeline(made("5b-I2V"), "5b-I2V")
    given = pipe, noisy, torch.tensor(500), sigma, cond, clip.text
    plain = expected_velocity(*given)
    pipe.transformer.time_embedding.register_forward_hook(lambda module, given, out: out + delta)
    assert_near(found, expected_velocity(*given), 1e-5)
    assert (found - plain).abs().max() > 1e-3


def test_prompts_are_the_pipelines(made, model):
    prompts = ["a red ball moves left", ""]
    pipe = pipeline(made("5b-I2V"), "5b-I2V")
    with torch.no_grad():
        expected = pipe.encode_prompt(prompts, do_classifier_free_guidance=False,
                                      max_sequence_length=16)[0]  # fmt: skip
    found = torch.cat([text["embeds"][0] for text in model.embed_each(prompts)])
    assert_near(found, expected, 1e-6)


GENERATIONS = [
    ("5b-I2V", 17, {}), ("5b-I2V", 17, {"dynamic_guidance": True, "dpm": True}),
    ("1.5-5B-I2V", 17, {"dpm": True}), ("1.5-5B", 17, {}), ("2b", 9, {}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "frames", "options"), GENERATIONS)
@torch.no_grad()
def test_a_generation_is_the_pipelines(made, kind, frames, options, monkeypatch):
    """From one image, noise and prompt, to pixels."""
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, *_, **__: self.mode())
    model, pipe = backbones.load(made(kind)), pipeline(made(kind), kind)
    if options.get("dpm"):
        pipe.scheduler = diffusers.CogVideoXDPMScheduler.from_config(pipe.scheduler.config)
    text, negative = model.embed_each(["a red ball", ""])
    known, more = int(kind.endswith("I2V")), {}
    image = torch.rand(1, 3, 1, 32, 48)
    cond = model.encode(image) if known else torch.zeros(1, 16, 0, 4, 6)
    noise = torch.randn(1, 16, model.geometry.latents_of(frames) - known, 4, 6)
    beside = known + -(known + noise.shape[2]) % model.dit.patch[0]
    start = torch.cat([noise_beside(noise, beside), noise], dim=2) if beside else noise
    if known:
        more["image"] = image[:, :, 0]
    expected = pipe(
        num_inference_steps=4, guidance_scale=6.0, num_frames=frames, height=32, width=48,
        latents=start.transpose(1, 2), generator=generator_of(noise), output_type="latent",
        use_dynamic_cfg=options.get("dynamic_guidance", False), max_sequence_length=16,
        prompt_embeds=text["embeds"][0], negative_prompt_embeds=negative["embeds"][0], **more,
    ).frames.transpose(1, 2)  # fmt: skip
    found = model.generate(cond, text, negative, noise, 4, 6.0, **options)
    assert_near(found, expected[:, :, beside:], 1e-4)
    if found.shape[2] % 2:
        pixels = pipe.decode_latents(found.transpose(1, 2)) / 2 + 0.5
        assert_near(model.decode(found), pixels.clamp(0, 1), 1e-5)


# Latents, and what is not taken


@pytest.mark.parametrize("frames", [1, 5, 9, 13, 17])
def test_any_4k_1_frames_go_forth_and_back(model, frames):
    """diffusers decodes an even number of latents, of 5 and 13 frames, to 4 for each of them."""
    latents = model.encode(torch.rand(1, 3, frames, 32, 48))
    assert latents.shape[2] == 1 + frames // 4
    decoded = model.decode(latents)
    assert decoded.shape[2] == frames
    if frames in (5, 13):
        theirs = model.vae.decode(latents / model.vae.config.scaling_factor).sample
        assert theirs.shape[2] == frames + 3


def test_what_it_cannot_take_is_said(made, model, clip):
    sigma = torch.tensor([0.5])
    text_only, newer = backbones.load(made("5b")), backbones.load(made("1.5-5B"))
    with pytest.raises(ValueError, match="text-to-video model, of 16 channels.* got 1"):
        text_only.velocity(clip.target, sigma, clip.cond_latents, clip.text)
    nothing = clip.target[:, :, :0]
    with pytest.raises(ValueError, match=r"multiples of \(2, 2, 2\), got \(3, 4, 6\)"):
        newer.velocity(torch.randn(1, 16, 3, 4, 6), sigma, nothing, clip.text)
    for shape in ((5, 4, 6), (2, 4, 8)):  # longer, and of another size, than its positions
        with pytest.raises(ValueError, match=r"positions are learned for \(5, 2, 3\)"):
            cond = torch.randn(1, 16, 1, *shape[1:])
            model.velocity(torch.randn(1, 16, *shape), sigma, cond, clip.text)


def test_before_the_head_of_a_token_that_spans_the_context_too(made):
    """1.5's of one shown latent and three new ones: the first pair is both."""
    model = backbones.load(made("1.5-5B-I2V"))
    clip, sigma = toy_clip(model), torch.tensor([0.5])
    for count in (2, 3, 4):
        noisy = torch.randn(1, 16, count, 4, 6)
        given = noisy, sigma, clip.cond_latents, clip.text
        found = model.before_head(*given)
        assert_near(model.head(*found, noisy, sigma), model.velocity(*given), 1e-5)
