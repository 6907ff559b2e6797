"""The Wan backbone against diffusers' own transformer and pipelines, its configurations, and every
method on it from the command line."""

import contextlib
import importlib
import json

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import SHARED, assert_near
from test_configs import ANYTHING, EXTRA, GONE, NAN, changed, use
from test_scripts import SCRIPTS
from toy import loss_of, make_wan, new, sample, toy_clip
from transformers import AutoTokenizer, UMT5EncoderModel

import adasteer
import backbones
from adasteer import AdaSteer
from backbones.wan_dit import WanTransformer3DModel
from devices.compiling import compile_blocks
from lora_tta import LoRA

CLIPS = SHARED / "clips" / "metadata.csv"
needs_clips = pytest.mark.skipif(not CLIPS.is_file(), reason=f"no real clips at {SHARED}")
DIT, INDEX = "transformer/config.json", "model_index.json"
SCHEDULER = "scheduler/scheduler_config.json"
FILES = (DIT, SCHEDULER, "vae/config.json", "text_encoder/config.json", INDEX)
EULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
RELEASED = {"attention_head_dim": 128, "text_dim": 4096, "freq_dim": 256}
SIZES = {  # heads, width of the feed-forward, blocks, channels: parameters
    (24, 14336, 30, 48): 4_999_787_712,  # 2.2 TI2V 5B
    (12, 8960, 30, 16): 1_418_996_800,  # 2.1 T2V 1.3B
    (40, 13824, 40, 16): 14_288_491_584,  # 2.1 T2V 14B, and each of the two of 2.2 A14B
}


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


@pytest.mark.parametrize(("size", "count"), SIZES.items())
def test_parameters_of_the_releases(size, count):
    heads, ffn, blocks, channels = size
    config = {"num_attention_heads": heads, "ffn_dim": ffn, "num_layers": blocks}
    config |= dict.fromkeys(("in_channels", "out_channels"), channels)
    with torch.device("meta"):
        dit = WanTransformer3DModel(**RELEASED, **config)
    assert sum(p.numel() for p in dit.parameters()) == count


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


def test_one_group_is_a_hook_on_the_time_embedder(model, clip):
    """Blocks and final layer: everything that reads the embedding."""
    delta = torch.linspace(-0.5, 0.5, model.embedding_width)
    plain = loss_of(model, clip)
    method, _ = new(AdaSteer, "--groups 1 --final-layer", model, clip)
    with torch.no_grad():
        method.named_parameters()["delta.0"].copy_(delta)
    with method.attached():
        found, latents = loss_of(model, clip), sample(model, clip)
    embedder = model.dit.condition_embedder.time_embedder
    handle = embedder.register_forward_hook(lambda module, given, out: out + delta)
    expected, expected_latents = loss_of(model, clip), sample(model, clip)
    handle.remove()
    assert abs(expected - plain) > 1e-4
    assert_near(found, expected, 1e-5)
    assert_near(latents, expected_latents, 1e-5)


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


@pytest.mark.parametrize(("method", "flags"), [(AdaSteer, "--groups 2 --final-layer"), (LoRA, "")])
def test_gradients_are_the_same_however_blocks_run(checkpoint, clip, method, flags):
    ways = {
        "plain": lambda model: model.recompute(0),
        "recomputed": lambda model: model.recompute(None),
        "streamed": lambda model: (model.place("blocks"), model.recompute(None)),
        "compiled": lambda model: compile_blocks(model, "aot_eager"),
    }
    gradients = {}
    for name, change in ways.items():
        torch._dynamo.reset()
        model = backbones.load(checkpoint)
        change(model)
        adapted, _ = new(method, flags, model, clip)
        with adapted.attached():
            loss_of(model, clip).backward()
        gradients[name] = [p.grad for p in adapted.named_parameters().values()]
    for found in gradients.values():
        for gradient, plain in zip(found, gradients["plain"], strict=True):
            assert_near(gradient, plain, 1e-5)
    assert any(g.abs().max() > 1e-3 for g in gradients["plain"])


def test_float8_stays_close(checkpoint, model, clip):
    rounded = backbones.load(checkpoint, float8=True)
    stored = {name: p.dtype for name, p in rounded.dit.named_parameters()}
    assert stored["blocks.0.attn1.to_q.weight"] == torch.float8_e4m3fn
    assert stored["condition_embedder.time_proj.weight"] == torch.float32
    exact = sample(model, clip)
    assert (sample(rounded, clip) - exact).square().mean() < 0.01 * exact.square().mean()


