"""The Open-Sora v1.3 autoencoder at a tiny size: chunks and their seams, what sees what, recorded
numbers, names, files, types, refusals."""

import functools
import json

import pytest
import torch
from oracles import assert_near
from safetensors.torch import save_file

from backbones import CheckpointError
from backbones.opensora13_autoencoder import (
    LATENTS_MEAN,
    LATENTS_STD,
    OpenSora13Autoencoder,
    load_autoencoder,
)
from common.metrics import psnr_db

SMALL = {"ch": 32, "ch_mult": [1, 2, 1, 1], "num_res_blocks": 1, "z_channels": 16}
CONFIG = {  # as the public source saves it
    "architectures": ["OpenSoraVAE_V1_3_Pipline"],
    "model_type": "OpenSoraVAE_V1_3_Pipline",
    "dtype": "float32",
    "encoder": {
        "type": "VideoEncoder", "double_z": True, "in_channels": 3, "out_ch": 3,
        "down_sampling_layer": [1, 2], "micro_batch_size_2d": 4, **SMALL,
    },
    "decoder": {
        "type": "VideoDecoder", "in_channels": 3, "out_ch": 3, "temporal_up_layers": [2, 3],
        "micro_batch_size_2d": 4, **SMALL,
    },
}  # fmt: skip


def wave(shape, step):
    values = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (step * values).sin().float().view(shape)


@functools.cache
def waves():
    """Weights that need no random generator, as recorded numbers of them must."""
    with torch.device("meta"):
        shapes = {k: p.shape for k, p in OpenSora13Autoencoder(SMALL, SMALL).state_dict().items()}
    values = {}
    for i, (name, shape) in enumerate(sorted(shapes.items())):
        values[name] = wave(shape, 1 + i / 100)
        if len(shape) > 1:
            values[name] *= 1.5 * (2 / shape[1:].numel()) ** 0.5
        else:
            values[name] = values[name] / 4 + ("norm" in name and name.endswith("weight"))
    return values


def tiny():
    with torch.device("meta"):
        model = OpenSora13Autoencoder(SMALL, SMALL).requires_grad_(False)
    model.load_state_dict({name: p.clone() for name, p in waves().items()}, assign=True)
    return model


def drawn():
    """Its weights are as torch draws them: rounding moves it less than the one of waves."""
    torch.manual_seed(0)
    return OpenSora13Autoencoder(SMALL, SMALL).requires_grad_(False)


def video(frames=33, height=8, width=16, step=0.37):
    return wave((1, 3, frames, height, width), step)


def without_norms():
    model = tiny()
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, torch.nn.GroupNorm):
                setattr(parent, name, torch.nn.Identity())
    return model


def moved(function, x, at):
    """Which frames or latents of function(x) notice another frame or latent `at`."""
    other = x.clone()
    other[:, :, at] += 1
    change = (function(other) - function(x)).abs().amax(dim=(0, 1, 3, 4))
    return change.nonzero().flatten().tolist()


# Numbers


def test_numbers_of_the_public_source():
    """Recorded from its own modules with these weights: the recipe's chunks of 17 with a frame in
    common, normalization "video" and tiles of convolutions, the posterior's mode, float32."""
    model = tiny()
    z = model.encode(video(33, 16, 24))
    assert_near(z.flatten()[::101], torch.tensor([
        0.1866, 0.08217, 0.16175, -0.3146, 0.33068, -0.51161, 0.12156, -0.54606, 0.29199, 0.19758,
    ]), 2e-3)  # fmt: skip
    assert_near(model.decode(z).flatten()[::3571], torch.tensor([
        -0.07222, -0.02164, 0.18167, -0.60675, -0.0088, 0.28748, 0.41741, 0.28637, 0.13524, 0.19988,
        -0.50651,
    ]), 2e-3)  # fmt: skip


# Lengths, chunks, seams


@pytest.mark.parametrize(("frames", "latents"), [(1, 1), (17, 5), (33, 10), (49, 15)])
def test_lengths(frames, latents):
    model = tiny()
    z = model.encode(video(frames))
    assert z.shape == (1, 16, latents, 1, 2)
    assert model.decode(z).shape == (1, 3, frames, 8, 16)


def test_a_chunk_is_what_its_frames_alone_are():
    """The second begins with the last frame of the first."""
    model, x = tiny(), video()
    z = model.encode(x)
    assert torch.equal(z[:, :, :5], model.encode(x[:, :, :17]))
    assert torch.equal(z[:, :, 5:], model.encode(x[:, :, 16:]))


def test_the_frame_that_two_decoded_chunks_have_is_the_mean_of_theirs():
    model = tiny()
    z = model.encode(video(49))
    whole, parts = model.decode(z), [model.decode(each) for each in z.split(5, dim=2)]
    for i, part in enumerate(parts):
        assert torch.equal(whole[:, :, 16 * i + 1 : 16 * i + 16], part[:, :, 1:16])
    for i in (1, 2):
        seam = (parts[i - 1][:, :, 16] + parts[i][:, :, 0]) / 2
        assert_near(whole[:, :, 16 * i], seam, 1e-6)
        assert (parts[i - 1][:, :, 16] - parts[i][:, :, 0]).abs().max() > 0.01
    assert torch.equal(whole[:, :, 0], parts[0][:, :, 0])
    assert torch.equal(whole[:, :, 48], parts[2][:, :, 16])


