"""Open-Sora's released folder: its autoencoder and text encoders against their libraries, what its
network is shown, groups of two kinds of blocks."""

import json
from types import SimpleNamespace

import diffusers
import pytest
import torch
from oracles import SHARED, assert_near
from safetensors.torch import load_file
from test_backbone_files import PARTS
from test_configs import GONE, changed, without
from toy import OPENSORA2_VAE, make_opensora2, new, sample, toy_clip
from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel

import adasteer
import backbones
from adasteer import AdaSteer
from backbones import hub
from backbones.opensora2_configs import CLIP, DIT_CONFIG, RELEASED, T5, VAE
from backbones.opensora2_latents import tokens
from backbones.opensora2_sampling import pack
from common.clip import Window, load_clip
from common.errors import UsageError
from common.footage import Footage
from film_tta import FiLM
from runs.cli import parse_args

CLIPS = SHARED / "clips" / "metadata.csv"
needs_clips = pytest.mark.skipif(not CLIPS.is_file(), reason=f"no real clips at {SHARED}")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_opensora2(tmp_path_factory.mktemp("toy") / "Open-Sora-v2")


@pytest.fixture
def model(checkpoint):
    return backbones.load(checkpoint)


@pytest.fixture(scope="module")
def clip(checkpoint):
    return toy_clip(backbones.load(checkpoint))


# The parts


def test_what_the_release_does_not_state_is_that_of_its_recipe(checkpoint, tmp_path):
    """Without the files that tests need, the network is that of 11.9B."""
    folder = changed(checkpoint, tmp_path / "bare", DIT_CONFIG)
    (folder / DIT_CONFIG).unlink()
    with pytest.raises(backbones.CheckpointError, match="d_model is 32; it must be 4096"):
        backbones.geometry(folder)
    assert (RELEASED["depth"], RELEASED["depth_single_blocks"]) == (19, 38)
    (folder / "model_index.json").unlink()
    geometry = backbones.geometry(changed(checkpoint, tmp_path / "native", "model_index.json",
                                          height=GONE, width=GONE))  # fmt: skip
    assert geometry.size == (192, 336) and geometry.fps == 24
    assert geometry.frames_of(17) == 65 == geometry.window["anchor"] + geometry.window["gen_frames"]


@pytest.mark.parametrize("frames", [1, 33])
def test_latents_are_diffusers_own_scaled_and_packed(model, checkpoint, frames):
    """In one piece: 33 frames are more than diffusers encodes at once where nobody says so."""
    vae = diffusers.AutoencoderKLHunyuanVideo(**OPENSORA2_VAE).eval()
    vae.load_state_dict(load_file(checkpoint / VAE))
    x = torch.rand(1, 3, frames, 32, 48)
    with torch.no_grad():
        mean = vae.quant_conv(vae.encoder(2 * x - 1)).chunk(2, dim=1)[0]
        z = 0.476986 * mean
        again = vae.decoder(vae.post_quant_conv(mean))
    found = model.encode(x)
    assert_near(tokens(found), pack(z, 2), 1e-5)
    assert_near(model.decode(found), (again / 2 + 0.5).clamp(0, 1), 1e-5)


def test_a_context_knows_nothing_of_what_follows_it(model, checkpoint):
    """The autoencoder's norms see every frame that they are given: the first latent of 33 frames is
    not that of the first one."""
    frames = torch.rand(65, 3, 32, 48)
    args = parse_args(None, AdaSteer, ["--checkpoint", str(checkpoint)])
    window = Window.of(args, model.geometry)

    def clip_of(frames):
        video, footage = SimpleNamespace(id="made up"), Footage(frames, 24.0, "")
        return load_clip(model, video, window, None, {}, {}, 42, footage)

    clip, shape = clip_of(frames), (1, 64, 8, 2, 3)
    assert clip.target.shape == clip.future.shape == shape
    assert torch.equal(clip.context, model.encode(frames[:1].transpose(0, 1)[None]))
    for start in (1, 33):
        other = clip_of(torch.cat([frames[:start], torch.rand_like(frames[start:])]))
        assert torch.equal(other.context, clip.context)
        assert torch.equal(other.target, clip.target) == (start == 33)
        assert torch.equal(other.cond_latents, clip.cond_latents) == (start == 33)
    whole = model.encode(frames[:33].transpose(0, 1)[None])
    assert (whole[:, :, :1] - clip.context).abs().max() > 1e-3
    assert torch.equal(clip.target, whole[:, :, 1:]) and torch.equal(clip.cond_latents, whole)


