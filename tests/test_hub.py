"""Checkpoints by their names on the Hugging Face hub: a cache laid out on disk, and no network."""

import json
import os
import re
import shutil

import huggingface_hub
import pytest
from toy import make_opensora2, make_skyreels

import adasteer
from backbones.hub import FILES
from common.loading import NANO
from runs.identity import fingerprint

SKYREELS, LONGCAT = "Skywork/SkyReels-V2-DF-1.3B-540P-Diffusers", "meituan-longcat/LongCat-Video"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def skyreels(tmp_path_factory):
    return make_skyreels(tmp_path_factory.mktemp("toy") / "skyreels")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache; whoever would reach for the network fails."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", no_network)
    return folder


def no_network(*given, **more):
    raise AssertionError("a test reached for the network")


def put(cache, name, checkpoint):
    """As huggingface_hub keeps it: content in blobs, links to it in the snapshot of a commit."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot, blobs = repository / "snapshots" / COMMIT, repository / "blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(p for p in checkpoint.rglob("*") if p.is_file()):
        shutil.copy(path, blobs / str(number))
        link = snapshot / path.relative_to(checkpoint)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blobs / str(number), link.parent))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return snapshot


def fakes_a_download(monkeypatch, fetch):
    """In place of snapshot_download without local_files_only: fetch() gives the folder."""
    own, asked = huggingface_hub.snapshot_download, []

    def download(name, *, local_files_only=False, **more):
        if local_files_only:
            return own(name, local_files_only=True, **more)
        asked.append((name, more))
        return str(fetch())

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return asked


QUICK = ["--no-generate", "--limit", 1, "--steps", 1, "--no-preflight", "--future-draws", 1]


@pytest.mark.parametrize("name", [SKYREELS, LONGCAT])
def test_a_name_is_found_in_the_cache(name, cache, skyreels, script, tmp_path):
    """And is the same checkpoint, by its content, as that folder elsewhere."""
    checkpoint = skyreels if name == SKYREELS else NANO
    put(cache, name, checkpoint)
    assert script(adasteer, "--checkpoint", name, *QUICK, "--out", tmp_path / "out") == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["checkpoint_sha256"] == fingerprint(checkpoint)
    assert config["flags"]["download"]["changes"] is None
    again = ["--checkpoint", checkpoint, *QUICK, "--out", tmp_path / "out"]
    assert script(adasteer, *again) == 0  # the same run, not refused


def test_without_it_one_line_says_what_would_fetch_it(cache, script, capsys, tmp_path):
    assert script(adasteer, "--checkpoint", SKYREELS, "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err.splitlines()
    (error,) = [line for line in said if "error" in line]
    assert SKYREELS in error and f"`hf download {SKYREELS}`" in error and "--download" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("lost", [
    "transformer/diffusion_pytorch_model-00002-of-00004.safetensors", "vae", "tokenizer",
    "text_encoder/model.safetensors",
])  # fmt: skip
def test_half_a_snapshot_is_none(lost, cache, skyreels, script, capsys, tmp_path, monkeypatch):
    """And is completed by a download."""
    snapshot = put(cache, SKYREELS, skyreels)
    gone = snapshot / lost
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    plan = ["--checkpoint", SKYREELS, "--dry-run", "--out", tmp_path / "out"]
    assert script(adasteer, *plan) == 2
    assert "no whole checkpoint of this name" in capsys.readouterr().err
    asked = fakes_a_download(monkeypatch, lambda: skyreels)
    assert script(adasteer, *plan, "--download") == 0
    assert asked == [(SKYREELS, {"allow_patterns": FILES})]
    assert f"--checkpoint {skyreels}" in capsys.readouterr().out


def test_what_the_cache_holds_is_not_fetched_again(cache, skyreels, script, monkeypatch, tmp_path):
    put(cache, SKYREELS, skyreels)
    asked = fakes_a_download(monkeypatch, no_network)
    plan = ["--checkpoint", SKYREELS, "--download", "--dry-run", "--out", tmp_path / "out"]
    assert script(adasteer, *plan) == 0 and asked == []


@pytest.mark.parametrize(("fetch", "right"), [
    (lambda: 1 / 0, "cannot be downloaded: division by zero"),
    (lambda: NANO.parent, "holds no checkpoint that is known"),
])  # fmt: skip
def test_a_download_that_fails_is_one_line(fetch, right, cache, script, monkeypatch, capsys):
    fakes_a_download(monkeypatch, fetch)
    assert script(adasteer, "--checkpoint", SKYREELS, "--download", "--dry-run") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert right in said and SKYREELS in said


def test_a_folder_of_that_name_comes_first(cache, skyreels, script, tmp_path, monkeypatch, capsys):
    (tmp_path / "Skywork").mkdir()
    (tmp_path / SKYREELS).symlink_to(skyreels)
    monkeypatch.chdir(tmp_path)
    assert script(adasteer, "--checkpoint", SKYREELS, "--dry-run", "--out", "out") == 0
    assert f"--checkpoint {SKYREELS}" in capsys.readouterr().out


def test_only_what_a_backbone_reads_is_fetched(skyreels):
    published = [str(p.relative_to(skyreels)) for p in skyreels.rglob("*") if p.is_file()]
    others = ["README.md", "assets/demo.mp4", "lora/cfg_step_lora.safetensors", "vae/old.pth"]
    found = huggingface_hub.utils.filter_repo_objects([*published, *others], allow_patterns=FILES)
    assert sorted(found) == sorted(published)


def test_of_a_release_whose_weights_lie_beside_folders(cache, script, tmp_path, capsys):
    """Open-Sora's: its files are fetched, but no other autoencoder of its repository."""
    opensora2 = make_opensora2(tmp_path / "opensora2")
    put(cache, "hpcai-tech/Open-Sora-v2", opensora2)
    plan = ["--checkpoint", "hpcai-tech/Open-Sora-v2", "--dry-run", "--out", tmp_path / "out"]
    assert script(adasteer, *plan) == 0
    said = capsys.readouterr().out
    for part in ("dit", "vae", "t5-v1_1-xxl", "clip-vit-large-patch14"):
        assert re.search(rf"files: .*\b{part} [\d.]+ MB", said)
    others = ["Open_Sora_v2_Video_DC_AE.safetensors", "google/t5-v1_1-xxl/pytorch_model.bin"]
    published = [str(p.relative_to(opensora2)) for p in opensora2.rglob("*") if p.is_file()]
    found = huggingface_hub.utils.filter_repo_objects([*published, *others], allow_patterns=FILES)
    made_for_tests = {"Open_Sora_v2.json", "hunyuan_vae.json"}
    assert {*found} == {*published} - made_for_tests
