"""A run is its flags, its script, and the content of all that it reads: what differs is refused."""

import json
import os
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_run import QUICK, ROOT, demo_rows, write_manifest

import adasteer
import common
import runs
from common import metrics
from common.errors import UsageError
from runs import identity

NANO = ROOT / "nano" / "checkpoint"
FAST = [*QUICK, "--no-generate"]


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copied script, which can be edited: a function that writes it and gives its module."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(edit=lambda text: text):
        text = (ROOT / "adasteer.py").read_text()
        (tmp_path / "my_variant.py").write_text(edit(text))
        sys.modules.pop("my_variant", None)
        return __import__("my_variant")

    yield write
    sys.modules.pop("my_variant", None)


def test_a_script_that_was_edited_is_another_run(copied, script, tmp_path, capsys):
    flags = [*FAST, "--out", tmp_path / "out"]
    assert script(copied(), *flags, "--limit", 1) == 0
    edited = copied(lambda text: text.replace("return e + F.pad", "return e - F.pad"))
    capsys.readouterr()
    for more in ([], ["--limit", 1]):
        assert script(edited, *flags, *more) == 2
        assert "my_variant.py was edited since" in capsys.readouterr().err
    assert script(copied(), *flags, "--limit", 2) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "1 already done, 1 to do"


def test_a_script_whose_base_was_edited_is_another_run(copied, script, tmp_path, capsys):
    """It inherits the equation."""

    def write(text):
        (tmp_path / "my_child.py").write_text(text)
        sys.modules.pop("my_child", None)
        return __import__("my_child")

    child = "import my_variant, common\nclass AdaSteer(my_variant.AdaSteer):\n    pass\n"
    digests = []
    for edit in (str, str, lambda text: text.replace("return e + F.pad", "return e - F.pad")):
        copied(edit)
        args = runs.parse_args(None, write(child).AdaSteer, [])
        digests.append(args.script_sha256)
    assert digests[0] == digests[1] != digests[2]


def test_code_under_a_script_that_was_edited_is_said(script, tmp_path, capsys, monkeypatch):
    flags = [*FAST, "--out", tmp_path]
    assert script(adasteer, *flags, "--limit", 1) == 0
    (first,) = (tmp_path / "videos").glob("*.json")
    monkeypatch.setattr(identity, "source_sha256", lambda: "0" * 64)
    assert script(adasteer, *flags, "--limit", 2) == 0
    assert "devices/, backbones/ were edited" in capsys.readouterr().out
    found = {p: json.loads(p.read_text())["source_sha256"] for p in first.parent.glob("*.json")}
    assert len(set(found.values())) == 2 and found[first] != "0" * 64


def test_the_digest_of_the_source_follows_its_content(tmp_path, monkeypatch):
    for room in identity.ROOMS:
        shutil.copytree(ROOT / room, tmp_path / room)
    before = identity.source_sha256()
    monkeypatch.setattr(identity, "ROOT", tmp_path)
    assert identity.source_sha256() == before
    with open(tmp_path / "common" / "loss.py", "a") as file:
        file.write("\n")
    assert identity.source_sha256() != before


def test_a_new_file_makes_the_revision_dirty(tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "ROOT", tmp_path)
    assert identity.git_revision() is None
    (tmp_path / "a.py").touch()
    git = f"git -C {tmp_path} -c user.name=x -c user.email=x@example.org"
    assert os.system(f"{git} init -q && {git} add a.py && {git} commit -qm x") == 0
    clean = identity.git_revision()
    assert "dirty" not in clean
    (tmp_path / "b.py").touch()
    assert identity.git_revision() == f"{clean}-dirty"


@pytest.mark.parametrize("linked", ["files", "folders"])
def test_a_part_behind_a_link_is_part_of_a_checkpoint(linked, script, tmp_path, capsys):
    """As in the cache of Hugging Face's hub, or where a disk was full."""
    store, checkpoint = tmp_path / "store", tmp_path / "checkpoint"
    shutil.copytree(NANO, store)
    if linked == "folders":
        checkpoint.mkdir()
        for part in store.iterdir():
            (checkpoint / part.name).symlink_to(part)
    else:
        shutil.copytree(store, checkpoint, copy_function=os.symlink)
    (checkpoint / "loop").symlink_to(checkpoint)
    assert identity.fingerprint(checkpoint) == identity.fingerprint(NANO)
    flags = [*FAST, "--checkpoint", checkpoint, "--out", tmp_path / "out"]
    assert script(adasteer, *flags, "--limit", 1) == 0
    (file,) = (store / "dit").glob("*.safetensors")
    weights = load_file(file)
    weights = {name: weight.mul_(1.01) for name, weight in weights.items()}
    save_file(weights, file, {"format": "pt"})
    assert script(adasteer, *flags) == 2
    assert "checkpoint_sha256 is" in capsys.readouterr().err


