"""The Wan backbone against diffusers' own transformer and pipelines, and what it cannot take."""

import json

import diffusers
import pytest
import torch
from oracles import SHARED, assert_near
from test_configs import GONE, changed
from toy import make_wan, sample, toy_clip
from transformers import AutoTokenizer, UMT5EncoderModel

import adasteer
import backbones

CLIPS = SHARED / "clips" / "metadata.csv"
needs_clips = pytest.mark.skipif(not CLIPS.is_file(), reason=f"no real clips at {SHARED}")
SCHEDULER, INDEX = "scheduler/scheduler_config.json", "model_index.json"
EULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_wan(tmp_path_factory.mktemp("toy") / "Wan2.2-TI2V-5B-Diffusers")


@pytest.fixture(scope="module")
def text_to_video(checkpoint, tmp_path_factory):
    """The same weights without a timestep for each token, as 2.1's."""
    folder = tmp_path_factory.mktemp("toy") / "Wan2.1-T2V-1.3B-Diffusers"
    return changed(checkpoint, folder, INDEX, expand_timesteps=GONE)


@pytest.fixture
def model(checkpoint):
    return backbones.load(checkpoint)


@pytest.fixture(scope="module")
def clip(checkpoint):
    return toy_clip(backbones.load(checkpoint))


@pytest.fixture(scope="module")
def dit(checkpoint):
    return diffusers.WanTransformer3DModel.from_pretrained(checkpoint / "transformer").eval()


@torch.no_grad()
def theirs(dit, latents, sigmas, text):
    """What diffusers' transformer makes of latents at the sigma of each frame, with a timestep for
    each token as its pipeline gives them."""
    _, _, frames, height, width = latents.shape
    mask = torch.ones(frames, height, width) * sigmas.view(-1, 1, 1)
    prompt = text["embeds"][:, 0] * text["mask"][..., None]  # padding is zeros
    timestep = 1000 * mask[:, ::2, ::2].flatten()[None]
    return dit(latents, timestep, prompt, return_dict=False)[0]


