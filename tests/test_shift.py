"""Shifts of clips: what they do, what is drawn, and the manifest of their truth."""

import math

import numpy as np
import pytest
import torch
from test_data import BAD, needs_bad_inputs
from test_prepare import manifest_rows, pan, prepared, write_avi

from common.errors import VideoError
from common.metrics import psnr_db
from common.video import read_frames
from prepare import shift
from prepare.shifts import KINDS, OWN_TRUTH, shifted
from runs.lists import SHIFTS, list_videos

GRAIN = np.random.default_rng(0).integers(-40, 41, (24, 56, 3)).repeat(2, 0).repeat(2, 1)
CLIP = np.stack([  # (24, 48, 64, 3): over a texture, coarse and fine
    (picture + GRAIN[:, 2 * t :][:, :64]).clip(0, 255).astype(np.uint8)
    for t, picture in enumerate(pan(3, 24))
])  # fmt: skip


def psnr(frames, clean=CLIP):
    return psnr_db(torch.from_numpy(frames) / 255, torch.from_numpy(clean) / 255)


def under(kind, severity, name="a", frames=CLIP):
    return shifted(frames, kind, severity, 42, name)


def test_what_a_sweep_may_name_is_what_there_is():
    assert tuple(KINDS) == SHIFTS and set(OWN_TRUTH) < set(SHIFTS)


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("kind", [k for k in KINDS if k not in OWN_TRUTH or k == "rotation"])
def test_severities_are_monotone_in_psnr_to_the_clean_clip(kind, name):
    found = [under(kind, severity, name) for severity in range(1, 6)]
    assert all(frames.shape == CLIP.shape and frames.dtype == np.uint8 for frames in found)
    scores = [psnr(frames) for frames in found]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) == 5
    assert 45 > scores[0] and scores[4] < scores[0] - 1


def test_the_faster_the_shorter():
    lengths = [len(under("speed", severity)) for severity in range(1, 6)]
    assert lengths == sorted(set(lengths), reverse=True) and lengths[0] < len(CLIP)


