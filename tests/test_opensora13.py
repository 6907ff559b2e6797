"""Open-Sora v1.3's folder of released parts: its autoencoder and text encoder, windows, what its
network is shown."""

from types import SimpleNamespace

import pytest
import torch
from oracles import SHARED, assert_near
from safetensors.torch import load_file
from test_configs import changed, without
from toy import copies, make_opensora13, new, sample, toy_clip
from transformers import AutoTokenizer, T5EncoderModel

import adasteer
import backbones
from adasteer import AdaSteer
from backbones.opensora13_configs import DIT, T5, VAE
from common.clip import Window, load_clip
from common.footage import Footage
from devices import offload
from devices.paths import all_paths
from lora_tta import LoRA
from runs.cli import parse_args

CLIPS = SHARED / "clips" / "metadata.csv"
needs_clips = pytest.mark.skipif(not CLIPS.is_file(), reason=f"no real clips at {SHARED}")
WEIGHTS = [f"{part}/model.safetensors" for part in (DIT, VAE)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_opensora13(tmp_path_factory.mktemp("toy") / "Open-Sora-v1.3")


@pytest.fixture(scope="module")
def loaded(checkpoint):
    return backbones.load(checkpoint)


@pytest.fixture
def model(checkpoint):
    return backbones.load(checkpoint)


@pytest.fixture(scope="module")
def clip(loaded):
    return toy_clip(loaded)


# The parts


def test_the_release_is_640_wide_and_480_high(checkpoint, tmp_path):
    folder = changed(checkpoint, tmp_path / "native", "model_index.json")
    (folder / "model_index.json").unlink()
    geometry = backbones.geometry(folder)
    assert geometry.size == (480, 640) and geometry.fps == 24 and geometry.size_multiple == 16
    assert geometry.window["anchor"] + geometry.window["gen_frames"] == 49
    assert [geometry.latents_of(frames) for frames in (1, 17, 33, 49, 65)] == [1, 5, 10, 15, 20]


def test_a_block_is_a_pair(loaded):
    assert loaded.depth == 4 == len(loaded.stacks[0])
    assert loaded.stacks[0][1] == ("spatial_blocks.1", "temporal_blocks.1")
    assert [
        loaded.dit.get_submodule(path) for path in all_paths(loaded.stacks)
    ] == loaded.dit.blocks


def test_latents_are_the_autoencoders_own(loaded):
    x = torch.rand(1, 3, 33, 32, 48)
    with torch.no_grad():
        z = loaded.vae.encode(2 * x - 1)
        again = loaded.vae.decode(z, 33)
    found = loaded.encode(x)
    assert found.shape == (1, 16, 10, 4, 6) and torch.equal(found, z)
    assert torch.equal(loaded.decode(found), (again / 2 + 0.5).clamp(0, 1))
    assert loaded.encode(x[:, :, :1]).shape[2] == 1
    with pytest.raises(ValueError, match="got 22: .* try 17 or 33"):
        loaded.encode(x[:, :, :22])


def clip_of(model, checkpoint, frames, *flags):
    args = parse_args(None, AdaSteer, ["--checkpoint", str(checkpoint), *flags])
    video, footage = SimpleNamespace(id="made up"), Footage(frames, 24.0, "")
    return load_clip(model, video, Window.of(args, model.geometry), None, {}, {}, 42, footage)


def test_a_context_knows_nothing_of_what_follows_it(loaded, checkpoint):
    """One of a whole chunk; the chunk after it begins with its last frame."""
    frames = torch.rand(49, 3, 32, 48)
    clip = clip_of(loaded, checkpoint, frames)
    assert clip.context.shape == clip.target.shape == clip.future.shape == (1, 16, 5, 4, 6)
    first, second, third = (
        loaded.encode(frames[i : i + 17].transpose(0, 1)[None]) for i in (0, 16, 32)
    )
    for found, whole in (
        (clip.context, first), (clip.target, second), (clip.cond_latents, second),
        (clip.future, third),
    ):  # fmt: skip
        assert_near(found, whole, 1e-6)


def test_the_drafts_window(loaded, checkpoint):
    """It adapts to the conditioning frames: the first two of their five latents are shown."""
    flags = "--anchor 17 --tta-frames 17 --context-latents 2 --gen-frames 28".split()
    clip = clip_of(loaded, checkpoint, torch.rand(45, 3, 32, 48), *flags)
    assert torch.equal(torch.cat([clip.context, clip.target], dim=2), clip.cond_latents)
    assert [x.shape[2] for x in (clip.context, clip.target, clip.future)] == [2, 3, 5]
    assert clip.window.new_latents == 10 and len(clip.truth) == 28
    picture = "--anchor 17 --cond-frames 1 --tta-frames 17 --context-latents 1".split()
    frames = torch.rand(33, 3, 32, 48)
    clip = clip_of(loaded, checkpoint, frames, *picture)
    assert torch.equal(clip.context, loaded.encode(frames[:1].transpose(0, 1)[None]))
    assert torch.equal(clip.cond_latents, loaded.encode(frames[16:17].transpose(0, 1)[None]))
    assert clip.target.shape[2] == 4 == clip.future.shape[2]


def test_prompts_are_embedded_with_their_mask_in_lower_case(loaded, checkpoint):
    encoder = T5EncoderModel.from_pretrained(checkpoint / T5)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint / T5)
    prompts = ["A red Ball", "", "a cat " * 100]
    for prompt, found in zip(prompts, loaded.embed_each(prompts), strict=True):
        fixed = {"padding": "max_length", "max_length": 16, "truncation": True}
        tokens = tokenizer([prompt.lower().strip()], **fixed, return_tensors="pt")
        with torch.no_grad():
            out = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        assert found.keys() == {"embeds", "mask"}
        assert_near(found["embeds"], out[:, None], 1e-6)
        assert torch.equal(found["mask"], tokens.attention_mask)


