"""Saved adapters, used again."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from test_run import QUICK, finished_run, results

import adasteer
import compare
import delta_c
import film_tta
import full_tta
import last_layer_tta
import lora_tta
import norm_tta

TWO = [*QUICK, "--limit", 2]
METHODS = {
    adasteer: ["--groups", 2, "--final-layer"], film_tta: [], norm_tta: [], delta_c: [],
    lora_tta: ["--rank", 2], last_layer_tta: ["--site", "pre-norm"], full_tta: [],
}  # fmt: skip
SCORES = ("psnr_db", "ssim", "future_loss", "fixed_loss_after")


@pytest.mark.parametrize("module", METHODS, ids=lambda module: module.__name__)
def test_a_saved_adapter_gives_the_same_frames(module, tmp_path, script):
    flags, first = [*QUICK, "--limit", 1, *METHODS[module]], tmp_path / "first"
    assert script(module, *flags, "--lr", 1e-2, "--save-adapter", "--out", first) == 0
    again = [*flags[2:], "--adapter", first / "videos", "--out", tmp_path / "again"]
    assert script(module, *again) == 0
    for name, record in results(tmp_path / "again").items():
        adapted = results(first)[name]
        assert record["losses"] == [] and record["kept"] == "adapted"
        assert [record[key] for key in SCORES] == [adapted[key] for key in SCORES]
        assert record["future_loss_before"] == adapted["future_loss_before"]
        assert record["future_loss"] != record["future_loss_before"]
        assert record["references"] == {}


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    out = tmp_path_factory.mktemp("adapted") / "out"
    return finished_run(out, *TWO, "--lr", 1e-2, "--save-adapter", "--no-generate")


@pytest.fixture
def saved(adapted, tmp_path):
    """A copy, which a test may change."""
    return shutil.copytree(adapted, tmp_path / "first") / "videos"


def test_one_file_serves_all_videos(saved, tmp_path, script):
    file = saved / "scene_0.safetensors"
    flags = [*TWO[2:], "--no-generate", "--adapter", file, "--out", tmp_path / "again"]
    assert script(adasteer, *flags) == 0
    first, again = results(saved.parent), results(tmp_path / "again")
    assert again["scene_0"]["norms"] == again["scene_1"]["norms"] == first["scene_0"]["norms"]
    assert again["scene_0"]["future_loss"] == first["scene_0"]["future_loss"]
    assert again["scene_1"]["future_loss"] != first["scene_1"]["future_loss"]


def test_updates_go_on_from_an_adapter(saved, tmp_path, script):
    flags = [*TWO, "--no-generate", "--adapter", saved, "--out", tmp_path / "on"]
    assert script(adasteer, *flags) == 0
    for name, record in results(tmp_path / "on").items():
        first = results(saved.parent)[name]
        assert len(record["losses"]) == 2 and record["losses"] != first["losses"]
        assert 0 < record["distances"]["delta.0"] < record["norms"]["delta.0"]


def test_compare_takes_the_run_as_a_method(saved, tmp_path, script, capsys):
    common = [*TWO[2:], "--no-generate"]
    script(adasteer, *common, "--steps", 0, "--out", tmp_path / "base")
    script(adasteer, *common, "--adapter", saved, "--out", tmp_path / "again")
    folders = [tmp_path / "base", tmp_path / "again"]
    assert script(compare, *folders, "--out", tmp_path / "report") == 0
    assert "again" in capsys.readouterr().out
    report = json.loads((tmp_path / "report" / "results.json").read_text())
    found = [row["other flags"] for row in report["comparisons"]["runs"]["settings"]]
    assert found == ["", f"--adapter {saved}"]


def test_another_methods_adapter_is_refused_before_weights_are_read(
    saved, tmp_path, script, capsys
):
    for module, flags, why in (
        (full_tta, [], "was saved with method AdaSteer, here it is FullTTA"),
        (adasteer, ["--groups", 2], "was saved with --groups 1, here it is 2"),
    ):
        given = [*TWO[2:], *flags, "--adapter", saved, "--dry-run", "--out", tmp_path / "out"]
        assert script(module, *given) == 2
        assert why in capsys.readouterr().err


def test_other_adapters_are_another_run(saved, tmp_path, script, capsys):
    flags = [*TWO[2:], "--no-generate", "--adapter", saved, "--out", tmp_path / "again"]
    assert script(adasteer, *flags) == script(adasteer, *flags) == 0
    (saved / "scene_0.safetensors").write_bytes((saved / "scene_1.safetensors").read_bytes())
    assert script(adasteer, *flags) == 2
    assert "adapter_sha256" in capsys.readouterr().err


@pytest.mark.parametrize(
    "module, flags, why",
    [
        (adasteer, ["--groups", 3], "was saved with --groups 1, here it is 3"),
        (adasteer, ["--target", "hidden"], "was saved with --target timestep, here it is hidden"),
        (film_tta, [], "was saved with method AdaSteer, here it is FiLM"),
    ],
)
def test_an_adapter_of_something_else_is_refused(
    module, flags, why, saved, tmp_path, script, capsys
):
    flags = [*TWO, *flags, "--adapter", saved, "--out", tmp_path / "again"]
    assert script(module, *flags) == 2
    assert why in capsys.readouterr().err


def test_what_is_no_adapter_is_refused(tmp_path, script, capsys):
    (tmp_path / "notes.txt").write_text("no adapter")
    for place, why in (("absent", "holds no adapter"), ("notes.txt", "is no adapter")):
        flags = [*TWO, "--adapter", tmp_path / place, "--out", tmp_path / "out"]
        assert script(adasteer, *flags) == 2
        assert why in capsys.readouterr().err


@pytest.mark.parametrize(
    "value, flags, why",
    [(float("nan"), {}, "delta.0 is not finite"), (0.0, "x", "its flags are no table")],
)
def test_damaged_adapters_are_refused(value, flags, why, tmp_path, script, capsys):
    said = json.dumps({"method": "AdaSteer", "flags": flags})
    file = tmp_path / "damaged.safetensors"
    save_file({"delta.0": torch.full((64,), value)}, file, {"adasteer.json": said})
    given = [*TWO[2:], "--no-generate", "--adapter", file, "--out", tmp_path / "out"]
    assert script(adasteer, *given) == 2
    assert why in capsys.readouterr().err


def test_a_video_without_its_adapter_is_skipped(saved, tmp_path, script):
    (saved / "scene_1.safetensors").unlink()
    flags = [*TWO, "--no-generate", "--adapter", saved, "--out", tmp_path / "again"]
    assert script(adasteer, *flags) == 3
    record = results(tmp_path / "again")["scene_1"]
    assert "has no scene_1.safetensors" in record["reason"]