@pytest.mark.parametrize("kind", KINDS)
def test_no_frame_depends_on_later_ones(kind):
    """A run adapts to the first frames; what they look like must not tell what follows."""
    negative_end = np.concatenate([CLIP[:12], 255 - CLIP[12:] // 2])
    whole, cut = under(kind, 4, frames=negative_end), under(kind, 4, frames=CLIP[:10])
    assert np.array_equal(whole[: len(cut)], cut)


def test_what_is_drawn_is_the_clips_own_and_the_same_at_every_severity():
    grey = np.full((3, 32, 32, 3), 128, np.uint8)
    mild, strong = (under("noise", s, frames=grey).astype(float) - 128 for s in (1, 2))
    assert np.corrcoef(mild.ravel(), strong.ravel())[0, 1] > 0.98
    assert abs(np.corrcoef(mild[0].ravel(), mild[1].ravel())[0, 1]) < 0.1  # grain is each frame's
    other = under("noise", 1, "b", grey).astype(float) - 128
    assert abs(np.corrcoef(mild.ravel(), other.ravel())[0, 1]) < 0.1
    assert np.array_equal(under("noise", 1), under("noise", 1))
    bars = {n: [(under("letterbox", s, n)[0] == 0).all(2) for s in (1, 5)] for n in "abcdefgh"}
    above = {name: [bool(bar[0].all()) for bar in each] for name, each in bars.items()}
    assert all(first == last for first, last in above.values())
    assert {first for first, _ in above.values()} == {True, False}


def test_a_cast_is_one_for_all_frames_and_its_hue_for_all_severities():
    white = np.full((4, 16, 16, 3), 120, np.uint8)
    mild, strong = (under("colour-cast", s, frames=white) for s in (1, 5))
    assert (mild == mild[:1, :1, :1]).all() and len(set(mild[0, 0, 0])) > 1
    shifts = [frames[0, 0, 0].astype(float) - 120 for frames in (mild, strong)]
    cosine = shifts[0] @ shifts[1] / np.linalg.norm(shifts[0]) / np.linalg.norm(shifts[1])
    assert cosine > 0.95


def test_times_and_places():
    numbered = np.broadcast_to(np.arange(60, dtype=np.uint8)[:, None, None, None], (60, 4, 4, 3))
    fast = under("speed", 4, frames=numbered)[:, 0, 0, 0]
    assert fast.tolist() == list(range(0, 60, 2))
    held = under("low-frame-rate", 2, frames=numbered)[:, 0, 0, 0]
    lag = np.arange(60) - held
    assert len(held) == 60 and lag.min() == 0 and lag.max() == 2
    assert set(np.diff(held[3:]).tolist()) == {0, 3}
    assert np.array_equal(under("flip", 1), CLIP[:, :, ::-1])
    assert np.array_equal(under("flip", 4), CLIP[:, ::-1])
    assert np.array_equal(under("flip", 5), CLIP[:, ::-1, ::-1])
    turned = under("rotation", 5, frames=np.full((1, 40, 60, 3), 90, np.uint8))
    assert (turned == 90).all()  # no empty corner
    with pytest.raises(VideoError, match="has 4 frames; one in 8 would be a still"):
        under("low-frame-rate", 5, frames=CLIP[:4])


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("listed")
    for seed, count in ((1, 20), (2, 12)):
        write_avi(folder / "clips" / f"c{seed}.avi", pan(seed, count))
    path = folder / "manifest.csv"
    path.write_text(
        "id,filename,caption,source,sha256\n"
        'one,clips/c1.avi,"a camera pans, fast",tape,stale\ntwo,clips/c2.avi,a pan,tape,stale\n'
    )
    return path


def call(monkeypatch, listed, out, kind, severity, *more):
    flags = ["--kind", kind, "--severity", severity, "--out", out, "--min-frames", 10, *more]
    return prepared(shift, monkeypatch, listed, *flags)


def test_the_manifest_keeps_captions_sources_and_the_clean_truth(listed, tmp_path, monkeypatch):
    out = tmp_path / "noisy"
    assert call(monkeypatch, listed, out, "noise", 3) == 0
    clean, _ = list_videos(listed)
    videos, digest = list_videos(out / "manifest.csv")
    for before, video in zip(clean, videos, strict=True):
        facts = ("id", "caption", "source")
        assert [getattr(video, x) for x in facts] == [getattr(before, x) for x in facts]
        assert video.beside["truth"].samefile(before.path)
        count = int(video.columns["frames"])
        frames, fps = read_frames(video.path, 0, count, (48, 64))
        truth, _ = read_frames(before.path, 0, count, (48, 64))
        asked = shifted(in_8_bits(truth), "noise", 3, 42, video.id)
        assert np.array_equal(in_8_bits(frames), asked) and fps == 25  # no codec in between
    assert {row["sha256"] for row in manifest_rows(out)}.isdisjoint({"stale"})
    assert call(monkeypatch, listed, out, "noise", 3) == 0  # again: the same bytes
    assert list_videos(out / "manifest.csv")[1] == digest


def test_a_second_take_is_not_listed_beside_a_shifted_clip(listed, tmp_path, monkeypatch):
    """Its path was relative to another folder, and it is not under the shift."""
    rows = listed.read_text().replace("sha256", "sha256,second_take,second_take_sha256,light")
    path = listed.parent / "takes.csv"
    path.write_text(rows.replace("stale", "stale,clips/c2.avi,abc,day"))
    assert call(monkeypatch, path, tmp_path / "noisy", "noise", 3) == 0
    for video in list_videos(tmp_path / "noisy" / "manifest.csv")[0]:
        assert set(video.beside) == {"truth"} and video.beside["truth"].is_file()
        assert "second_take_sha256" not in video.columns and video.columns["light"] == "day"


def in_8_bits(frames):
    return (frames * 255).round().byte().permute(0, 2, 3, 1).numpy()


def test_at_another_size_the_clean_clip_is_written_too(listed, tmp_path, monkeypatch):
    out = tmp_path / "dark"
    assert call(monkeypatch, listed, out, "dark", 2, "--size", "32x32") == 0
    video = list_videos(out / "manifest.csv")[0][0]
    assert video.beside["truth"].parent.samefile(out / "clean")
    dark, clean = (read_frames(p, 0, 20, (32, 32))[0] for p in (video.path, video.beside["truth"]))
    asked = clean * 2 ** (-1 / 2.2)
    assert torch.allclose(dark, asked, atol=0.51 / 255)
    assert torch.equal(
        clean, in_steps(read_frames(listed.parent / "clips/c1.avi", 0, 20, (32, 32)))
    )


def in_steps(read):
    return (read[0] * 255).round() / 255


def test_of_speed_the_truth_is_the_clip_itself_and_a_short_one_is_skipped(
    listed, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "fast"
    assert call(monkeypatch, listed, out, "speed", 3) == 3
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "skipped two: has 12 frames, under this shift 8; --min-frames is 10"
    (video,) = list_videos(out / "manifest.csv")[0]
    assert video.id == "one" and video.beside["truth"].samefile(video.path)
    assert int(video.columns["frames"]) == math.ceil(19.5 / 1.5)
    assert call(monkeypatch, listed, tmp_path / "faster", "speed", 5) == 1
    assert "none of 2 clips can take --kind speed" in capsys.readouterr().out
    assert not (tmp_path / "faster" / "manifest.csv").exists()


@needs_bad_inputs
def test_a_clip_that_was_cut_is_skipped():
    with pytest.raises(VideoError, match="28 of 73 announced frames"):
        shift.read(BAD / "truncated_data_lost.mp4", None)


WRONG = {
    "--kind: invalid choice: 'fog'": ("fog", 1, "new"),
    "--severity: must be at most 5, got 6": ("noise", 6, "new"),
    "--severity: must be at least 1, got 0": ("noise", 0, "new"),
    "is not empty; choose another folder": ("noise", 1, "full"),
    "was made with {'kind': 'dark', 'severity': 1": ("noise", 1, "made"),
}


@pytest.mark.parametrize("words", WRONG)
def test_bad_input_is_one_line(words, listed, tmp_path, monkeypatch, capsys):
    kind, severity, name = WRONG[words]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    assert call(monkeypatch, listed, tmp_path / "made", "dark", 1) == 0
    capsys.readouterr()
    assert call(monkeypatch, listed, tmp_path / name, kind, severity) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


def test_a_folder_that_holds_the_source_is_refused(listed, monkeypatch, capsys):
    assert call(monkeypatch, listed, listed.parent, "dark", 1) == 2
    assert "is not empty" in capsys.readouterr().err
    assert list_videos(listed)[0][0].path.is_file()
