"""Runs on shifted clips: scores against the shifted and the clean truth; second takes."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_run import QUICK, ROOT, results

import adasteer
import compare
import runs
from common.clip import Window
from common.data import sha256
from common.errors import UsageError, VideoError
from common.footage import read_footage
from common.loading import geometry_of
from common.metrics import CLEAN, score
from common.video import read_frames, write_video
from prepare import shift
from runs.lists import list_videos, write_list
from runs.todo import done_among

DEMO = ROOT / "nano" / "demo" / "manifest.csv"
ONE = [*QUICK, "--limit", 1]


def called(module, *words):
    """The exit code of a program's main, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module.__name__, *map(str, words)])
        return module.main()


@pytest.fixture(scope="module")
def dark(tmp_path_factory):
    """The demo in the dark; the second clip passes for the first one's second take."""
    out = tmp_path_factory.mktemp("shifted") / "dark"
    assert called(shift, DEMO, "--kind", "dark", "--severity", 4, "--out", out) == 0
    path = out / "manifest.csv"
    first, second, *rest = list_videos(path)[0]
    first = replace(first, beside=first.beside | {"second_take": second.path})
    write_list(path, [first, second, *rest])
    return path


@pytest.fixture(scope="module")
def scored(dark, tmp_path_factory):
    """Folders of a baseline, a run, and that run on the list without its truth."""
    out, blind = tmp_path_factory.mktemp("scored"), dark.with_name("blind.csv")
    write_list(blind, [without_truth(video) for video in list_videos(dark)[0]])
    for name, path, flags in (
        ("baseline", dark, ["--steps", 0]), ("adasteer", dark, []), ("blind", blind, []),
    ):  # fmt: skip
        words = ["--videos", path, *ONE, *flags, "--save-frames", "--out", out / name]
        assert called(adasteer, *words) == 0
    return out


def without_truth(video):
    columns = {key: text for key, text in video.columns.items() if "truth" not in key}
    return replace(video, columns=columns, beside={})


def record_of(folder):
    return results(folder)["scene_0"]


def test_scores_against_the_clean_truth_stand_beside_those_against_the_shifted(scored, dark):
    record, video = record_of(scored / "adasteer"), list_videos(dark)[0][0]
    with np.load(scored / "adasteer" / "videos" / "scene_0.npz") as arrays:
        generated = torch.from_numpy(arrays["generated"]).permute(0, 3, 1, 2) / 255
    for name, path in (("psnr_db", video.path), ("psnr_db_clean", video.beside["truth"])):
        truth, _ = read_frames(path, 32, 46, (64, 64))
        found = score(generated, truth)
        assert record[name] == pytest.approx(found["psnr_db"], abs=0.02)
        assert record[f"{name}_per_frame"] == pytest.approx(found["psnr_db_per_frame"], abs=0.05)
    assert record["psnr_db_clean"] < record["psnr_db"] - 3  # what was continued is dark
    assert record["future_loss_clean"] > record["future_loss"]
    assert record["future_loss_clean_before"] != record["future_loss_clean"]
    assert record["future_loss_clean_online"] == record["future_loss_clean_before"]
    declared = json.loads((scored / "adasteer" / "config.json").read_text())["metrics"]
    assert set(CLEAN) <= declared.keys() and declared["psnr_db_clean"]["better"] == "higher"
    summary = json.loads((scored / "adasteer" / "summary.json").read_text())
    assert summary["mean_psnr_db_clean"] == record["psnr_db_clean"]


def test_the_clean_truth_changes_no_other_number(scored):
    blind, whole = (record_of(scored / name) for name in ("blind", "adasteer"))
    parts = ("", "_before", "_online", "_per_frame")
    added = {f"{name}{part}" for name in CLEAN for part in parts}
    added |= {f"{name}_{part}" for name in ("truth", "second_take") for part in ("sha256", "file")}
    assert {key for key in whole if key not in blind} < added
    same = blind.keys() - {"columns", "video_file", "device"}
    assert all(blind[key] == whole[key] for key in same)
    declared = json.loads((scored / "blind" / "config.json").read_text())["metrics"]
    assert not declared.keys() & set(CLEAN)


