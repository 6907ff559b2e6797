"""Physics-IQ: a tiny folder of the official layout -> clips, their second takes, and a manifest."""

import csv

import pytest
import torch
from test_prepare import manifest_rows, prepared

from common.video import read_frames, write_video
from prepare import physics_iq
from runs.lists import list_videos

QUICK = ["--size", "32x32", "--fps", 10]
FULL = "{number:04d}_full-videos_{rate}FPS_perspective-{side}_take-{take}_trimmed-{scene}.mp4"


def film(folder, number, side, take, scene, rate=30, seconds=8, start=0.1):
    """A video whose brightness tells the time."""
    place = folder / "full-videos" / f"take-{take}" / f"{rate}FPS"
    place.mkdir(parents=True, exist_ok=True)
    levels = start + torch.arange(rate * seconds) / (rate * 10)
    frames = levels.view(-1, 1, 1, 1).expand(-1, 3, 36, 64)
    name = FULL.format(number=number, rate=rate, side=side, take=take, scene=scene)
    write_video(place / name, frames, rate, {"crf": "1", "preset": "ultrafast"})


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    folder = tmp_path_factory.mktemp("physics-IQ-benchmark")
    film(folder, 1, "left", 1, "ball-falls")
    film(folder, 2, "center", 1, "ball-falls")
    film(folder, 199, "left", 2, "ball-falls", start=0.15)
    film(folder, 200, "center", 2, "ball-falls", seconds=5)  # too short
    film(folder, 4, "left", 1, "duck")
    film(folder, 7, "left", 1, "not-described")
    film(folder, 1, "left", 1, "ball-falls", rate=8)
    film(folder, 199, "left", 2, "ball-falls", rate=8)
    (folder / "full-videos" / "take-1" / "30FPS" / "notes.txt").write_text("not a video")
    with open(folder / "descriptions_original.csv", "w", newline="") as file:
        rows = [["scenario", "description", "category", "generated_video_name"]]
        for name, text in (
            ("0001_perspective-left_take-1_trimmed-ball-falls", "A ball,\nheld, falls."),
            ("0002_perspective-center_take-1_trimmed-ball-falls", "A ball falls."),
            ("0199_perspective-left_take-2_trimmed-ball-falls", "A ball falls."),
            ("0004_perspective-left_take-1_trimmed-duck", "A duck sits."),
        ):
            rows.append([f"{name}.mp4", text, "Solid Mechanics", ""])
        csv.writer(file).writerows(rows)
    return folder


def call(monkeypatch, folder, out, *flags, texts=None, processes=False):
    texts = texts or folder / "descriptions_original.csv"
    words = [folder, "--descriptions", texts, "--out", out, *flags]
    return prepared(physics_iq, monkeypatch, *words, processes=processes)


def levels(path, count):
    frames, fps = read_frames(path, 0, count, (32, 32))
    return frames.mean((1, 2, 3)), fps


def test_clips_are_three_seconds_and_five_at_the_asked_rate(
    benchmark, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out"
    assert call(monkeypatch, benchmark, out, *QUICK, processes=True) == 3  # one has no description
    said = capsys.readouterr().out.splitlines()
    name = "0007_perspective-left_trimmed-not-described"
    assert said[0] == f"skipped {name}: --descriptions has no scenario of that name"
    assert (
        "without its second take 0002_perspective-center_trimmed-ball-falls: short: 50" in said[1]
    )
    assert said[-2].startswith("3 clips, 1 with a second take: ")
    assert said[-1].endswith("--anchor 30 --gen-frames 50 --cond-frames 29")
    videos, _ = list_videos(out / "manifest.csv")
    assert [video.id[:4] for video in videos] == ["0001", "0002", "0004"]
    assert [video.source for video in videos] == ["trimmed-ball-falls"] * 2 + ["trimmed-duck"]
    first = videos[0]
    assert first.caption == "A ball, held, falls." and first.columns["category"]
    found, fps = levels(first.path, 80)
    assert fps == 10 and torch.allclose(found, 0.1 + torch.arange(80) / 100, atol=0.02)
    again, _ = levels(first.beside["second_take"], 80)
    assert torch.allclose(again - found, torch.full((80,), 0.05), atol=0.02)
    assert [bool(video.beside) for video in videos] == [True, False, False]


def test_the_folder_of_the_models_rate_is_taken(benchmark, tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, benchmark, tmp_path / "out", "--size", "32x32", "--fps", 8) == 0
    assert (
        capsys.readouterr()
        .out.splitlines()[-1]
        .endswith(
            "--anchor 24 --gen-frames 40 --cond-frames 21 --tta-frames 21 --context-latents 4"
        )
    )
    (row,) = manifest_rows(tmp_path / "out")  # the 30FPS folder has more
    assert row["frames"] == "64" and row["id"].startswith("0001")
    assert call(monkeypatch, benchmark, tmp_path / "out", "--size", "32x32", "--fps", 8) == 0
    assert manifest_rows(tmp_path / "out") == [row]
    assert call(monkeypatch, benchmark, tmp_path / "out", *QUICK) == 2
    assert "was made with {'fps': 8.0" in capsys.readouterr().err


def test_clips_of_another_source_do_not_get_this_ones_captions(
    benchmark, tmp_path, monkeypatch, capsys
):
    place, quick = tmp_path / "physics-IQ-benchmark", ["--size", "32x32", "--fps", 8]
    film(place, 1, "left", 1, "ball-falls", rate=8)
    texts, out = benchmark / "descriptions_original.csv", tmp_path / "out"
    assert call(monkeypatch, place, out, *quick, texts=texts) == 0
    kept = manifest_rows(out)
    film(place, 1, "left", 1, "ball-falls", rate=8, seconds=9)  # another film of that name
    for source in (benchmark, place):
        capsys.readouterr()
        assert call(monkeypatch, source, out, *quick, texts=texts) == 2
        said = capsys.readouterr().err
        assert "was made with" in said and said.count("\n") == 1 and manifest_rows(out) == kept


def test_bad_input_is_one_line(benchmark, tmp_path, monkeypatch, capsys):
    texts, empty = benchmark / "descriptions_original.csv", tmp_path / "empty"
    empty.mkdir()
    other = tmp_path / "other.csv"
    other.write_text("scenario,description\nx.mp4,something\n")
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    cases = [
        (empty, {"texts": texts}, [], "holds no full-videos/take-1/30FPS/0001_full-videos_...mp4"),
        (benchmark, {"texts": tmp_path / "no.csv"}, [], "no.csv: no such file"),
        (benchmark, {"texts": other}, [], "describes no video of SOURCE"),
        (benchmark, {}, ["--fps", 60], "has 30 frames a second at most, the clips need 60"),
        (benchmark, {}, ["--checkpoint", tmp_path / "none"], "none: no such folder"),
    ]
    for folder, more, flags, words in cases:
        assert call(monkeypatch, folder, tmp_path / "out", *QUICK[:2], *flags, **more) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1
    assert call(monkeypatch, benchmark, full, *QUICK) == 2
    assert "is not empty; choose another folder" in capsys.readouterr().err