def test_prompts_are_embedded_without_masks(model, checkpoint):
    """To 16 tokens here, 512 in the release, and CLIP's 77."""
    t5 = T5EncoderModel.from_pretrained(checkpoint / T5)
    clip = CLIPTextModel.from_pretrained(checkpoint / CLIP)
    prompts = ["a red ball", "", "a cat " * 100]
    for prompt, found in zip(prompts, model.embed_each(prompts), strict=True):
        expected = []
        for folder, encoder, length in ((T5, t5, 16), (CLIP, clip, 77)):
            tokenizer = AutoTokenizer.from_pretrained(checkpoint / folder)
            fixed = {"padding": "max_length", "max_length": length, "truncation": True}
            ids = tokenizer([prompt.strip()], **fixed, return_tensors="pt").input_ids
            with torch.no_grad():
                expected.append(encoder(ids))
        assert found.keys() == {"embeds", "pooled"}
        assert_near(found["embeds"], expected[0].last_hidden_state, 1e-6)
        assert_near(found["pooled"], expected[1].pooler_output, 1e-6)
        assert found["embeds"].shape == (1, 16, 32) and found["pooled"].shape == (1, 24)
    assert torch.is_grad_enabled()


# What it sees


@pytest.mark.parametrize("known", [0, 1, 9])
def test_the_context_is_shown_clean_and_seen_noisy(model, clip, known):
    """Beside the noisy latents; what the network says of its places is left out."""
    context, seen = torch.randn(1, 64, known, 2, 3), []
    hook = model.dit.register_forward_pre_hook(
        lambda module, args, more: seen.append(more), with_kwargs=True
    )
    sigma = torch.tensor([0.25])
    found = model.velocity(clip.target, sigma, context, clip.text)
    again = model.velocity(clip.target, sigma, context, clip.text)
    other = model.velocity(clip.target + 1e-3, sigma, context, clip.text)
    hook.remove()
    assert found.shape == clip.target.shape and torch.equal(found, again)
    assert not torch.equal(found, other)
    shown, places = seen[0]["cond"], 6 * known
    assert (shown[:, :places, :4] == 1).all() and not shown[:, places:].any()
    assert torch.equal(shown[:, :places, 4:], tokens(context))
    img = seen[0]["img"]
    assert torch.equal(img[:, places:], tokens(clip.target))
    if known:
        noise = (img[:, :places] - 0.75 * tokens(context)) / 0.25
        assert 0.8 < noise.std() < 1.2
        others = (seen[2]["img"][:, :places] - 0.75 * tokens(context)) / 0.25
        assert (noise - others).abs().max() > 1  # of other latents another


def test_methods_see_one_noise_beside_what_they_continue(model, clip):
    """So that two samples differ by what was adapted alone."""
    starts = []
    hook = model.dit.register_forward_pre_hook(
        lambda module, args, more: starts.append(more["img"]), with_kwargs=True
    )
    sample(model, clip)
    method, _ = new(AdaSteer, "", model, clip)
    for p in method.named_parameters().values():
        p.data.fill_(0.3)
    with method.attached():
        sample(model, clip)
    hook.remove()
    assert len(starts) == 12 and torch.equal(starts[0], starts[6])
    assert not torch.equal(starts[3], starts[9])