def test_the_report_has_a_table_of_each_and_the_second_take_as_a_row(scored, tmp_path, script):
    folders = [scored / "baseline", scored / "adasteer"]
    assert script(compare, *folders, "--out", tmp_path) == 0
    tables = json.loads((tmp_path / "results.json").read_text())["comparisons"]["runs"]["tables"]
    for name in ("psnr_db", "psnr_db_clean"):
        names = [row["method"] for row in tables[name]]
        assert "(second take: physical noise)" in names and "(last frame repeated)" in names
    assert tables["future_loss_clean"][1]["gain_unit"] == "%"
    given = record_of(scored / "baseline")["references"]["second_take"]["psnr_db"]
    first, second = (read_frames(dark_path(scored, i), 32, 46, (64, 64))[0] for i in (0, 1))
    assert given == pytest.approx(score(second, first)["psnr_db"], abs=1e-6)


def test_a_truth_that_was_changed_since_is_noticed(scored, dark, tmp_path):
    """Whatever the list says of its bytes."""
    video, record = list_videos(dark)[0][0], record_of(scored / "adasteer")
    folder = scored / "adasteer" / "videos"
    assert done_among([video], folder) == {"scene_0"}
    for name, path in video.beside.items():
        assert record[f"{name}_sha256"] == sha256(path)
        (tmp_path / f"{name}.mp4").write_bytes(path.read_bytes() + b"more")
        other = replace(video, beside={name: tmp_path / f"{name}.mp4"})
        with pytest.raises(UsageError, match=f"{name}.mp4 is not the file that .*scene_0.json was"):
            done_among([other], folder)


def dark_path(scored, index):
    config = json.loads((scored / "baseline" / "config.json").read_text())
    return list_videos(config["arguments"]["videos"])[0][index].path


def nano_window():
    args = runs.parse_args(None, adasteer.AdaSteer, [])
    return Window.of(args, geometry_of(args))


def test_frames_of_the_truth_are_those_of_the_window(tmp_path):
    levels = torch.linspace(0.1, 0.9, 60).view(60, 1, 1, 1).expand(60, 3, 64, 64)
    for name, frames in (("given.mp4", levels.flip(0)), ("clean.mp4", levels)):
        write_video(tmp_path / name, frames, 15)
    (tmp_path / "list.csv").write_text("filename,caption,truth\ngiven.mp4,a,clean.mp4\n")
    (video,), _ = list_videos(tmp_path / "list.csv")
    window = nano_window()
    footage = read_footage(video, window, (64, 64))
    clean, _ = read_frames(tmp_path / "clean.mp4", window.anchor - 13, window.stop, (64, 64))
    assert torch.equal(footage.beside["truth"], clean)


WRONG = {
    "no such file": ("nowhere.mp4", ""),
    "is not the file that truth_sha256 of the list is of": ("b.mp4", "0" * 64),
    "has 20 frames, 46 are needed": ("short.mp4", ""),
}


@pytest.mark.parametrize("words", WRONG)
def test_a_truth_that_cannot_be_used_is_a_reason_to_skip_the_video(words, tmp_path):
    name, digest = WRONG[words]
    for file, count in (("a.mp4", 46), ("b.mp4", 46), ("short.mp4", 20)):
        write_video(tmp_path / file, torch.rand(count, 3, 32, 32), 15)
    text = f"filename,caption,truth,truth_sha256\na.mp4,a,{name},{digest}\n"
    (tmp_path / "list.csv").write_text(text)
    (video,), _ = list_videos(tmp_path / "list.csv")
    with pytest.raises(VideoError, match=words) as error:
        read_footage(video, nano_window(), (32, 32))
    assert name in str(error.value)
