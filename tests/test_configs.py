"""A checkpoint's configurations: what is refused before a weight is read, and that no content of
them, nor of its tokenizer, ends in anything else than a model or one line."""

import contextlib
import io
import json
import os
import shutil
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import adasteer
import backbones
from backbones.configs import check_checkpoint
from backbones.text import PromptEncoder

DIT, VAE, TEXT = (f"{part}/config.json" for part in ("dit", "vae", "text_encoder"))
SCHEDULER, TOKENIZER = "scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json"
INDEX, NATIVE = "dit/diffusion_pytorch_model.safetensors.index.json", "model_index.json"
FILES = (DIT, VAE, TEXT, SCHEDULER, TOKENIZER, INDEX, NATIVE)
GONE = object()  # a key that is taken out
NAN = float("nan")


def changed(checkpoint, folder, file, *, text=None, **values):
    """A copy of the checkpoint, by links, with other values or another text in one file."""
    shutil.copytree(checkpoint, folder, copy_function=os.symlink)
    content = json.loads((checkpoint / file).read_text()) | values
    content = {key: value for key, value in content.items() if value is not GONE}
    (folder / file).unlink()
    (folder / file).write_text(json.dumps(content) if text is None else text)
    return folder


def without(checkpoint, folder, part):
    """As changed, without a file or folder."""
    shutil.copytree(checkpoint, folder, copy_function=os.symlink)
    shutil.rmtree(folder / part) if (folder / part).is_dir() else (folder / part).unlink()
    return folder


WRONG = [
    (SCHEDULER, "shift", NAN, "NaN; it must be a"),
    (SCHEDULER, "shift", 0, "0; it must be a number from 0.1 to 100"),
    (SCHEDULER, "shift", 1e9, "a number from 0.1 to 100"),
    (SCHEDULER, "shift", GONE, "has no shift"),
    (SCHEDULER, "base_shift", float("-inf"), "-Infinity; it must be a"),
    (SCHEDULER, "num_train_timesteps", 500, "500; it must be 1000"),
    (SCHEDULER, "use_dynamic_shifting", True, "true; it must be false"),
    (SCHEDULER, "use_karras_sigmas", True, "true; it must be false"),
    (SCHEDULER, "invert_sigmas", True, "true; it must be false"),
    (SCHEDULER, "shift_terminal", 0.02, "0.02; it must be null"),
    (SCHEDULER, "_class_name", "DDIMScheduler", "FlowMatchEulerDiscreteScheduler"),
    (VAE, "latents_mean", [0.0] * 15, "a list of z_dim = 16 values"),
    (VAE, "latents_std", [1.0] * 15 + [0.0], "each a number from 0.001 to 1000"),
    (VAE, "latents_std", [1.0] * 15 + [-1.0], "each a number from 0.001 to 1000"),
    (VAE, "latents_std", [1.0] * 15 + [NAN], "NaN"),
    (VAE, "z_dim", 10**9, "a whole number from 1 to 256"),
    (VAE, "temperal_downsample", [False, False, True], "two of them true"),
    (VAE, "scale_factor_spatial", 4, "4; it must be 8"),
    (VAE, "_class_name", ["AutoencoderKLWan"], "AutoencoderKLWan or LinearVideoAutoencoder"),
    (DIT, "depth", 0, "0; it must be a whole number from 1 to 256"),
    (DIT, "depth", 10**9, "a whole number from 1 to 256"),
    (DIT, "hidden_size", 10**8, "a whole number from 2 to 16384"),
    (DIT, "hidden_size", 66, "a multiple of twice num_heads = 2"),
    (DIT, "hidden_size", "64", '"64"; it must be a whole number'),
    (DIT, "in_channels", 8, "8; it must be 16, the z_dim of the vae"),
    (DIT, "caption_channels", 64, "64; it must be 32, the d_model of the text encoder"),
    (DIT, "patch_size", [2, 2, 2], "[1, n, n]"),
    (DIT, "text_tokens_zero_padd", True, "unknown key"),
    (DIT, "depth", GONE, "has no depth"),
    (DIT, "depth", 3, "has no place in its config.json for"),
    (DIT, "_class_name", {}, "known are LongCatVideoTransformer3DModel"),
    (TEXT, "model_type", "t5", '"t5"; it must be "umt5"'),
    (TEXT, "vocab_size", 10**12, "a whole number from 1 to 1000000"),
    (TEXT, "relative_attention_max_distance", 4, "more than 8"),
    (TEXT, "d_ff", 48, "has other shapes in its config.json for 3 weights"),
    (TEXT, "num_layers", 2, "text_encoder lacks"),
    (VAE, "quantization_config", {"quant_method": "torchao"}, "left out"),
    (TEXT, "attn_implementation", "someone/kernel", "left out"),
    (NATIVE, "height", "32", '"32"; it must be a whole number'),
    (NATIVE, "width", 40, "40; it must be a multiple of 16"),
    (NATIVE, "max_sequence_length", 1.5, "a whole number from 1 to 4096"),
    (NATIVE, "guidance_scale", None, "null; it must be a number from 0 to 100"),
    (INDEX, "weight_map", {"a": "../vae/diffusion_pytorch_model.safetensors"}, "file in"),
    (INDEX, "weight_map", {"a": "absent.safetensors"}, "file in"),
    (INDEX, "weight_map", [], "the file of each weight"),
]