def test_in_bfloat16_the_rotary_table_stays_as_it_is(checkpoint):
    dit = backbones.load(checkpoint, dtype=torch.bfloat16).dit
    saved = load_file(checkpoint / WEIGHTS[0])
    assert dit.weight_dtype == dit.y_embedder.y_embedding.dtype == torch.bfloat16
    assert torch.equal(dit.rope.freqs, saved["rope.freqs"])
    assert dit.rope.freqs.dtype == torch.float32


# What it sees


def calls_of(model):
    seen = []
    hook = model.dit.register_forward_pre_hook(
        lambda module, args, more: seen.append({"x": args[0], "t": args[1], **more}),
        with_kwargs=True,
    )
    return seen, hook


@pytest.mark.parametrize("known", [0, 1, 5])
def test_the_context_is_shown_clean_and_seen_noisy(model, clip, known):
    """Beside the noisy latents; where it stands the null text is read."""
    context, sigma = torch.randn(1, 16, known, 4, 6), torch.tensor([0.25])
    seen, hook = calls_of(model)
    found = model.velocity(clip.target, sigma, context, clip.text)
    again = model.velocity(clip.target, sigma, context, clip.text)
    hook.remove()
    assert found.shape == clip.target.shape and torch.equal(found, again)
    call = seen[0]
    assert torch.equal(call["x"][:, :, known:], clip.target) and call["t"].tolist() == [250]
    assert [call[k].tolist() for k in ("fps", "height", "width")] == [[24], [32], [48]]
    if not known:
        assert not {"cond", "cond_mask", "mask_index", "y_null"} & call.keys()
        return
    assert call["mask_index"] == list(range(known))
    assert torch.equal(call["cond"][:, :, :known], context) and not call["cond"][:, :, known:].any()
    assert (call["cond_mask"][:, :, :known] == 1).all()
    assert not call["cond_mask"][:, :, known:].any()
    assert torch.equal(call["y_null"][0, 0], model.dit.y_embedder.y_embedding)
    noise = (call["x"][:, :, :known] - 0.75 * context) / 0.25
    assert 0.8 < noise.std() < 1.2