def pipeline(cls, folder, dit, **config):
    """diffusers' pipeline of the parts in a folder."""
    scheduler = json.loads((folder / SCHEDULER).read_text())
    kind = getattr(diffusers, scheduler["_class_name"])
    pipe = cls(
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        text_encoder=UMT5EncoderModel.from_pretrained(folder / "text_encoder"),
        vae=diffusers.AutoencoderKLWan.from_pretrained(folder / "vae").eval(),
        scheduler=kind.from_config(scheduler),
        transformer=dit,
        **config,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("known", [0, 1, 2])
def test_velocity_is_the_transformers_own_output(model, dit, clip, known):
    """A batch of draws is one each."""
    context, sigma = clip.context[:, :, :known], torch.tensor([0.3, 0.9])
    noisy = torch.cat([clip.target, torch.randn(clip.target.shape)])
    found = model.velocity(noisy, sigma, context, clip.text)
    for each, s, v in zip(noisy, sigma, found, strict=True):
        sigmas = torch.cat([torch.zeros(known), s.repeat(2)])
        expected = theirs(dit, torch.cat([context, each[None]], dim=2), sigmas, clip.text)
        assert expected.abs().max() > 0.1
        assert_near(v[None], expected[:, :, known:], 1e-5)


@pytest.mark.parametrize("scheduler", ["UniPC", "Euler"])
def test_a_generation_is_that_of_the_image_to_video_pipeline(checkpoint, dit, scheduler, tmp_path):
    """From pixels and a prompt, with the first latent frame given."""
    folder = checkpoint
    if scheduler == "Euler":
        folder = changed(checkpoint, tmp_path / "euler", SCHEDULER, text=json.dumps(EULER))
    model = backbones.load(folder)
    assert model.geometry.sampling["shift"] == (3.0 if scheduler == "Euler" else 5.0)
    torch.manual_seed(1)
    image, noise = torch.rand(1, 3, 32, 64), torch.randn(1, 12, 3, 2, 4)
    pipe = pipeline(diffusers.WanImageToVideoPipeline, folder, dit, expand_timesteps=True)
    expected = pipe(
        image, "a red ball &amp; a cat", "blurred", 32, 64, num_frames=9, num_inference_steps=4,
        latents=noise, output_type="latent", max_sequence_length=16,
    ).frames  # fmt: skip
    cond_latents = model.encode(image[:, :, None])
    texts = model.embed_each(["a red ball &amp; a cat", "blurred"])
    found = model.generate(cond_latents, *texts, noise[:, :, 1:], 4, whole_timesteps=True)
    assert_near(torch.cat([cond_latents, found], dim=2), expected, 1e-4)
    assert_near(model.decode(expected), pixels(pipe, expected), 1e-5)


def pixels(pipe, latents):
    mean, std = (
        torch.tensor(pipe.vae.config[name]).view(1, -1, 1, 1, 1)
        for name in ("latents_mean", "latents_std")
    )
    with torch.no_grad():
        video = pipe.vae.decode(latents * std + mean, return_dict=False)[0]
    return pipe.video_processor.postprocess_video(video, output_type="pt").transpose(1, 2)


def test_a_text_to_video_model_generates_without_a_context(text_to_video, dit, clip):
    """One timestep for all tokens: diffusers' transformer and pipeline."""
    model, noise = backbones.load(text_to_video), torch.randn(1, 12, 3, 2, 4)
    none, prompt = noise[:, :, :0], clip.text["embeds"][:, 0] * clip.text["mask"][..., None]
    with torch.no_grad():
        expected = dit(noise, torch.tensor([300.0]), prompt, return_dict=False)[0]
    assert_near(model.velocity(noise, torch.tensor([0.3]), none, clip.text), expected, 1e-5)
    pipe = pipeline(diffusers.WanPipeline, text_to_video, dit)
    expected = pipe(
        "a red ball", "", 32, 64, num_frames=9, num_inference_steps=3, latents=noise,
        output_type="latent", max_sequence_length=16,
    ).frames  # fmt: skip
    found = model.generate(none, clip.text, clip.negative_text, noise, 3, whole_timesteps=True)
    assert_near(found, expected, 1e-4)


def test_sampling_sees_the_sigmas_of_its_scheduler(model, clip):
    """But for `whole_timesteps`, which rounds them as diffusers' UniPC does."""
    seen = []
    hook = model.dit.register_forward_pre_hook(lambda _, args: seen.append(args[1][0]))
    for whole in (False, True):
        sample(model, clip, 2, guidance_scale=1.0, shift=4.0, whole_timesteps=whole)
    hook.remove()
    assert all(not timestep[:2].any() for timestep in seen)  # the context is clean
    second = 1000 * 4 * 0.5005 / (1 + 3 * 0.5005)
    expected = [1000 * (1 - 1e-6), second, 999, int(second)]
    assert [t[-1].item() for t in seen] == pytest.approx(expected, rel=1e-6)


def test_what_the_files_say_before_a_weight_is_read(checkpoint, text_to_video, tmp_path):
    for folder, size, fps in ((checkpoint, (704, 1280), 24.0), (text_to_video, (480, 832), 16.0)):
        index = {"height": GONE, "width": GONE}
        found = backbones.geometry(changed(folder, tmp_path / folder.name, INDEX, **index))
        assert (found.size, found.fps, found.size_multiple) == (size, fps, 32)


@pytest.mark.parametrize(("flags", "right"), [
    ("--size 70x40", "--size 70x40: this checkpoint needs multiples of 32, such as 64x32"),
    ("--cond-frames 16", "got 16: the autoencoder would drop the last of them; try 13 or 17"),
    ("--context-latents 9", "--context-latents must be in 1..8, got 9"),
    ("--sampling context_noise=0.1", "known are shift=5.0 whole_timesteps=false"),
])  # fmt: skip
def test_what_it_cannot_take_is_one_line_that_says_what_it_can(
    flags, right, checkpoint, script, tmp_path, capsys
):
    given = ["--checkpoint", checkpoint, *flags.split(), "--out", tmp_path / "out"]
    assert script(adasteer, *given) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert right in said and not (tmp_path / "out").exists()


def test_text_to_video_continues_nothing(text_to_video, script, tmp_path, capsys):
    assert script(adasteer, "--checkpoint", text_to_video, "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"--checkpoint {text_to_video}: a text-to-video model: its network was never" in said
    assert not (tmp_path / "out").exists()


@needs_clips
@pytest.mark.parametrize(("known", "right"), [
    ("", "; zero-shot: 5 context latents to generate and 5 to adapt, where training had 1; "),
    ("--cond-frames 1 --context-latents 1", ""),
])  # fmt: skip
def test_the_first_line_says_where_it_is_zero_shot(
    known, right, checkpoint, script, tmp_path, capsys
):
    flags = ["--checkpoint", checkpoint, "--videos", CLIPS, "--limit", 1, "--steps", 0]
    assert script(adasteer, *flags, *known.split(), "--no-generate", "--out", tmp_path) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert right in first and ("zero-shot" in first) == bool(right)
