"""Low-rank updates in the release's file format: what is merged is what separate matrices do, what
does not fit is refused, and a run is another one with another file."""

import contextlib
import json

import pytest
import torch
from oracles import assert_near
from safetensors.torch import load_file, save_file
from toy import make_skyreels, sample

import adasteer
import backbones
import runs
from common.errors import MisfitError, UsageError
from common.loading import NANO
from sweeps.rows import Row
from sweeps.status import status

HYPHEN = "___lorahyphen___"
# linear layers of all kinds; of qkv and kv_linear each part has matrices of its own, as officially
LAYERS = {
    "attn.qkv": 3, "attn.proj": 1, "cross_attn.q_linear": 1, "cross_attn.kv_linear": 2,
    "cross_attn.proj": 1, "ffn.w1": 1, "ffn.w2": 1, "ffn.w3": 1, "adaLN_modulation.1": 1,
}  # fmt: skip
RANK = 4


def key_of(layer, part):
    return f"lora{HYPHEN}{layer.replace('.', HYPHEN)}.{part}"


def low_rank(dit, seed=0):
    """{key: tensor} of a random file for two blocks and a layer outside of them."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    parts = {f"blocks.{i}.{name}": n for i in (0, 2) for name, n in LAYERS.items()}
    for name, n in (parts | {"final_layer.linear": 1}).items():
        layer = dit.get_submodule(name)
        down = torch.randn(n * RANK, layer.in_features, generator=generator)
        tensors[key_of(name, "lora_down.weight")] = down / layer.in_features**0.5
        for i in range(n):
            part = f"lora_up.blocks.{i}.weight" if n > 1 else "lora_up.weight"
            up = torch.randn(layer.out_features // n, RANK, generator=generator)
            tensors[key_of(name, part)] = up / 2
        tensors[key_of(name, "alpha_scale")] = torch.tensor(0.5)
    return tensors


@contextlib.contextmanager
def beside(dit, tensors):
    """As the official code has it: every layer's output plus that of its own small layers."""

    def added(module, inputs, output, name):
        down, scale = (tensors[key_of(name, p)] for p in ("lora_down.weight", "alpha_scale"))
        ups = [tensors[k] for k in sorted(tensors) if k.startswith(key_of(name, "lora_up."))]
        h = (inputs[0] @ down.T).chunk(len(ups), dim=-1)
        return output + scale * torch.cat([x @ up.T for x, up in zip(h, ups, strict=True)], dim=-1)

    hooks = [
        module.register_forward_hook(lambda m, x, y, name=name: added(m, x, y, name))
        for name, module in dit.named_modules()
        if key_of(name, "alpha_scale") in tensors
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@pytest.fixture(scope="module")
def tensors(toy_checkpoint):
    return low_rank(backbones.load(toy_checkpoint).dit)


@pytest.fixture(scope="module")
def file(tensors, tmp_path_factory):
    path = tmp_path_factory.mktemp("lora") / "cfg_step_lora.safetensors"
    save_file(tensors, path)
    return path


def velocity(model, clip):
    sigma = torch.tensor([0.5])
    return model.velocity(clip.target, sigma, clip.context, clip.text)


@torch.no_grad()
def test_merged_matrices_are_those_applied_beside_the_layers(toy_checkpoint, file, tensors, clip):
    plain, merged = (backbones.load(toy_checkpoint, lora=lora) for lora in (None, file))
    # the modulation and the last layer are read without a call: by hand, as matrices
    unseen = {k for k in tensors if "adaLN" in k or "final_layer" in k}
    for name in {k.partition(".")[0] for k in unseen}:
        down, up, scale = (
            tensors[f"{name}.{part}"]
            for part in ("lora_down.weight", "lora_up.weight", "alpha_scale")
        )
        layer = name.replace(f"lora{HYPHEN}", "", 1).replace(HYPHEN, ".")
        plain.dit.get_submodule(layer).weight += scale * up @ down
    with beside(plain.dit, {k: x for k, x in tensors.items() if k not in unseen}):
        expected, drawn = velocity(plain, clip), sample(plain, clip)
    assert (expected - velocity(plain, clip)).abs().max() > 0.1
    limit = 1e-6 * expected.abs().max()
    assert_near(velocity(merged, clip), expected, limit)
    assert_near(sample(merged, clip), drawn, 10 * limit)


@torch.no_grad()
def test_weights_in_bfloat16_are_rounded_once(toy_checkpoint, file):
    """The sum is float32's: two roundings would lose small updates."""
    plain, merged = (
        backbones.load(toy_checkpoint, dtype=torch.bfloat16, lora=lora).dit.state_dict()
        for lora in (None, file)
    )
    up, down, name = (
        load_file(file)[key_of("blocks.0.ffn.w1", part)]
        for part in ("lora_up.weight", "lora_down.weight", "alpha_scale")
    )
    expected = plain["blocks.0.ffn.w1.weight"].float() + name * (up @ down)
    assert torch.equal(merged["blocks.0.ffn.w1.weight"], expected.bfloat16())
    assert torch.equal(merged["blocks.1.ffn.w1.weight"], plain["blocks.1.ffn.w1.weight"])


QKV = "blocks.0.attn.qkv"
REFUSED = {
    "unknown layer": (
        lambda t: t | {key_of("blocks.9.attn.qkv", "alpha_scale"): torch.tensor(1.0)},
        "names blocks.9.attn.qkv, which is no linear layer of this transformer",
    ),
    "another layer": (
        lambda t: t | {key_of("blocks.0.attn", "alpha_scale"): torch.tensor(1.0)},
        "names blocks.0.attn, which is no linear layer",
    ),
    "another layout": (
        lambda t: t | {"transformer.blocks.0.attn.qkv.lora_A.weight": torch.ones(2, 2)},
        "has the key 'transformer.blocks.0.attn.qkv.lora_A.weight'; LongCat's keys are such as",
    ),
    "another rank": (
        lambda t: t | {key_of(QKV, "lora_down.weight"): torch.ones(2 * RANK, 64)},
        f"{QKV}: lora_down.weight is (8, 64); it must be (12, 64)",
    ),
    "another width": (
        lambda t: t | {key_of(QKV, "lora_up.blocks.1.weight"): torch.ones(32, RANK)},
        f"{QKV}: lora_up.blocks.1.weight is (32, 4); it must be (64, 4)",
    ),
    "a part missing": (
        lambda t: {k: x for k, x in t.items() if k != key_of(QKV, "lora_up.blocks.1.weight")},
        f"{QKV}: lora_up.blocks.0.weight is (64, 4); it must be (96, 4)",
    ),
    "no scale": (
        lambda t: {k: x for k, x in t.items() if k != key_of(QKV, "alpha_scale")},
        f"{QKV}: alpha_scale is not there; it must be ()",
    ),
    "both ways": (
        lambda t: t | {key_of(QKV, "lora_up.weight"): torch.ones(192, RANK)},
        f"{QKV}: lora_up.weight is (192, 4); it must be nothing",
    ),
    "empty": (lambda t: {}, "holds no tensor"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_before_a_weight_is_read(
    case, toy_checkpoint, tensors, tmp_path, script, capsys
):
    change, words = REFUSED[case]
    path = tmp_path / "other.safetensors"
    save_file({k: x.contiguous() for k, x in change(tensors).items()}, path)
    assert script(adasteer, "--dry-run", "--checkpoint", toy_checkpoint, "--lora", path) == 2
    said = capsys.readouterr().err
    assert f"error: --lora {path}: {words}" in said and said.count("\n") == 1


def test_values_that_are_not_finite(toy_checkpoint, tensors, tmp_path):
    path = tmp_path / "other.safetensors"
    save_file(tensors | {key_of(QKV, "alpha_scale"): torch.tensor(float("nan"))}, path)
    with pytest.raises(backbones.LoRAError, match=f"{QKV} has values that are not finite"):
        backbones.load(toy_checkpoint, lora=path)


def test_another_model_takes_none(file, tmp_path):
    checkpoint = make_skyreels(tmp_path / "SkyReels")
    with pytest.raises(MisfitError, match="made for LongCat, not SkyReelsV2Transformer3DModel"):
        parsed("--checkpoint", checkpoint, "--lora", file)


def parsed(*flags):
    return runs.parse_args(None, adasteer.AdaSteer, list(map(str, flags)))


@pytest.fixture
def distilled(toy_checkpoint, file):
    return ["--checkpoint", toy_checkpoint, "--lora", file, "--sampling", "distilled=true"]


def test_distilled_weights_take_sixteen_steps_without_guidance(distilled, toy_checkpoint, file):
    args = parsed(*distilled)
    assert (args.sampling_steps, args.guidance_scale) == (16, 1.0)
    assert args.sampling == {"distilled": True, "enhance_hf": False, "context_noise": 0.0}
    args = parsed(*distilled, "--sampling-steps", 8, "--guidance-scale", 2)
    assert (args.sampling_steps, args.guidance_scale) == (8, 2.0)
    args = parsed("--checkpoint", toy_checkpoint, "--lora", file)
    assert (args.sampling_steps, args.guidance_scale) == (50, None)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["enhance_hf=true"], "enhance_hf=true: the distilled schedule has no such steps"),
        (["--sampling-steps", "51"], "--sampling-steps 51: the distilled schedule has at most 50"),
    ],
)
def test_what_the_distilled_schedule_has_not(flags, words, distilled):
    with pytest.raises(UsageError, match=words):
        parsed(*distilled, *flags)