@pytest.mark.parametrize(("file", "key", "value", "right"), WRONG)
def test_wrong_values_are_named(file, key, value, right, toy_checkpoint, tmp_path):
    folder = changed(toy_checkpoint, tmp_path / "changed", file, **{key: value})
    with pytest.raises(backbones.CheckpointError) as found:
        list(backbones.load(folder).embed_each(["a"]))
    said = str(found.value)
    assert right in said and "\n" not in said
    assert file.split("/")[0] in said and (key in said or "weights" in said or "names" in said)


def test_they_are_found_before_any_weight_is_read(toy_checkpoint, tmp_path):
    folder = changed(toy_checkpoint, tmp_path / "changed", NATIVE, height=33)
    for path in folder.rglob("*.safetensors"):
        path.unlink()
        path.write_bytes(b"")
    with pytest.raises(backbones.CheckpointError, match="height is 33"):
        backbones.load(folder)


@pytest.mark.parametrize("text", ["", "[]", "3", "{", "[" * 100_000, '{"shift": 1e999}', "\0"])
@pytest.mark.parametrize("file", FILES)
def test_files_that_hold_no_configuration(file, text, toy_checkpoint, tmp_path):
    folder = changed(toy_checkpoint, tmp_path / "changed", file, text=text)
    with pytest.raises(backbones.CheckpointError) as found:
        backbones.load(folder)
    assert file in str(found.value) and "\n" not in str(found.value)


def test_a_script_says_it_in_one_line(script, toy_checkpoint, tmp_path, capsys):
    folder = changed(toy_checkpoint, tmp_path / "changed", SCHEDULER, shift=NAN)
    assert script(adasteer, "--checkpoint", folder, "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "error: --checkpoint" in said and f"{SCHEDULER}: shift is NaN; it must be" in said


def test_a_tokenizer_that_does_not_fit_is_named(toy_checkpoint, tmp_path):
    folder = changed(toy_checkpoint, tmp_path / "changed", TOKENIZER)
    tokens = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())
    word = next(iter(tokens["added_tokens"]))
    tokens["added_tokens"].append(word | {"id": 10**6, "content": "far"})
    (folder / "tokenizer" / "tokenizer.json").unlink()
    (folder / "tokenizer" / "tokenizer.json").write_text(json.dumps(tokens))
    with pytest.raises(backbones.CheckpointError, match="tokenizer"):
        list(backbones.load(folder).embed_each(["far"]))


CODE = """
import pathlib
pathlib.Path({marker!r}).touch()
class Own:
    pass
"""


@pytest.mark.parametrize("file", [TOKENIZER, TEXT, DIT])
def test_code_of_a_checkpoint_is_never_run(file, toy_checkpoint, tmp_path, monkeypatch):
    """Not even where someone answers yes to every question."""
    names = dict.fromkeys(("AutoModel", "AutoConfig"), "own.Own")
    values = {"auto_map": names | {"AutoTokenizer": ["own.Own", "own.Own"]}}
    if file == TOKENIZER:
        values["tokenizer_class"] = "Own"
    folder, marker = changed(toy_checkpoint, tmp_path / "c", file, **values), tmp_path / "marker"
    (folder / file).with_name("own.py").write_text(CODE.format(marker=str(marker)))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    with contextlib.suppress(backbones.CheckpointError):
        (text,) = backbones.load(folder).embed_each(["a"])
        assert text["mask"].shape == (1, 16)
    assert not marker.exists()


EXTRA = ("auto_map", "quantization_config", "dtype", "torch_dtype", "_diffusers_version", "x",
         "model_input_names", "return_dict", "output_attentions", "architectures")  # fmt: skip
NUMBERS = st.one_of(
    st.floats(), st.integers(-4, 40), st.sampled_from([10**9, -(10**9), 10**400, 1e300, 0.0])
)
PLAIN = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8))
ANYTHING = st.recursive(
    PLAIN,
    lambda inner: st.one_of(
        st.lists(inner, max_size=17), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=17,
)


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_any_configuration_gives_a_model_or_one_line(data, toy_checkpoint, tmp_path_factory):
    file = data.draw(st.sampled_from(FILES))
    keys = [*json.loads((toy_checkpoint / file).read_text()), *EXTRA]
    key, value = data.draw(st.sampled_from(keys)), data.draw(st.just(GONE) | ANYTHING)
    folder = tmp_path_factory.mktemp("any") / "changed"
    changed(toy_checkpoint, folder, file, **{key: value})
    with contextlib.suppress(backbones.CheckpointError):
        if file in (TEXT, TOKENIZER):
            length = check_checkpoint(folder)[0].get("max_sequence_length", 16)
            encoder = PromptEncoder(folder, torch.float32)
            (text,) = encoder(["a red ball"], torch.device("cpu"), length)
            assert text["embeds"].isfinite().all()
        else:
            use(backbones.load(folder))


def use(model):
    torch.manual_seed(0)
    latents = model.encode(torch.rand(1, 3, 5, 32, 64))
    text = {"embeds": torch.randn(1, 1, 4, 32), "mask": torch.ones(1, 4, dtype=torch.long)}
    velocity = model.velocity(torch.randn(latents.shape), torch.tensor([0.5]), latents, text)
    assert latents.isfinite().all() and velocity.isfinite().all()
    assert model.decode(latents).isfinite().all()
    assert all(type(side) is int for side in model.geometry.size)
