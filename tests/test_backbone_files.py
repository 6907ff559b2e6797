"""Folders of every backbone but LongCat, whose are in test_configs.py: configurations and weights
that are refused, each in one line."""

import json

import pytest
import torch
from backbone_rows import BACKBONES, OTHERS
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from test_cogvideox_files import make_any_size
from test_configs import ANYTHING, EXTRA, GONE, changed, use, without
from toy import loss_of, toy_clip
from wrong_values import WRONG

import adasteer
import backbones
from backbones import opensora2_configs, opensora13_configs

# Values


@pytest.mark.parametrize(
    ("model", "file", "key", "value", "right"),
    [(model, *row) for model, rows in WRONG.items() for row in rows],
)
def test_wrong_values_are_named(model, file, key, value, right, checkpoint_of, tmp_path):
    folder = changed(checkpoint_of(model), tmp_path / "changed", file, **{key: value})
    with pytest.raises(backbones.CheckpointError) as found:
        backbones.load(folder)
    said, part = str(found.value), file.split("/")[0]
    assert right in said and "\n" not in said
    assert part in said or part.replace(".json", ".safetensors") in said


def use_clip(model):
    """With its prompts."""
    assert loss_of(model, toy_clip(model)).isfinite()


@torch.no_grad()
def use_ltx(model):
    torch.manual_seed(0)
    latents = model.encode(torch.rand(1, 3, 9, 64, 64))
    text = {"embeds": torch.randn(1, 1, 4, 32), "mask": torch.ones(1, 4, dtype=torch.long)}
    found = model.generate(latents, text, text, torch.randn(1, 8, 1, 2, 2), 2)
    assert latents.isfinite().all() and found.isfinite().all()
    assert model.decode(latents).isfinite().all()


USES = {"LTXVideoTransformer3DModel": use_ltx, "MMDiT": use_clip, "STDiT3": use_clip}
EXAMPLES = {"WanTransformer3DModel": 8, "STDiT3": 10}  # else 20


@pytest.mark.parametrize("model", OTHERS)
def test_any_configuration_gives_a_model_or_one_line(model, checkpoint_of, tmp_path_factory):
    checkpoint = checkpoint_of(model)
    if model == "CogVideoXTransformer3DModel":  # of the sizes that `use` has
        checkpoint = make_any_size(tmp_path_factory.mktemp("toy") / "CogVideoX-5b-I2V")

    @settings(deadline=None, max_examples=EXAMPLES.get(model, 20))
    @given(data=st.data())
    def holds(data):
        file = data.draw(st.sampled_from(BACKBONES[model].files))
        keys = [*json.loads((checkpoint / file).read_text()), *EXTRA]
        key, value = data.draw(st.sampled_from(keys)), data.draw(st.just(GONE) | ANYTHING)
        folder = tmp_path_factory.mktemp("any") / "changed"
        changed(checkpoint, folder, file, **{key: value})
        try:
            USES.get(model, use)(backbones.load(folder))
        except backbones.CheckpointError as error:
            assert "\n" not in str(error)

    holds()


# Parts


def parts_of(configs, *files):
    weights = f"{configs.T5}/model.safetensors"
    return [configs.VAE, configs.T5, weights, f"{configs.T5}/config.json", *files]


V2, V13 = opensora2_configs, opensora13_configs
WEIGHTS = {
    "MMDiT": [V2.DIT, V2.VAE],
    "STDiT3": [f"{part}/model.safetensors" for part in (V13.DIT, V13.VAE)],
}
PARTS = {
    "MMDiT": parts_of(
        V2, V2.DIT, V2.CLIP, f"{V2.CLIP}/model.safetensors", f"{V2.CLIP}/config.json"
    ),
    "STDiT3": parts_of(V13, *WEIGHTS["STDiT3"], f"{V13.VAE}/config.json"),
}


def each(table):
    return [(model, part) for model, parts in table.items() for part in parts]


@pytest.mark.parametrize(("model", "part"), each(PARTS))
def test_a_missing_part_is_one_line(model, part, checkpoint_of, script, tmp_path, capsys):
    folder = without(checkpoint_of(model), tmp_path / "less", part)
    assert script(adasteer, "--checkpoint", folder, "--dry-run", "--out", tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("adasteer.py: error: --checkpoint: ") and part.split("/")[-1] in line


@pytest.mark.parametrize(("model", "part"), each(WEIGHTS))
@pytest.mark.parametrize("content", [b"", b"not weights", None])
def test_a_wrong_safetensors_is_one_line(model, part, content, checkpoint_of, tmp_path):
    folder = without(checkpoint_of(model), tmp_path / "wrong", part)
    if content is None:
        save_file({"some.weight": torch.zeros(2)}, folder / part)
    else:
        (folder / part).write_bytes(content)
    with pytest.raises(backbones.CheckpointError) as found:
        backbones.load(folder)
    assert part in str(found.value) and "\n" not in str(found.value)