def test_videos_of_a_batch_do_not_see_one_another():
    model, x = drawn(), torch.cat([video(17), video(17, step=0.11)])
    z = model.encode(x)
    assert_near(z, torch.cat([model.encode(each) for each in x.split(1)]), 1e-5)
    assert_near(model.decode(z), torch.cat([model.decode(each) for each in z.split(1)]), 1e-5)


def test_the_first_frames_of_what_is_decoded():
    model = tiny()
    z = model.encode(video())
    assert torch.equal(model.decode(z, 20), model.decode(z)[:, :, :20])


# What sees what


@pytest.mark.parametrize("frame", [0, 1, 4, 16, 17])
def test_a_latent_sees_no_later_frame_but_through_norms(frame):
    first = -(-frame // 4)  # the latent that holds the frame
    expected = [t for t in range(5) if t >= first] if frame <= 16 else []
    second = -(-(frame - 16) // 4)
    expected += [5 + t for t in range(5) if t >= second] if frame >= 16 else []
    assert moved(without_norms().encode, video(), frame) == expected


@pytest.mark.parametrize("latent", [0, 1, 7])
def test_a_decoded_frame_sees_no_later_latent_but_through_norms(latent):
    model = without_norms()
    start, at = 16 * (latent // 5), latent % 5  # the frame that its chunk begins with
    first = start + (4 * at - 3 if at else 0)
    last = start + 16
    assert moved(model.decode, wave((1, 16, 10, 1, 2), 0.3), latent) == list(range(first, last + 1))


def test_through_norms_every_latent_of_a_chunk_sees_all_of_its_frames():
    assert moved(tiny().encode, video(), 15) == [0, 1, 2, 3, 4]
    assert moved(tiny().encode, video(), 32) == [5, 6, 7, 8, 9]


# Normalisation


def test_latents_are_normalised_channel_by_channel():
    """A network that says z everywhere gives (z - mean) / std; decoding gives its decoder z."""
    model, given = tiny(), []
    z = torch.tensor(LATENTS_MEAN) + torch.arange(16) * torch.tensor(LATENTS_STD)
    model.encoder.conv_out.conv.weight.zero_()
    model.encoder.conv_out.conv.bias.copy_(torch.cat([z, torch.full((16,), 5.0)]))
    latents = model.encode(video(17))
    assert_near(latents, torch.arange(16.0).view(1, 16, 1, 1, 1).expand_as(latents), 1e-5)
    model.decoder.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    model.decode(latents)
    assert_near(given[0], z.view(1, 16, 1, 1, 1).expand_as(latents), 1e-5)


# Names, files, types


def test_the_released_names_and_sizes():
    with torch.device("meta"):
        released = OpenSora13Autoencoder().state_dict()
    assert len(released) == 256
    assert sum(p.numel() for p in released.values()) == 259_163_811  # "259M" in its README
    expected = {
        "encoder.conv_in.conv.weight": (128, 3, 3, 3, 3),
        "encoder.down.0.block.1.norm2.weight": (128,),
        "encoder.down.0.downsample.conv.weight": (128, 128, 3, 3),
        "encoder.down.1.block.0.nin_shortcut.conv.weight": (256, 128, 1, 1, 1),
        "encoder.down.2.downsample.conv.conv.weight": (512, 512, 3, 3, 3),
        "encoder.mid.attn_1.proj_out.conv.bias": (512,),
        "encoder.norm_out.bias": (512,),
        "encoder.conv_out.conv.weight": (32, 512, 3, 3, 3),
        "decoder.conv_in.conv.weight": (512, 16, 3, 3, 3),
        "decoder.mid.block_2.conv1.conv.weight": (512, 512, 3, 3, 3),
        "decoder.up.3.block.2.conv2.conv.weight": (512, 512, 3, 3, 3),
        "decoder.up.3.upsample.conv3d.conv1.conv.weight": (512, 512, 3, 3, 3),
        "decoder.up.2.upsample.conv3d.norm2.weight": (512,),
        "decoder.up.1.upsample.conv.weight": (256, 256, 3, 3),
        "decoder.up.0.block.0.nin_shortcut.conv.weight": (128, 256, 1, 1, 1),
        "decoder.conv_out.weight": (3, 128, 3, 3, 3),
    }
    assert {name: tuple(released[name].shape) for name in expected} == expected


def test_bfloat16_is_near_and_gives_float32():
    model, x = drawn(), video(17, 16, 24)
    z = model.encode(x)
    y, model = model.decode(z), model.to(torch.bfloat16)
    rounded, again = model.encode(x), model.decode(z)
    assert rounded.dtype == again.dtype == torch.float32
    assert (rounded - z).norm() < 0.05 * z.norm()
    assert (again - y).norm() < 0.05 * y.norm()


def folder(path, **config):
    """A folder of the release's layout. config: in place of keys, by "encoder__ch" of a part's."""
    stated = json.loads(json.dumps(CONFIG))
    for key, value in config.items():
        part, _, name = key.rpartition("__")
        (stated[part] if part else stated)[name] = value
    (path / "config.json").write_text(json.dumps(stated))
    save_file(waves(), path / "model.safetensors")
    return path


def test_a_folder_of_the_release_s_layout_loads(tmp_path):
    model = load_autoencoder(folder(tmp_path))
    assert torch.equal(model.encode(video(17)), tiny().encode(video(17)))
    assert load_autoencoder(tmp_path, torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize(("config", "words"), [
    ({"encoder__ch": 48}, r"config.json: encoder: ch is 48; it must be a multiple of 32 up to"),
    ({"decoder__ch_mult": [1, 2]}, r"decoder: ch_mult is \[1, 2\]; it must be a list of 4 to 4"),
    ({"encoder__z_channels": 4}, r"encoder: z_channels is 4; it must be 16$"),
    ({"encoder__down_sampling_layer": [0, 1]}, r"down_sampling_layer is .* must be \[1, 2\]$"),
    ({"decoder__temporal_up_layers": [3]}, r"temporal_up_layers is .* it must be \[2, 3\]$"),
    ({"decoder": "VideoDecoder"}, "decoder is .*; it must be an object of keys and values$"),
    ({"quantization_config": {}}, "quantization_config is .*; it must be left out$"),
    ({"decoder__ch": 64}, "model.safetensors has other shapes than this network for"),
    ({"encoder__num_res_blocks": 2}, "model.safetensors lacks .* such as encoder.down.0.block.1"),
])  # fmt: skip
def test_one_line_for_a_folder_that_does_not_fit(config, words, tmp_path):
    with pytest.raises(CheckpointError, match=words) as caught:
        load_autoencoder(folder(tmp_path, **config))
    assert "\n" not in str(caught.value)


def test_one_line_for_missing_files(tmp_path):
    with pytest.raises(CheckpointError, match="config.json cannot be read"):
        load_autoencoder(tmp_path)
    (folder(tmp_path) / "model.safetensors").rename(tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="has neither model.safetensors nor"):
        load_autoencoder(tmp_path)


# Refusals


@pytest.mark.parametrize(("frames", "near"), [
    (2, "1 or 17"), (16, "1 or 17"), (22, "17 or 33"), (45, "33 or 49"), (0, "1"),
])  # fmt: skip
def test_frames_that_fill_no_chunk(frames, near):
    words = rf"^frames must number 1 or 16k \+ 1, got {frames}: .*; try {near}$"
    with pytest.raises(ValueError, match=words):
        tiny().encode(torch.zeros(1, 3, frames, 8, 8))


def test_sizes_and_latents_that_do_not_fit():
    model = tiny()
    with pytest.raises(ValueError, match="^height and width must be multiples of 8, got 8 and 20$"):
        model.encode(torch.zeros(1, 3, 17, 8, 20))
    with pytest.raises(ValueError, match="^latents must number 1 or 5k, got 7$"):
        model.decode(torch.zeros(1, 16, 7, 1, 1))
    with pytest.raises(ValueError, match="^num_frames must be 1 to 17 of 5 latents, got 18$"):
        model.decode(torch.zeros(1, 16, 5, 1, 1), 18)


# Training


def moving_blobs(count, frames=17, side=16):
    """(count, 3, frames, side, side) in -1..1: each has a colour and a speed, and wraps round."""
    generator = torch.Generator().manual_seed(0)
    start, speed, colour = (torch.rand(count, n, 1, generator=generator) for n in (2, 2, 3))
    at = start * side + (speed - 0.5) * side / 12 * torch.arange(frames)
    away = (torch.arange(side) - at[..., None]) % side  # count, axis, frame, place
    near = (-torch.minimum(away, side - away).square() / 18).exp()
    blobs = near[:, 0, :, :, None] * near[:, 1, :, None, :]
    return blobs[:, None] * (1 + colour[..., None, None]) - 1


@pytest.mark.slow  # a minute or two of training
def test_a_trained_one_gives_moving_pictures_back():
    """Seen: 39 dB, where the mean picture of each clip has 21 and the other clip 11."""
    torch.manual_seed(0)
    model, clips = OpenSora13Autoencoder(*2 * [SMALL | {"ch_mult": [1] * 4}]), moving_blobs(2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(200):
        x = clips[step % 2 :][:1]
        loss = (model.decode(model.encode(x)) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        decoded = [model.decode(model.encode(x[None]))[0] for x in clips]
    for i, x in enumerate(clips):
        mean = psnr_db(x.mean(dim=1, keepdim=True).expand_as(x), x, data_range=2)
        found, other = (psnr_db(decoded[k], x, data_range=2) for k in (i, 1 - i))
        assert found > mean + 8 > other + 8
