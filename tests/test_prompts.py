"""Prompts: embedded when they are needed, once, and kept on disk."""

import gc

import pytest
import torch
from test_run import QUICK, demo_rows, write_manifest

import adasteer
import common
import runs
from backbones import text
from runs.cache import Cache
from runs.prompts import TOGETHER, Prompts


@pytest.fixture
def prompts(model, tmp_path, toy_checkpoint):
    return lambda folder=tmp_path: Prompts(model, Cache(folder), toy_checkpoint)


def test_the_text_encoder_is_released_and_not_loaded_again(prompts, monkeypatch):
    from transformers import UMT5EncoderModel

    def alive():
        return sum(type(x) is UMT5EncoderModel for x in gc.get_objects())

    before, first = alive(), prompts()
    cat = first.get("a cat", ["a cat", "a dog"])
    assert alive() == before and first.embedded == 2
    monkeypatch.setattr(text.PromptEncoder, "__call__", None)  # now all is on disk
    again = prompts()
    for prompt, found in (("a dog", first.get("a dog")), ("a cat", cat)):
        again_found = again.get(prompt)
        assert again_found.keys() == found.keys()
        assert all(torch.equal(again_found[name], found[name]) for name in found)
    assert again.embedded == 0


def test_another_encoder_is_another_entry(prompts, model):
    prompts().get("a cat")
    model.prompt_encoder.dtype = torch.bfloat16
    other = prompts()
    other.get("a cat")
    assert other.embedded == 1


def test_a_damaged_or_forbidden_cache_costs_time_only(prompts, tmp_path, capsys):
    prompts().get("a cat")
    for path in tmp_path.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:50])
    (tmp_path / "file").write_text("")
    for folder in (tmp_path, tmp_path / "file"):
        fresh = prompts(folder)
        fresh.get("a cat", ["a dog"])
        fresh.get("a dog")  # from memory
        assert fresh.embedded == 2
    assert "--cache" in capsys.readouterr().err


def test_a_cache_that_cannot_be_read_costs_time_only(tmp_path, script):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "prompts").symlink_to("prompts")  # itself
    flags = [*QUICK, "--limit", 1, "--cache", tmp_path / "cache"]
    assert script(adasteer, *flags, "--out", tmp_path / "out") == 0


def test_a_long_list_waits_for_its_first_prompts_only(tmp_path, monkeypatch):
    """70,000 captions: as many mapped files are more than a process may have."""
    path, caption = demo_rows()[0]
    rows = [(path, caption)] + [(f"{i}.mp4", f"a ball, number {i}") for i in range(70_000)]
    flags = ["--videos", write_manifest(tmp_path / "list.csv", rows), "--device", "cpu"]
    flags = [*QUICK, *flags, "--cache", tmp_path / "cache", "--out", tmp_path / "out"]
    args = runs.parse_args(None, adasteer.AdaSteer, [*map(str, flags)])
    loaded, load = [], Cache.load
    monkeypatch.setattr(Cache, "load", lambda *a: loaded.append(a) or load(*a))
    run, model = runs.Run(args), common.load_model(args)
    with run.working(model):
        assert run.load_clip(next(run.pending())).video.caption == caption
    kept = list((tmp_path / "cache" / "prompts").iterdir())
    assert 2 <= len(kept) <= 2 * TOGETHER and len(loaded) <= 4 * TOGETHER
