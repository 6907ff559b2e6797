"""LiteVSR's clips: damage, pairs, REDS, windows and tiles."""

import itertools

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from common.errors import UsageError, VideoError
from common.video import write_video
from litevsr.data import UNSEEN, Pairs, Reds, Videos, source_of, together
from litevsr.degradation import Degradation, gaussian_kernel
from litevsr.windows import in_tiles, in_windows, spans


def moving(frames=5, height=64, width=96):
    """A bright square that goes over a slope of grey."""
    x = torch.linspace(0.2, 0.6, width).expand(frames, 3, height, width).clone()
    for i in range(frames):
        x[i, :, 16:40, 8 + 6 * i : 32 + 6 * i] = 0.9
    return x


def psnr(a, b):
    return -10 * (a - b).square().mean().log10().item()


# Damage


def test_a_seed_is_one_degradation_and_another_seed_another():
    low = Degradation.draw(7)(moving())
    assert low.shape == (5, 3, 16, 24) and low.min() >= 0 and low.max() <= 1
    assert torch.equal(low, Degradation.draw(7)(moving()))
    assert not torch.equal(low, Degradation.draw(8)(moving()))


def test_it_is_worse_than_making_the_clip_smaller():
    small = Degradation.bicubic(4)(moving())
    found = [psnr(Degradation.draw(seed)(moving()), small) for seed in range(12)]
    assert max(found) < 45 and min(found) > 8
    assert np.ptp(found) > 5  # from mild to heavy


def test_frames_of_a_clip_are_damaged_alike_but_for_noise():
    still = moving(1).expand(6, -1, -1, -1)
    for seed in range(6):
        low = Degradation.draw(seed)(still)
        between = (low[1:] - low[:-1]).std()
        assert between < 0.08 and psnr(low.mean(0), low[0]) > 20


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_a_codec_damages_by_the_quality_that_was_drawn(codec):
    noise = 0.05 * torch.randn(5, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    clip = (moving() + noise).clamp(0, 1)
    found = [psnr(Degradation(1, (), codec, crf, 0)(clip), clip) for crf in (20, 24, 28, 32)]
    assert all(better > worse for better, worse in itertools.pairwise(found))


def test_the_kernel_is_a_gaussian_of_that_width_and_angle():
    kernel = gaussian_kernel(2.0, 1.0, 0.0)
    half = kernel.shape[0] // 2
    x = np.arange(-half, half + 1)
    assert kernel.sum() == pytest.approx(1, abs=1e-5)
    assert (kernel.sum(0) * x**2).sum() == pytest.approx(4.0, rel=0.05)  # along x
    assert (kernel.sum(1) * x**2).sum() == pytest.approx(1.0, rel=0.05)
    turned = gaussian_kernel(2.0, 1.0, np.pi / 2)
    assert np.allclose(turned, kernel.T, atol=1e-6)


def test_a_scale_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="frames of 96x62 are no multiple of --scale 4"):
        Degradation.draw(1)(moving(height=62))


# Pairs


def make_reds(folder, clips=("000", "001", "011", "015", "020", "239"), frames=4):
    for part, names in (("train", clips), ("val", ("000", "001"))):
        for name in names:
            clip = folder / part / f"{part}_sharp" / name
            clip.mkdir(parents=True)
            for i in range(frames):
                picture = np.full((40, 48, 3), int(name), np.uint8)
                iio.imwrite(clip / f"{i:08d}.png", picture)
    return folder


def test_reds_are_all_clips_but_the_four_of_the_test(tmp_path):
    source = source_of(make_reds(tmp_path))
    assert isinstance(source, Reds)
    names = [(p[0].parts[-3], p[0].parts[-2]) for p in source.clips]
    train = [("train_sharp", name) for name in ("001", "239")]
    assert names == [*train, ("val_sharp", "000"), ("val_sharp", "001")]
    frames = source.frames(1, np.random.default_rng(0), 3, (32, 32))
    assert frames.shape == (3, 3, 32, 32) and frames.unique().tolist() == pytest.approx([239 / 255])


def test_pairs_are_the_same_whatever_came_before(tmp_path):
    write_video(tmp_path / "clip.mp4", moving(12), 24)
    source = source_of(tmp_path)
    assert isinstance(source, Videos)
    pairs = Pairs(source, 5, (32, 48), 4)
    sharp, low = pairs[3]
    assert sharp.shape == low.shape == (3, 5, 32, 48)
    assert psnr(sharp, low) < 40
    pairs[4]
    again = pairs[3]
    assert torch.equal(sharp, again[0]) and torch.equal(low, again[1])
    plain = Pairs(source, 5, (32, 48), 4, degraded=False)[3]
    assert torch.equal(plain[0], sharp) and psnr(sharp, plain[1]) > psnr(sharp, low)