def alexnet(path, seed):
    """The convolutions alone, which LPIPS reads: the rest is 200 MB."""
    import torchvision

    torch.manual_seed(seed)
    with torch.device("meta"):
        shapes = torchvision.models.alexnet(weights=None).features.state_dict()
    drawn = {f"features.{name}": 0.03 * torch.randn(p.shape) for name, p in shapes.items()}
    torch.save(drawn, path)
    return path


def test_other_lpips_weights_are_another_run(script, tmp_path, capsys):
    flags = [*QUICK, "--out", tmp_path / "out", "--lpips-weights"]
    first, second = (alexnet(tmp_path / f"{seed}.pth", seed) for seed in (0, 1))
    assert script(adasteer, *flags, first, "--limit", 1) == 0
    assert script(adasteer, *flags, second) == 2
    assert "lpips_sha256 is" in capsys.readouterr().err
    moved = first.rename(tmp_path / "moved.pth")
    metrics.load_lpips.cache_clear()
    assert script(adasteer, *flags, moved, "--limit", 2) == 0


def test_another_caption_beside_a_video_is_another_run(script, tmp_path, capsys):
    videos = tmp_path / "mine"
    videos.mkdir()
    shutil.copy(demo_rows()[0][0], videos / "ball.mp4")
    (videos / "ball.txt").write_text("A ball rolls.")
    flags = [*FAST, "--videos", videos, "--out", tmp_path / "out"]
    assert script(adasteer, *flags) == 0
    record = json.loads((tmp_path / "out" / "videos" / "ball.json").read_text())
    assert record["caption"] == "A ball rolls."
    (videos / "ball.txt").write_text("A ball stops.")
    capsys.readouterr()
    assert script(adasteer, *flags) == 2
    assert "manifest_sha256 is" in capsys.readouterr().err


def test_other_clips_to_forget_are_another_run(script, tmp_path, capsys):
    rows, videos = demo_rows(), tmp_path / "videos"
    videos.mkdir()
    other = write_manifest(videos / "list.csv", [("other.mp4", "a ball"), (rows[3][0], "a ring")])
    shutil.copy(rows[1][0], videos / "other.mp4")
    flags = [*FAST, "--forgetting", other, "--out", tmp_path / "out"]
    assert script(adasteer, *flags, "--limit", 1) == 0
    shutil.copy(rows[2][0], videos / "other.mp4")
    assert script(adasteer, *flags) == 2
    assert "forgetting_sha256 is" in capsys.readouterr().err


def test_a_source_inside_the_results_is_refused(script, tmp_path, capsys):
    """They would be overwritten: both are called <out>/videos/<id>.mp4."""
    (tmp_path / "videos").mkdir()
    source = tmp_path / "videos" / "scene.mp4"
    shutil.copy(demo_rows()[0][0], source)
    before = source.read_bytes()
    listed = write_manifest(tmp_path / "list.csv", [("videos/scene.mp4", "a ball")])
    outs = [tmp_path, tmp_path / "videos", tmp_path / "videos" / ".." / "videos"]
    (tmp_path / "link").symlink_to(tmp_path)
    for out in [*outs, tmp_path / "link"]:
        assert script(adasteer, *QUICK, "--videos", listed, "--out", out) == 2
        assert "holds videos of --videos" in capsys.readouterr().err
    assert script(adasteer, *QUICK, "--videos", listed, "--out", "") == 2
    assert "--out: must not be empty" in capsys.readouterr().err
    assert source.read_bytes() == before and len(list((tmp_path / "videos").iterdir())) == 1


