"""Of every backbone, how it computes: sizes of releases, draws in a batch, what a vector on the
embedding is, float8, and gradients however its blocks are run."""

import pytest
import torch
from backbone_rows import BACKBONES, OTHERS
from oracles import assert_near
from toy import loss_of, new, sample, toy_clip

import backbones
from adasteer import AdaSteer
from backbones.cogvideox_dit import CogVideoXTransformer3DModel
from backbones.ltx_dit import LTXVideoTransformer3DModel
from backbones.skyreels_dit import SkyReelsV2Transformer3DModel
from backbones.wan_dit import WanTransformer3DModel
from benchmarks.random_models import SKYREELS
from devices.compiling import compile_blocks
from film_tta import FiLM
from full_tta import FullTTA
from lora_tta import LoRA
from norm_tta import NormTTA

WAN = {"attention_head_dim": 128, "text_dim": 4096, "freq_dim": 256}
BIG = {
    "num_attention_heads": 48,
    "num_layers": 42,
    "use_rotary_positional_embeddings": True,
}
IMAGE = {"use_learned_positional_embeddings": True, "in_channels": 32}


def wan(heads, ffn, blocks, channels):
    sizes = {"num_attention_heads": heads, "ffn_dim": ffn, "num_layers": blocks}
    return WAN | sizes | dict.fromkeys(("in_channels", "out_channels"), channels)


RELEASES = {
    "SkyReels-V2-DF 1.3B": (SkyReelsV2Transformer3DModel, SKYREELS, 1_435_525_696),
    "Wan 2.2 TI2V 5B": (WanTransformer3DModel, wan(24, 14336, 30, 48), 4_999_787_712),
    "Wan 2.1 T2V 1.3B": (WanTransformer3DModel, wan(12, 8960, 30, 16), 1_418_996_800),
    # and each of the two of 2.2 A14B
    "Wan 2.1 T2V 14B": (WanTransformer3DModel, wan(40, 13824, 40, 16), 14_288_491_584),
    "LTX-Video 2B": (LTXVideoTransformer3DModel, {}, 1_923_385_472),
    "CogVideoX 2b": (CogVideoXTransformer3DModel, {}, 1_693_783_872),
    "CogVideoX 5b": (CogVideoXTransformer3DModel, BIG, 5_570_283_072),
    "CogVideoX 5b-I2V": (CogVideoXTransformer3DModel, BIG | IMAGE, 5_570_479_680),
}


@pytest.mark.parametrize(("cls", "config", "count"), RELEASES.values(), ids=RELEASES)
def test_parameters_of_the_releases(cls, config, count):
    """LongCat's and Open-Sora's stand beside what was recorded of them."""
    with torch.device("meta"):
        dit = cls(**config)
    assert sum(p.numel() for p in dit.parameters()) == count


@pytest.mark.parametrize("name", BACKBONES)
def test_draws_in_a_batch_are_those_of_one_each(name, checkpoint_of):
    model = backbones.load(checkpoint_of(name))
    clip, sigma = toy_clip(model), torch.tensor([0.1, 0.5, 0.9])
    noisy = torch.randn(3, *clip.target.shape[1:])
    found = model.velocity(noisy, sigma, clip.cond_latents, clip.text)
    for each, s, v in zip(noisy.split(1), sigma.split(1), found, strict=True):
        assert_near(model.velocity(each, s, clip.cond_latents, clip.text), v[None], 1e-5)


EMBEDDERS = {
    "SkyReelsV2Transformer3DModel": "condition_embedder.time_embedder",
    "WanTransformer3DModel": "condition_embedder.time_embedder",
    "LTXVideoTransformer3DModel": "time_embed.emb",
}