@pytest.mark.parametrize("sdedit", [True, False])
def test_methods_see_one_noise_on_what_they_continue(model, clip, sdedit):
    """So that two samples differ by what was adapted alone; with sdedit at every step, new each."""
    known, samples = clip.cond_latents.shape[2], []
    method, _ = new(AdaSteer, "", model, clip)
    for p in method.named_parameters().values():
        p.data.fill_(0.3)
    for _ in range(2):
        seen, hook = calls_of(model)
        if samples:
            with method.attached():
                sample(model, clip, sdedit=sdedit)
        else:
            sample(model, clip, sdedit=sdedit)
        hook.remove()
        samples.append([call["x"] for call in seen])
    (first, second), (adapted_first, adapted_second) = samples
    assert len(first) == 3 and torch.equal(first, adapted_first)  # three branches in a batch
    assert not torch.equal(second[:, :, known:], adapted_second[:, :, known:])
    assert torch.equal(second[:, :, :known], adapted_second[:, :, :known]) == sdedit


def test_without_guidance_there_is_one_branch(model, clip):
    seen, hook = calls_of(model)
    found = sample(model, clip, guidance_scale=1.0)
    hook.remove()
    assert [len(call["x"]) for call in seen] == [1, 1] == [len(call["y"]) for call in seen]
    assert torch.equal(seen[0]["y"], clip.text["embeds"])
    assert torch.equal(found, sample(model, clip, guidance_scale=0.0))


# Folders that are refused


@pytest.mark.parametrize("part", ["", DIT, VAE])
def test_one_part_alone_is_no_checkpoint(part, checkpoint, script, tmp_path, capsys):
    """As is a folder whose transformer is missing."""
    folder = checkpoint / part if part else without(checkpoint, tmp_path / "less", DIT)
    assert script(adasteer, "--checkpoint", folder, "--dry-run", "--out", tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert "is no checkpoint" in line and f"{DIT}/config.json" in line


# Placement and saved parameters


def test_the_matrices_of_both_blocks_of_a_pair_are_streamed(checkpoint, monkeypatch):
    """And its table of modulation stays, as does all that is no block."""
    streamed = []
    monkeypatch.setattr(offload, "stream_blocks", lambda *given: streamed.append(given))
    model = backbones.load(checkpoint, place="blocks")
    ((dit, blocks, _, stays),) = streamed
    assert dit is model.dit and blocks == [*dit.blocks] and len(blocks) == 8
    assert all(hasattr(block, stays) for block in blocks)


def test_lora_is_in_both_blocks_of_a_chosen_pair(model, clip):
    method, _ = new(LoRA, "--blocks last:1 --targets attn.qkv", model, clip)
    names = [name.split("model.")[-1] for name in copies(method)]
    assert names == [
        f"{kind}_blocks.3.attn.qkv.{part}.weight"
        for kind in ("spatial", "temporal") for part in ("lora_A", "lora_B")
    ]  # fmt: skip


# From the command line


@needs_clips
def test_windows_and_weights_before_the_first_video(checkpoint, script, tmp_path, capsys):
    flags = ["--checkpoint", checkpoint, "--videos", CLIPS, "--limit", 1, "--out", tmp_path]
    for flag, frames, near in (
        ("--cond-frames", 22, "17 or 33"), ("--tta-frames", 29, "17 or 33"),
        ("--cond-frames", 5, "1 or 17"),
    ):  # fmt: skip
        assert script(adasteer, *flags, flag, frames, "--dry-run") == 2
        (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
        assert line.endswith(f"got {frames}: the autoencoder would drop the last of them; "
                             f"try {near}") and f"{flag}: " in line  # fmt: skip
    assert script(adasteer, *flags, "--tta-frames", 1, "--dry-run") == 2
    assert "--context-latents needs --tta-frames 17 or more" in capsys.readouterr().err
    assert script(adasteer, *flags, "--sampling", "guidance=2", "--dry-run") == 2
    known = "known are guidance_img=2.0 oscillation=true temporal_scaling=true sdedit=true"
    assert known in capsys.readouterr().err
    assert script(adasteer, *flags, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "files: dit 1.17 MB, vae" in said and "t5-v1_1-xxl" in said