def test_clips_that_cannot_be_used_are_left_out_until_there_is_none(tmp_path):
    write_video(tmp_path / "long.mp4", moving(12), 24)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    write_video(tmp_path / "short.mp4", moving(3), 24)
    pairs = Pairs(source_of(tmp_path), 5, (32, 48), 4)
    assert all(pairs[i][0].shape == (3, 5, 32, 48) for i in range(6))
    (tmp_path / "long.mp4").unlink()
    none = Pairs(source_of(tmp_path), 5, (32, 48), 4)[0]
    assert "--data: 20 clips in a row cannot be used, the last: " in str(none)
    with pytest.raises(UsageError) as wrong:
        raise together([none, none])
    assert wrong.value is none


def test_what_is_checked_is_of_clips_that_are_not_learned_from(tmp_path):
    few = source_of(make_reds(tmp_path, [f"{i:03}" for i in range(30, 37)], frames=1))
    shades = [{shade_of(few, n + i) for i in range(60)} for n in (0, UNSEEN)]
    assert len(few) == 9 and all(len(found) == 9 for found in shades)  # too few to hold one out
    source = source_of(make_reds(tmp_path / "more", [f"{i:03}" for i in range(30, 49)], frames=1))
    learned, checked = ({shade_of(source, n + i) for i in range(200)} for n in (0, UNSEEN))
    assert len(source) == 21 and len(learned) == 19 and checked == {0, 1}
    source.begins = lambda index: index == 16  # the last five are of one
    learned, checked = ({shade_of(source, n + i) for i in range(200)} for n in (0, UNSEEN))
    assert len(learned) == 16 and len(checked) == 5 and not learned & checked


def shade_of(source, number):
    """That of the clip, which is of one shade."""
    return round(Pairs(source, 1, (32, 48), 4)[number][0].mean().item() * 255)


def test_a_picture_that_cannot_be_read_is_a_clip_left_out(tmp_path):
    source = source_of(make_reds(tmp_path))
    source.clips[0][0].write_bytes(b"no picture")
    with pytest.raises(VideoError, match="001: cannot be read"):
        source.frames(0, np.random.default_rng(0), 4, (32, 48))


def test_nano_draws_its_own_clips():
    sharp, low = Pairs(source_of(None), 5, (64, 64), 4)[0]
    assert sharp.shape == low.shape == (3, 5, 64, 64)


# Windows and tiles


@pytest.mark.parametrize("count", [1, 5, 16, 17, 18, 29, 30, 31, 43, 100])
def test_windows_give_every_frame_once(count):
    frames, lengths = torch.rand(count, 3, 4, 4), []

    def same(window):
        lengths.append(len(window))
        return window.clone()

    found = torch.stack([*in_windows(iter(frames), 17, 4, same)])
    assert torch.allclose(found, frames, atol=1e-6) and set(lengths) == {17}


def test_windows_are_blended_where_they_overlap():
    number = iter(range(9))
    found = [*in_windows(torch.zeros(30, 1, 1, 1), 17, 4, lambda w: w + next(number))]
    seam = torch.stack(found)[11:19].flatten()
    assert seam[:2].tolist() == [0, 0] and seam[-2:].tolist() == [1, 1]
    assert (seam.diff() >= 0).all() and len(seam.unique()) == 6


def test_a_long_clip_is_read_as_it_is_written():
    """No more frames are in hand than two windows have."""
    read, written = 0, 0

    def frames():
        nonlocal read
        for _ in range(200):
            read += 1
            yield torch.zeros(1, 2, 2)

    for _ in in_windows(frames(), 17, 4, lambda w: w):
        written += 1
        assert read - written < 2 * 17
    assert written == 200


@pytest.mark.parametrize("size", [(64, 64), (30, 100), (65, 129), (256, 200)])
def test_tiles_cover_any_size(size):
    frames = torch.rand(3, 3, *size)
    found = in_tiles(frames, (64, 64), 16, lambda tile: tile.clone())
    assert torch.allclose(found, frames, atol=1e-5)


def test_tiles_leave_no_seam():
    """Tiles that disagree by a step meet in a slope."""
    steps = iter((0.0, 1.0))
    found = in_tiles(torch.zeros(1, 1, 64, 112), (64, 64), 16, lambda t: t + next(steps))[0, 0, 5]
    assert found[0] == 0 and found[-1] == 1 and found.diff().max() < 0.1


def test_spans_overlap_by_as_much_as_is_asked():
    for length in range(64, 400, 7):
        starts = spans(length, 64, 16)
        assert starts[0] == 0 and starts[-1] == length - 64
        assert all(b - a <= 48 for a, b in zip(starts, starts[1:], strict=False))