@pytest.mark.parametrize("name", EMBEDDERS)
def test_one_group_is_a_hook_on_the_time_embedder(name, checkpoint_of):
    """Blocks and final layer: everything that reads the embedding."""
    model = backbones.load(checkpoint_of(name))
    clip, delta = toy_clip(model), torch.linspace(-0.5, 0.5, model.embedding_width)
    plain = loss_of(model, clip)
    method, _ = new(AdaSteer, "--groups 1 --final-layer", model, clip)
    blocks_alone, _ = new(AdaSteer, "--groups 1", model, clip)
    with torch.no_grad():
        for each in (method, blocks_alone):
            each.named_parameters()["delta.0"].copy_(delta)
    with method.attached():
        found, latents = loss_of(model, clip), sample(model, clip)
    embedder = model.dit.get_submodule(EMBEDDERS[name])
    handle = embedder.register_forward_hook(lambda module, given, out: out + delta)
    expected, expected_latents = loss_of(model, clip), sample(model, clip)
    handle.remove()
    assert abs(expected - plain) > 1e-4
    assert_near(found, expected, 1e-5)
    assert_near(latents, expected_latents, 1e-5)
    with blocks_alone.attached():
        assert abs(loss_of(model, clip) - expected) > 1e-5  # the final layer reads it too


def gradients_of(method, flags, model, clip):
    adapted, _ = new(method, flags, model, clip)
    with adapted.attached():
        loss_of(model, clip).backward()
    return [p.grad for p in adapted.named_parameters().values()]


@pytest.mark.parametrize("name", OTHERS)
def test_float8_stays_close(name, checkpoint_of):
    row, checkpoint = BACKBONES[name], checkpoint_of(name)
    model, rounded = backbones.load(checkpoint), backbones.load(checkpoint, float8=True)
    clip, stored = toy_clip(model), {key: p.dtype for key, p in rounded.dit.named_parameters()}
    assert row.float8 and row.float32
    assert all(stored[f"{layer}.weight"] == torch.float8_e4m3fn for layer in row.float8)
    assert all(stored[f"{layer}.weight"] == torch.float32 for layer in row.float32)
    for method in (AdaSteer, LoRA, NormTTA):
        gradients = []
        for blocks in (0, None):
            rounded.recompute(blocks)
            gradients.append(gradients_of(method, "", rounded, clip))
        assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))
    exact = sample(model, clip)
    assert (sample(rounded, clip) - exact).square().mean() < 0.01 * exact.square().mean()


def recomputed(model):
    model.recompute(None)


def streamed(model):
    model.place("blocks")
    model.recompute(None)


def compiled(model):
    compile_blocks(model, "aot_eager")
    torch._dynamo.config.suppress_errors = False  # here an error is an error


LEAST = recomputed, streamed
ALL = *LEAST, compiled
CASES = [  # the largest gradient is more than the last; others have tests of placement of their own
    ("WanTransformer3DModel", AdaSteer, "--groups 2 --final-layer", ALL, 1e-3),
    ("WanTransformer3DModel", LoRA, "", ALL, 1e-3),
    ("LTXVideoTransformer3DModel", AdaSteer, "--groups 2 --final-layer own", ALL, 1e-3),
    ("CogVideoXTransformer3DModel", AdaSteer, "--groups 2 --final-layer", ALL, 1e-3),
    ("CogVideoXTransformer3DModel", FiLM, "", LEAST, 1e-4),
    ("CogVideoXTransformer3DModel", LoRA, "", LEAST, 1e-5),
    ("CogVideoXTransformer3DModel", FullTTA, "", LEAST, 1e-3),
]


@pytest.mark.parametrize(("name", "method", "flags", "ways", "least"), CASES)
def test_gradients_stay_however_blocks_are_run(name, method, flags, ways, least, checkpoint_of):
    torch._dynamo.reset()
    model = backbones.load(checkpoint_of(name))
    clip = toy_clip(model)
    plain = gradients_of(method, flags, model, clip)
    assert any(g.abs().max() > least for g in plain)
    assert all(g.any() for g in plain) or method is LoRA  # whose second factors are 0
    for way in ways:
        model = backbones.load(checkpoint_of(name))
        way(model)
        for found, expected in zip(gradients_of(method, flags, model, clip), plain, strict=True):
            scale = max(1.0, expected.abs().max().item()) if method is FullTTA else 1.0
            assert_near(found, expected, 1e-5 * scale)
    torch._dynamo.reset()