def test_the_distilled_schedule_needs_the_file():
    """nano is of LongCat's class, but no weights say of themselves that they are distilled."""
    with pytest.raises(UsageError, match="distilled=true: needs the distilled weights, --lora"):
        parsed("--sampling", "distilled=true")


def test_a_run_is_known_by_the_file(script, tmp_path, capsys):
    """Its baseline has the same one, and no other goes on in its folder."""
    nano, files = backbones.load(NANO).dit, [tmp_path / f"{i}.safetensors" for i in range(2)]
    for seed, path in enumerate(files):
        save_file(low_rank(nano, seed), path)
    quick = ["--limit", 1, "--sampling", "distilled=true", "--sampling-steps", 2, "--lora"]
    baseline, out = ["--out", tmp_path / "baseline"], ["--out", tmp_path / "out"]
    assert script(adasteer, *quick, files[0], *baseline, "--steps", 0) == 0
    said = capsys.readouterr().out
    assert f"--lora {files[0]}" in said  # of the command that is next
    asked = ["--steps", 1, "--baseline", tmp_path / "baseline"]
    assert script(adasteer, *quick, files[0], *out, *asked) == 0
    record, before = (
        json.loads((tmp_path / name / "videos/scene_0.json").read_text())
        for name in ("out", "baseline")
    )
    assert record["future_loss_before"] == before["future_loss"]
    assert record["future_loss"] != before["future_loss"]
    flags = list(map(str, [*quick, files[0], *baseline, "--steps", 0]))
    row = Row("baseline", "adasteer.py", flags, parsed(*flags))
    assert status(row)["done"] == 1  # as a sweep sees it
    for flags in ([*out, "--steps", 1], ["--out", tmp_path / "other", *asked]):
        assert script(adasteer, *quick, files[1], *flags) == 2
        assert "checkpoint_sha256 is" in capsys.readouterr().err.splitlines()[-1]