@pytest.mark.parametrize("how", ["link", "folder", "other", "checkpoint"])
def test_nothing_that_links_lead_to_is_overwritten(how, script, tmp_path, capsys):
    out, store, videos = (tmp_path / name for name in ("out", "store", "videos"))
    for folder in (out / "videos", store, videos):
        folder.mkdir(parents=True)
    inside = out / "videos" / "scene.mp4"
    shutil.copy(demo_rows()[0][0], store / "scene.mp4" if how == "folder" else inside)
    flags = [*QUICK, "--out", out]
    if how == "folder":  # of the results, which leads to the videos
        (out / "videos").rmdir()
        (out / "videos").symlink_to(store)
        flags += ["--videos", write_manifest(store / "list.csv", [("scene.mp4", "a ball")])]
    elif how == "checkpoint":
        shutil.copytree(NANO, tmp_path / "nano")
        flags += ["--checkpoint", tmp_path / "nano", "--out", tmp_path / "nano" / "vae"]
    else:
        (videos / "scene.mp4").symlink_to(inside)
        listed = write_manifest(videos / "list.csv", [("scene.mp4", "a ball")])
        flags += ["--videos" if how == "link" else "--forgetting", listed]
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert script(adasteer, *flags) == 2
    assert "which results could overwrite" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_the_file_of_a_finished_video_is_known_by_content(script, tmp_path, capsys):
    """A copy of it is the same; another one under its name is not."""
    rows = demo_rows()
    shutil.copy(rows[0][0], tmp_path / "scene.mp4")
    listed = write_manifest(tmp_path / "list.csv", [("scene.mp4", "a ball")])
    flags = [*FAST, "--videos", listed, "--out", tmp_path / "out"]
    assert script(adasteer, *flags) == 0
    os.utime(tmp_path / "scene.mp4", (0, 0))
    assert script(adasteer, *flags) == 0
    shutil.copy(rows[1][0], tmp_path / "scene.mp4")
    assert script(adasteer, *flags) == 2
    assert "is not the file that" in capsys.readouterr().err


def test_a_file_that_is_replaced_meanwhile_is_not_the_one_that_was_read(
    script, tmp_path, capsys, monkeypatch
):
    """After its frames were read, and before its record is written."""
    rows, path = demo_rows(), tmp_path / "scene.mp4"
    shutil.copy(rows[0][0], path)
    listed = write_manifest(tmp_path / "list.csv", [("scene.mp4", "a ball")])
    flags = [*FAST, "--videos", listed]
    read = runs.clips.read_footage

    def replaced(*given):
        footage = read(*given)
        shutil.copy(rows[1][0], path)
        return footage

    with monkeypatch.context() as patch:
        patch.setattr(runs.clips, "read_footage", replaced)
        assert script(adasteer, *flags, "--out", tmp_path / "out") == 0
    assert script(adasteer, *flags, "--out", tmp_path / "out") == 2
    assert "is not the file that" in capsys.readouterr().err


def test_a_file_that_changes_while_it_is_read_is_skipped(script, tmp_path, monkeypatch):
    rows, read = demo_rows(), common.footage.read_frames
    for i in (0, 1):
        shutil.copy(rows[i][0], tmp_path / f"{i}.mp4")
    listed = write_manifest(tmp_path / "list.csv", [("0.mp4", "a ball"), ("1.mp4", "a ring")])

    def replaced(path, *given):
        found = read(path, *given)
        if path.name == "0.mp4":
            shutil.copy(rows[2][0], path)
        else:
            path.unlink()
        return found

    monkeypatch.setattr(common.footage, "read_frames", replaced)
    assert script(adasteer, *FAST, "--videos", listed, "--out", tmp_path / "out") == 3
    found = [json.loads((tmp_path / f"out/videos/{i}.json").read_text()) for i in (0, 1)]
    assert "was changed while it was read" in found[0]["reason"]
    assert "cannot be read" in found[1]["reason"]


def test_a_run_in_a_notebook_has_no_file(tmp_path):
    class Mine(adasteer.AdaSteer):
        pass

    Mine.__module__ = "builtins"  # without a __file__, as a notebook's main module
    args = runs.parse_args(None, Mine, ["--out", str(tmp_path)])
    assert runs.Run(args).config["arguments"]["method"] == "Mine"
    with pytest.raises(UsageError, match="method is Mine there, AdaSteer here"):
        other = runs.parse_args(None, adasteer.AdaSteer, ["--out", str(tmp_path)])
        identity.refuse_other(tmp_path, {"arguments": identity.plain_arguments(other)})