WRONG = [
    (DIT, "num_layers", 0, "a whole number from 1 to 256"),
    (DIT, "num_layers", 3, "has no place in its config.json for"),
    (DIT, "attention_head_dim", 25, "25; it must be even"),
    (DIT, "text_dim", 64, "64; it must be 32, the d_model of the text encoder"),
    (DIT, "in_channels", 36, "36; it must be 12, the z_dim of the vae"),
    (DIT, "ffn_dim", GONE, "has no ffn_dim"),
    (DIT, "image_dim", 1280, "1280; it must be null"),
    (SCHEDULER, "prediction_type", "epsilon", '"epsilon"; it must be "flow_prediction"'),
    (SCHEDULER, "flow_shift", NAN, "NaN; it must be a finite number"),
    (SCHEDULER, "_class_name", "DDIMScheduler", "UniPCMultistepScheduler or FlowMatchEuler"),
    ("vae/config.json", "patch_size", 1, "scale_factor_spatial is 16; it must be 8"),
    (INDEX, "height", 48, "48; it must be a multiple of 32"),
    (INDEX, "boundary_ratio", 0.875, "0.875; it must be null: a pair of transformers"),
    (INDEX, "expand_timesteps", 1, "1; it must be true or false"),
]


@pytest.mark.parametrize(("file", "key", "value", "right"), WRONG)
def test_wrong_values_are_named(file, key, value, right, checkpoint, tmp_path):
    folder = changed(checkpoint, tmp_path / "changed", file, **{key: value})
    with pytest.raises(backbones.CheckpointError) as found:
        backbones.load(folder)
    said = str(found.value)
    assert right in said and "\n" not in said and file.split("/")[0] in said


@settings(deadline=None, max_examples=8)
@given(data=st.data())
def test_any_configuration_gives_a_model_or_one_line(data, checkpoint, tmp_path_factory):
    file = data.draw(st.sampled_from(FILES))
    keys = [*json.loads((checkpoint / file).read_text()), *EXTRA]
    key, value = data.draw(st.sampled_from(keys)), data.draw(st.just(GONE) | ANYTHING)
    folder = tmp_path_factory.mktemp("any") / "changed"
    changed(checkpoint, folder, file, **{key: value})
    with contextlib.suppress(backbones.CheckpointError):
        use(backbones.load(folder))


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


@needs_clips
@pytest.mark.parametrize("name", SCRIPTS)
def test_every_method_from_the_command_line(name, checkpoint, script, tmp_path):
    flags = ["--checkpoint", checkpoint, "--videos", CLIPS, "--limit", 1, "--save-adapter"]
    flags += ["--steps", 2, "--sampling-steps", 2]
    assert script(importlib.import_module(name), *flags, "--out", tmp_path) == 0
    (path,) = (tmp_path / "videos").glob("*.json")
    record = json.loads(path.read_text())
    assert record["kept"] == "adapted" and len(record["losses"]) == 2
    assert record["preflight"]["loss"] < record["preflight"]["zero_loss"]
    assert record["frame_indices"]["generated"] == [33, 49] and record["psnr_db"] > 0
    assert record["future_loss"] != record["future_loss_before"]


@needs_clips
def test_memory_and_time_are_traded_without_a_number_changing(checkpoint, script, tmp_path):
    flags = ["--checkpoint", checkpoint, "--videos", CLIPS, "--limit", 1, "--steps", 2]
    flags += ["--draws", 2, "--groups", 2, "--sampling-steps", 2]
    ways = {
        "plain": ["--checkpointing", "none"],
        "recomputed": ["--checkpointing", "all", "--offload", "vae"],
        "streamed": ["--checkpointing", "auto", "--offload", "blocks"],
    }
    records = []
    for name, way in ways.items():
        assert script(adasteer, *flags, *way, "--out", tmp_path / name) == 0
        (path,) = (tmp_path / name / "videos").glob("*.json")
        records.append(json.loads(path.read_text()))
    for key in ("losses", "future_loss", "psnr_db_per_frame", "norms"):
        assert all(record[key] == records[0][key] for record in records)
