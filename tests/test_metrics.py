import shlex

import pytest
import torch
from oracles import SHARED
from skimage.metrics import peak_signal_noise_ratio

from common.metrics import ALEXNET, FETCH, load_lpips, score
from common.video import read_frames


def pair(frames=3):
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(frames, 3, 32, 48, generator=generator)
    return (truth + 0.1 * torch.randn(truth.shape, generator=generator)).clamp(0, 1), truth


def test_psnr_is_scikit_image_s_per_frame():
    frames, truth = pair()
    found = score(frames, truth)["psnr_db_per_frame"]
    expected = [
        peak_signal_noise_ratio(b.double().numpy(), a.double().numpy(), data_range=1)
        for a, b in zip(frames, truth, strict=True)
    ]
    assert found == pytest.approx(expected, abs=1e-9)


def test_ssim_is_the_published_formula_at_an_inner_pixel():
    """Wang et al. 2004 by hand: 11x11 gaussian window, sigma 1.5, K1 = 0.01, K2 = 0.03, population
    moments."""
    a, b = (x[:1].expand(1, 3, 32, 48)[:, :, :11, :11].double() for x in pair(1))
    offsets = torch.arange(-5, 6).double()
    row = torch.exp(-(offsets**2) / (2 * 1.5**2))
    window = torch.outer(row, row) / row.sum() ** 2
    values = []
    for x, y in zip(a[0], b[0], strict=True):
        mx, my = (window * x).sum(), (window * y).sum()
        vx, vy = (window * x * x).sum() - mx**2, (window * y * y).sum() - my**2
        cov = (window * x * y).sum() - mx * my
        c1, c2 = 0.01**2, 0.03**2
        values.append((2 * mx * my + c1) * (2 * cov + c2) / (mx**2 + my**2 + c1) / (vx + vy + c2))
    assert score(a, b)["ssim"] == pytest.approx(torch.stack(values).mean().item(), abs=1e-9)


def test_identical_frames_are_counted_and_left_out_of_the_mean():
    frames, truth = pair()
    frames[1] = truth[1]
    found = score(frames, truth)
    assert found["identical_frames"] == 1 and found["psnr_db_per_frame"][1] is None
    others = [found["psnr_db_per_frame"][i] for i in (0, 2)]
    assert found["psnr_db"] == pytest.approx(sum(others) / 2)
    assert score(truth, truth)["psnr_db"] is None


@pytest.mark.skipif(not (SHARED / "bad_inputs").is_dir(), reason="odd files not found")
@pytest.mark.parametrize("name", ["black_73f.mp4", "frozen_73f.mp4"])
def test_black_and_frozen_clips_give_finite_metrics(name):
    """Against themselves backwards (no difference but the codec's) and against noise."""
    frames, _ = read_frames(SHARED / "bad_inputs" / name, 0, 3, (32, 48))
    same = score(frames, frames.flip(0))
    assert same["identical_frames"] >= 1 and same["ssim"] == pytest.approx(1, abs=1e-6)
    assert all(value is None or value > 60 for value in same["psnr_db_per_frame"])
    other = score(frames, torch.rand_like(frames))
    assert 0 < other["psnr_db"] < 20 and abs(other["ssim"]) < 0.1 and not other["identical_frames"]


def test_different_numbers_of_frames_are_an_error():
    frames, truth = pair()
    with pytest.raises(ValueError, match="2, 3, 32, 48"):
        score(frames[:2], truth)


def test_lpips_from_the_cache_or_the_reason_why_not(tmp_path, monkeypatch):
    import torchvision

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    load_lpips.cache_clear()
    lpips, reason = load_lpips()
    assert lpips is None and "AlexNet weights are not in torch hub's cache" in reason
    assert ALEXNET in reason and reason.endswith(FETCH)
    frames, truth = pair()
    assert score(frames, truth, None)["lpips"] is None

    def fetched(url, path, *rest, **more):
        assert url == f"https://download.pytorch.org/models/{ALEXNET}"
        torch.manual_seed(0)
        torch.save(torchvision.models.alexnet(weights=None).state_dict(), path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetched)
    python, dash_c, code = shlex.split(FETCH)
    assert (python, dash_c) == ("python", "-c")
    exec(code, {})  # the command of the message puts the file where it is looked for
    load_lpips.cache_clear()
    lpips, reason = load_lpips()
    frames = torch.nn.functional.interpolate(frames, scale_factor=2)
    truth = torch.nn.functional.interpolate(truth, scale_factor=2)
    found = score(frames, truth, lpips)
    assert reason is None and found["lpips"] > 0 and len(found["lpips_per_frame"]) == 3
    assert score(truth, truth, lpips)["lpips"] == pytest.approx(0, abs=1e-6)
    load_lpips.cache_clear()
