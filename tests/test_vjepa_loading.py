"""Loading a predictor: the folder, official and Lightning files, and what each says when it is
wrong."""

import functools
import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from predictors import ActionConditionedPredictor, CheckpointError, load_predictor
from predictors.convert import main as convert
from runs.identity import fingerprint

TINY = {
    "img_size": [32, 32], "embed_dim": 6, "predictor_embed_dim": 24, "depth": 2, "num_heads": 2,
    "action_embed_dim": 3,
}  # fmt: skip
STATED = {"img_size": [32, 32], "num_heads": 2}  # what shapes do not say


def tiny(**more):
    torch.manual_seed(0)
    return ActionConditionedPredictor(**TINY | more)


@pytest.fixture
def folder(tmp_path):
    save_file(tiny().state_dict(), tmp_path / "weights.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    return tmp_path


def behind(prefix, module):
    return {f"{prefix}{name}": value for name, value in module.state_dict().items()}


def same(predictor, module):
    own, other = predictor.state_dict(), module.state_dict()
    return own.keys() == other.keys() and all(torch.equal(own[k], other[k]) for k in other)


def test_a_folder(folder):
    predictor = load_predictor(folder)
    assert same(predictor, tiny()) and not predictor.training
    assert not any(p.requires_grad for p in predictor.parameters())


LAYOUTS = {
    "official": lambda p: {
        "encoder": {"module.x": torch.ones(1)}, "predictor": behind("module.", p)
    },
    "target": lambda p: {"target_predictor": behind("module.backbone.", p), "epoch": 3},
    "bare": lambda p: p.state_dict(),
    "compiled": lambda p: {"predictor": behind("module._orig_mod.", p)},
    "lightning": lambda p: {
        "state_dict": {"encoder.x": torch.ones(1)} | behind("model.", p),
        "hyper_parameters": {"lr": 1e-3, "num_heads": 2},
    },
    "half": lambda p: {"predictor": behind("", p.half())},
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("more", [{}, {"use_silu": True}, {"use_silu": True, "wide_silu": False},
                                  {"qkv_bias": False, "mlp_ratio": 2.0}], ids=str)  # fmt: skip
def test_what_training_left(layout, more, tmp_path, capsys):
    file = tmp_path / "predictor.pt"
    torch.save(LAYOUTS[layout](tiny(**more)), file)
    predictor = load_predictor(file, config=STATED)
    expected = tiny(**more).half().float() if layout == "half" else tiny(**more)
    assert same(predictor, expected)
    assert f"python -m predictors.convert {file}" in capsys.readouterr().err
    given = torch.randn(1, 8, 6), torch.randn(1, 2, 3), torch.randn(1, 2, 3)
    assert torch.equal(predictor(*given), expected(*given))


def test_the_trained_weights_are_taken_before_their_average(tmp_path):
    content = {"target_predictor": behind("", tiny()), "predictor": behind("", tiny())}
    content["predictor"]["predictor_norm.bias"] = torch.ones(24)
    torch.save(content, tmp_path / "both.pt")
    found = load_predictor(tmp_path / "both.pt", config=STATED)
    assert torch.equal(found.predictor_norm.bias, torch.ones(24))


def test_a_config_beside_a_file_and_a_lightning_checkpoints_own(folder):
    torch.save(LAYOUTS["official"](tiny()), folder / "a.pt")
    assert same(load_predictor(folder / "a.pt"), tiny())
    (folder / "config.json").unlink()
    torch.save(LAYOUTS["lightning"](tiny()), folder / "b.ckpt")
    found = load_predictor(folder / "b.ckpt")  # 256 pixels, where nothing says another size
    assert found.patches == 256 and found.head_dim == 12


def test_a_configuration_beside_the_file_is_part_of_the_checkpoint(tmp_path):
    torch.save(LAYOUTS["official"](tiny()), tmp_path / "a.pt")
    digests = [fingerprint(tmp_path / "a.pt")]
    for heads in (1, 2):
        (tmp_path / "config.json").write_text(json.dumps({"num_heads": heads}))
        digests.append(fingerprint(tmp_path / "a.pt"))
    assert len(set(digests)) == 3


def test_of_the_released_sizes_nothing_else_is_needed(tmp_path):
    sizes = {"embed_dim": 1024, "predictor_embed_dim": 384, "action_embed_dim": 2}
    with torch.device("meta"):
        shapes = ActionConditionedPredictor(**sizes).state_dict()
    zeros = {name: torch.zeros(1).expand(value.shape) for name, value in shapes.items()}
    torch.save({"predictor": zeros}, tmp_path / "study.pt")
    assert load_predictor(tmp_path / "study.pt").head_dim == 24


def test_converting(tmp_path, monkeypatch, capsys):
    torch.save({"predictor": behind("module.", tiny())}, tmp_path / "a.pt")
    (tmp_path / "config.json").write_text(json.dumps(STATED))
    monkeypatch.setattr(
        "sys.argv", ["convert", str(tmp_path / "a.pt"), str(tmp_path / "new" / "a")]
    )
    assert convert() == 0
    assert same(load_predictor(tmp_path / "new" / "a"), tiny())
    assert (
        load_file(tmp_path / "new" / "a" / "weights.safetensors").keys()
        == tiny().state_dict().keys()
    )
    assert convert() == 2 and "new/a" in capsys.readouterr().err  # it is there


FAULTS = {
    "num_heads": (lambda p: {"predictor": behind("", p)}, {}, "num_heads is not in the shapes"),
    "no predictor": (lambda p: {"encoder": p.state_dict() and {"x": torch.ones(1)}}, STATED,
                     "holds no action-conditioned predictor"),
    "a list": (lambda p: [1, 2], STATED, "holds no action-conditioned predictor"),
    "an object": (lambda p: {"state_dict": behind("", p), "optimizer": functools.partial(print)},
                  STATED, "it holds functools.partial; where it was trained, save its state_dict"),
    "a tensor less": (lambda p: drop(behind("", p), "predictor_norm.bias"), STATED,
                      "its weights lack 1 tensors, such as predictor_norm.bias"),
    "no block": (lambda p: {k: v for k, v in p.state_dict().items() if "blocks.0" not in k}, STATED,
                 "lacks 'predictor_blocks.0.mlp.fc1.weight'"),
    "heads": (lambda p: p.state_dict(), {"num_heads": 5, "img_size": [32, 32]},
              "predictor_embed_dim 24 is no multiple of num_heads 5"),
    "another depth": (lambda p: p.state_dict(), STATED | {"depth": 1}, "no place for 12 tensors"),
    "no rope": (lambda p: p.state_dict(), STATED | {"use_rope": False}, "use_rope"),
}  # fmt: skip


def drop(tensors, name):
    return {k: v for k, v in tensors.items() if k != name}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_file_is_one_line(fault, tmp_path):
    make, config, words = FAULTS[fault]
    torch.save(make(tiny()), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=re.escape(words)) as found:
        load_predictor(tmp_path / "a.pt", config=config)
    assert "\n" not in str(found.value) and str(tmp_path / "a.pt") in str(found.value)


@pytest.mark.parametrize("config, words", [
    ({"num_heads": 0}, "num_heads is 0; it must be a whole number above 0"),
    ({"num_heads": True}, "num_heads is true; it must be"),
    ({"img_size": [32]}, "img_size is [32]; it must be [height, width]"),
    ({"img_size": [8, 32]}, "img_size is [8, 32]; it must be"),
    ({"img_size": "256"}, 'img_size is "256"; it must be'),
    ({"use_silu": 1}, "use_silu is 1; it must be true or false"),
    ({"mlp_ratio": -4}, "mlp_ratio is -4; it must be a number above 0"),
    ({"norm_eps": "x"}, 'norm_eps is "x"; it must be'),
    ({"heads": 2}, "unexpected keyword argument 'heads'"),
    ({"embed_dim": 7}, "gives another shape to 3 tensors, such as predictor_embed.weight"),
])  # fmt: skip
def test_a_wrong_configuration_is_one_line(config, words, folder):
    (folder / "config.json").write_text(json.dumps(TINY | config))
    with pytest.raises(CheckpointError, match=re.escape(words)) as found:
        load_predictor(folder)
    assert "\n" not in str(found.value) and "config.json" in str(found.value)


def test_a_study_configuration_may_say_how_it_was_trained(folder):
    trained = {"drop_path_rate": 0.1, "T_rollout": 7, "loss_exp": 1.0, "num_timesteps": 8}
    (folder / "config.json").write_text(json.dumps(TINY | trained))
    assert same(load_predictor(folder), tiny())


@pytest.mark.parametrize("break_it, words", [
    (lambda f: (f / "weights.safetensors").unlink(), "weights.safetensors cannot be read"),
    (lambda f: (f / "weights.safetensors").write_bytes(b"x" * 99), "weights.safetensors cannot be"),
    (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read"),
    (lambda f: (f / "config.json").unlink(), "config.json cannot be read"),
])  # fmt: skip
def test_a_damaged_folder_is_one_line(break_it, words, folder):
    break_it(folder)
    with pytest.raises(CheckpointError, match=re.escape(words)):
        load_predictor(folder)


@pytest.mark.parametrize("name, words", [
    ("a.bin", "is no predictor: expected is a folder"),
    ("none", "is no predictor: expected is a folder"),
    ("a.pt", "is no file of torch.save"),
])  # fmt: skip
def test_no_predictor_at_all(name, words, tmp_path):
    for file in ("a.bin", "a.pt"):
        (tmp_path / file).write_bytes(b"hello")
    with pytest.raises(CheckpointError, match=words):
        load_predictor(tmp_path / name)
