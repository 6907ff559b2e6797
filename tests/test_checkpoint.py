"""The official folder layout: what loads, what is refused, and how the parts fit together."""

import json
import os
import shutil

import pytest
import torch
from oracles import assert_near
from safetensors.torch import load_file, save_file

import backbones


def test_sharded_official_layout_loads_unmodified(toy_checkpoint):
    shards = sorted((toy_checkpoint / "dit").glob("*.safetensors"))
    assert len(shards) > 1
    model = backbones.load(toy_checkpoint)
    saved = {k: v for shard in shards for k, v in load_file(shard).items()}
    loaded = model.dit.state_dict()
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)
    assert (model.depth, model.embedding_width, model.geometry.size) == (4, 16, (32, 48))
    assert type(model.vae).__name__ == "AutoencoderKLWan"


def test_wan_autoencoder_shapes_and_normalisation(toy_checkpoint):
    model = backbones.load(toy_checkpoint)
    frames = torch.rand(1, 3, 13, 32, 48)
    latents = model.encode(frames)
    assert latents.shape == (1, 16, 4, 4, 6)
    z = model.vae.encode(frames * 2 - 1).latent_dist.mode()
    mean, std = (
        torch.tensor(model.vae.config[f"latents_{m}"])[:, None, None, None] for m in ("mean", "std")
    )
    assert_near(latents, (z - mean) / std, 1e-6)
    assert model.decode(latents).shape == frames.shape
    with pytest.raises(ValueError, match=r"4k \+ 1, got 14"):
        model.encode(torch.rand(1, 3, 14, 32, 48))


def test_prompts_are_cleaned_padded_and_independent(toy_checkpoint):
    model = backbones.load(toy_checkpoint)
    texts = list(model.embed_each(["a  red &amp; ball", "a red & ball", "cat"] * 4))
    assert len(texts) == 12
    for text in texts:
        assert text["embeds"].shape == (1, 1, 16, 32) and text["mask"].shape == (1, 16)
    (cat,) = model.embed_each(["cat"])
    assert torch.equal(texts[0]["embeds"], texts[1]["embeds"])
    assert torch.equal(texts[2]["embeds"], cat["embeds"])


@pytest.mark.parametrize("part", ["dit", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part_is_named(toy_checkpoint, tmp_path, part):
    broken = shutil.copytree(toy_checkpoint, tmp_path / "broken")
    shutil.rmtree(broken / part)
    with pytest.raises(backbones.CheckpointError, match=part):
        backbones.load(broken)


def test_missing_weights_are_not_made_up(toy_checkpoint, tmp_path):
    """Neither of the DiT nor of the text encoder, which would be filled with random numbers."""
    for part, name in (("vae", "diffusion_pytorch_model"), ("text_encoder", "model")):
        broken = shutil.copytree(toy_checkpoint, tmp_path / part)
        file = broken / part / f"{name}.safetensors"
        weights = load_file(file)
        lost = sorted(weights)[0]
        save_file({k: v for k, v in weights.items() if k != lost}, file, metadata={"format": "pt"})
        with pytest.raises(
            backbones.CheckpointError, match=f"{part} lacks 1 weights, such as {lost}"
        ):
            list(
                backbones.load(broken).embed_each(["a red ball"])
            )  # the text encoder is loaded for it


def test_weights_that_only_the_index_lists_are_named(toy_checkpoint, tmp_path):
    broken = shutil.copytree(toy_checkpoint, tmp_path / "broken")
    shard = sorted((broken / "dit").glob("*.safetensors"))[0]
    weights = load_file(shard)
    lost = sorted(weights)[0]
    save_file({k: v for k, v in weights.items() if k != lost}, shard, metadata={"format": "pt"})
    with pytest.raises(backbones.CheckpointError, match=f"lacks 1 weights, such as {lost}"):
        backbones.load(broken)


def test_any_damage_to_a_file_of_weights_is_one_line(toy_checkpoint, tmp_path):
    shard = sorted((toy_checkpoint / "dit").glob("*.safetensors"))[0].relative_to(toy_checkpoint)
    for number, file in enumerate([shard, "vae/diffusion_pytorch_model.safetensors"]):
        whole = (toy_checkpoint / file).read_bytes()
        middle = len(whole) // 2
        damages = [b"", whole[:5], whole[:8], whole[:middle], whole[:-1], whole + b"x", b"x" * 99]
        for other, content in enumerate(damages):
            folder = tmp_path / f"{number}-{other}"
            shutil.copytree(toy_checkpoint, folder, copy_function=os.symlink)
            (folder / file).unlink()
            (folder / file).write_bytes(content)
            with pytest.raises(backbones.CheckpointError) as found:
                backbones.load(folder)
            assert str(folder) in str(found.value) and str(found.value).isprintable()


def test_a_truncated_shard_is_named(toy_checkpoint, tmp_path):
    broken = shutil.copytree(toy_checkpoint, tmp_path / "broken")
    shard = sorted((broken / "dit").glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(backbones.CheckpointError, match="dit cannot be loaded"):
        backbones.load(broken)


def test_weights_that_could_execute_code_are_not_read(toy_checkpoint, tmp_path):
    broken = shutil.copytree(toy_checkpoint, tmp_path / "broken")
    for file in (broken / "vae").glob("*.safetensors"):
        torch.save(load_file(file), broken / "vae" / "diffusion_pytorch_model.bin")
        file.unlink()
    with pytest.raises(backbones.CheckpointError, match="vae"):
        backbones.load(broken)


def test_an_unknown_model_is_named(toy_checkpoint, tmp_path):
    broken = shutil.copytree(toy_checkpoint, tmp_path / "broken")
    config = broken / "dit" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_class_name": "OtherModel"}))
    with pytest.raises(backbones.CheckpointError, match="OtherModel"):
        backbones.load(broken)


def test_bfloat16_stays_close_to_float32(toy_checkpoint):
    outs = []
    for dtype in (torch.float32, torch.bfloat16):
        model = backbones.load(toy_checkpoint, dtype=dtype)
        (text,) = model.embed_each(["a red ball"])
        torch.manual_seed(0)
        noisy, cond = torch.randn(1, 16, 2, 4, 6), torch.randn(1, 16, 2, 4, 6)
        outs.append(model.velocity(noisy, torch.tensor([0.5]), cond, text))
        assert outs[-1].dtype == torch.float32
    assert_near(outs[1] / outs[0].std(), outs[0] / outs[0].std(), 0.1)
