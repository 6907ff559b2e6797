"""Long videos of one's own: cut into clips that follow one another, with the video's caption."""

import io
import os
from contextlib import redirect_stdout
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from oracles import SHARED
from test_prepare import RULES, Done, manifest_rows, pan, prepared, write_avi

from common.data import sha256
from common.video import read_frames, write_video
from prepare import clips
from prepare.make import Candidate, make_clip
from prepare.select import judged
from runs.captions import distinct, poor_captions
from runs.lists import list_videos

FLAGS = ["--length", 24, "--size", "48x32"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """96 frames with a scene change at frame 50; 75 frames without; others of no use."""
    folder = tmp_path_factory.mktemp("videos")
    scenes = (*pan(1, 50), *(p // 4 for p in pan(2, 46)))
    pictures = (torch.from_numpy(p).permute(2, 0, 1) / 255 for p in scenes)
    write_video(folder / "long.mp4", pictures, 25, {"g": "12"})
    (folder / "long.txt").write_text("A camera pans\nover a wall.\n")
    write_avi(folder / "whole.avi", pan(3, 75))
    write_avi(folder / "brief.avi", pan(4, 23))
    (folder / "broken.mkv").write_bytes(b"no video")
    return folder


def cut(videos, out, *flags, processors=None):
    """What it prints, and its exit code; in processes where it is said for how many processors."""
    flags = [videos, "--out", out, "--prompt", "It moves.", *FLAGS, *flags]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as said:
        patch.setattr(os, "cpu_count", lambda: processors or 2)
        code = prepared(clips, patch, *flags, processes=bool(processors))
    return said.getvalue(), code


@pytest.fixture(scope="module")
def whole(videos, tmp_path_factory):
    """All clips of the videos: the folder, and what was printed."""
    out = tmp_path_factory.mktemp("whole")
    said, code = cut(videos, out)
    assert code == 0
    return out, said


def test_clips_follow_one_another_and_none_holds_a_scene_change(videos, whole):
    out, said = whole
    rows = {row["filename"]: row for row in manifest_rows(out)}
    found = {(row["source"], row["start_frame"]) for row in rows.values()}
    assert len(rows) == 6 == len(found)
    assert found == {("long", n) for n in ("0", "24", "72")} | {
        ("whole", n) for n in ("0", "24", "48")
    }
    captions = {(row["source"], row["caption"]) for row in rows.values()}
    assert captions == {("long", "A camera pans over a wall."), ("whole", "It moves.")}
    sizes = {(row["frames"], row["width"], row["height"]) for row in rows.values()}
    assert sizes == {("24", "48", "32")}
    for reason in ("cut", "short", "damaged"):
        assert f"rejected 1: {reason}, as " in said
    for name, first in (("long.mp4", 72), ("whole.avi", 48)):
        clip = out / "clips" / f"{name.split('.')[0]}_{first:06d}.mp4"
        frames, _ = read_frames(clip, 0, 24, (32, 48))
        near, _ = read_frames(videos / name, first - 2, first + 3, (32, 48))
        assert (near - frames[0]).abs().mean((1, 2, 3)).argmin() == 2
        assert sha256(clip) == rows[f"clips/{clip.name}"]["sha256"]


@pytest.mark.skipif(not (SHARED / "clips").is_dir(), reason="no real clips")
def test_a_scene_change_between_real_scenes_alike_in_brightness(tmp_path):
    """A jump of 0.15: less than what data sets' own stretches are searched for."""
    names = ("ball_juggle_0090", "drummer_0640")
    scenes = [read_frames(SHARED / "clips" / f"{n}.mp4", 40, 70, (144, 240))[0] for n in names]
    write_video(tmp_path / "two.mp4", torch.cat(scenes), 25)
    flags = ["--length", 60, "--size", "240x144"]
    said, code = cut(tmp_path / "two.mp4", tmp_path / "out", *flags)
    assert code == 1 and said.startswith("rejected 1: cut, as a jump of 0.1")


@pytest.mark.slow
def test_another_number_of_processors_and_a_start_that_ended_early(videos, whole, tmp_path):
    assert cut(videos, tmp_path, "--count", 2, processors=1)[1] == 0
    assert len(list((tmp_path / "clips").iterdir())) == 2 == len(manifest_rows(tmp_path))
    assert cut(videos, tmp_path, processors=3)[1] == 0
    assert (tmp_path / "manifest.csv").read_bytes() == (whole[0] / "manifest.csv").read_bytes()


@pytest.mark.parametrize(
    ("asked", "starts"),
    [
        ({}, [0, 24, 48]), ({"stride": 36}, [0, 36]), ({"stride": 10, "length": 50}, [0, 10, 20]),
        ({"fps": 12.5}, [0]), ({"fps": 12.5, "length": 18}, [0, 36]),
        ({"fps": 50}, [0, 12, 24, 36, 48, 60]), ({"length": 75}, [0]), ({"length": 76}, [0]),
    ],
)  # fmt: skip
def test_where_clips_begin(asked, starts, videos, tmp_path):
    """Of 75 frames at 25 a second; where there is room for none, the verdict of one says so."""
    default = {"length": 24, "stride": None, "fps": None, "prompt": "x"}
    args = SimpleNamespace(source=videos / "whole.avi", **default | asked)
    found = clips.candidates(args)
    assert [candidate.first for candidate in found] == starts
    rules = replace(RULES, min_frames=args.length, max_frames=args.length, fps=args.fps)
    verdict = make_clip(found[-1], rules, tmp_path)
    assert verdict.get("frames") == (args.length if args.length <= 75 else None)


def test_so_many_of_each_video_in_turn():
    made = [Candidate(f"{n}_{i}", None, "", n, n, first=i) for n in "xy" for i in range(4)]
    args = SimpleNamespace(seed=0, out=None, per_source=2)
    pool = SimpleNamespace(submit=lambda _, candidate, *rest: Done(candidate))
    chosen = [verdict["source"] for verdict in judged(made, None, args, pool)]
    assert sorted(chosen[:2]) == sorted(chosen[2:]) == ["x", "y"]
    args.per_source = None
    assert len(list(judged(made, None, args, pool))) == 8


def test_videos_without_a_caption_or_without_a_clip(videos, tmp_path, monkeypatch, capsys):
    flags = ["--out", tmp_path / "out", *FLAGS]
    assert prepared(clips, monkeypatch, videos, *flags) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "brief.avi has no caption (3 of 4 videos lack one)" in said[0]
    assert "brief.txt beside it" in said[0] and "--prompt TEXT" in said[0]
    assert not (tmp_path / "out").exists()
    assert prepared(clips, monkeypatch, videos / "brief.avi", "--prompt", "x y", *flags) == 1
    assert "no clip passes; more videos" in capsys.readouterr().err
    assert prepared(clips, monkeypatch, videos / "none.mp4", *flags) == 2
    assert "none.mp4: no such file or folder" in capsys.readouterr().err


def test_many_clips_of_one_video_may_have_its_caption(tmp_path):
    rows = [f"{n}.mp4,what {n % 2} shows,{n % 2}" for n in range(40)]
    (tmp_path / "list.csv").write_text("\n".join(["filename,caption,source", *rows, ""]))
    listed, _ = list_videos(tmp_path / "list.csv")
    assert sorted(distinct(listed)) == ["what 0 shows", "what 1 shows"]
    assert poor_captions(distinct(listed)) is None
    assert "the same" in poor_captions([video.caption for video in listed[::2]])