@pytest.mark.parametrize("part", PARTS["MMDiT"])
def test_a_hub_copy_is_whole_where_no_file_of_the_release_is_missing(part, checkpoint, tmp_path):
    assert hub.is_whole(checkpoint)
    folder = without(checkpoint, tmp_path / "less", part)
    assert hub.is_whole(folder) == part.endswith("config.json")


# Options of the methods


def test_groups_of_each_kind_of_block(model, clip):
    """4 double and 5 single blocks; the place after them is the final layer."""
    for flags, count, groups in (
        ("--groups 1", 1, [0] * 9 + [None]),
        ("--groups 1 --final-layer own", 2, [0] * 9 + [1]),
        ("--groups 1,1", 2, [0, 0, 0, 0, 1, 1, 1, 1, 1, None]),
        ("--groups 2", 4, [0, 0, 1, 1, 2, 2, 2, 3, 3, None]),
        ("--groups 2 --final-layer", 4, [0, 0, 1, 1, 2, 2, 2, 3, 3, 3]),
        ("--groups 2 --final-layer own", 5, [0, 0, 1, 1, 2, 2, 2, 3, 3, 4]),
        ("--groups 2,3", 5, [0, 0, 1, 1, 2, 2, 3, 3, 4, None]),
        ("--groups 1,2 --final-layer own", 4, [0, 0, 0, 0, 1, 1, 1, 2, 2, 3]),
        ("--groups 2 --blocks last:7", 4, [None, None, 0, 1, 2, 2, 2, 3, 3, None]),
        ("--groups 3 --blocks last:5", 3, [None, None, None, None, 0, 0, 1, 1, 2, None]),
    ):
        method, _ = new(AdaSteer, flags, model, clip)
        vectors = list(method.named_parameters().values())
        assert len(vectors) == count
        with torch.no_grad():
            for g, vector in enumerate(vectors, 1):
                vector.fill_(g)
        zero = torch.zeros(1, 1, 48)
        added = [method.steer(i, zero, None)[0, 0, 0].item() for i in range(10)]
        assert added == [0 if g is None else g + 1 for g in groups], flags
    assert len(new(FiLM, "--groups 2,3", model, clip)[0].named_parameters()) == 5


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--groups 2,3,1", "one for each kind of blocks (2 here), got 2,3,1"),
        ("--groups 5,3", "must be in 1..4, got 5,3"),
        ("--groups 5", "must be in 1..4, got 5"),
        ("--groups 2,3 --values-per-parameter 5", "for --groups auto, got 2,3"),
    ],
)
def test_groups_that_do_not_fit(model, clip, flags, words):
    with pytest.raises(UsageError) as found:
        new(AdaSteer, flags, model, clip)
    assert words in str(found.value)


# From the command line


@needs_clips
def test_the_drafts_b_without_any_context(checkpoint, script, tmp_path, capsys):
    flags = ["--checkpoint", checkpoint, "--videos", CLIPS, "--limit", 1, "--steps", 2]
    flags += ["--sampling-steps", 2, "--groups", "2,3", "--final-layer", "own", "--l2", "1e-7"]
    flags += ["--warm-up", 3, "--context-latents", 0, "--out", tmp_path]
    assert script(adasteer, *flags, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "* --groups 2,3" in said and "* --final-layer own" in said
    assert "memory: weights by the checkpoint's files: " in said and "dit" in said
    assert script(adasteer, *flags) == 0
    (path,) = (tmp_path / "videos").glob("*.json")
    record = json.loads(path.read_text())
    assert record["adapted_parameters"] == 6 * 48 and record["penalties"][1] > 0
    assert script(adasteer, *flags, "--context-latents", 8, "--dry-run") == 2
    assert "made for 0 or 1 or 9 or 17" in capsys.readouterr().err
    assert script(adasteer, *flags, "--context", "varying", "--dry-run") == 2
    assert "--context varying: this model was made for" in capsys.readouterr().err
