"""How close generated frames are to the ones that really followed, per frame and as means."""

import functools
from pathlib import Path

import torch
from skimage.metrics import structural_similarity

ALEXNET = "alexnet-owt-7be5be79.pth"  # torchvision's file name


def score(frames, truth, lpips=None):
    """Metrics of frames against truth, both (F, 3, H, W) float in 0..1.

    PSNR in dB of each frame, None where a frame is identical to the truth (counted, left out of the
    mean); SSIM with a gaussian window, sigma 1.5 (Wang et al. 2004), data range 1; LPIPS (AlexNet)
    or None.
    """
    if frames.shape != truth.shape:
        raise ValueError(
            f"{tuple(frames.shape)} generated against {tuple(truth.shape)} true frames"
        )
    mse = (frames.double() - truth.double()).square().mean((1, 2, 3))
    per_frame = {
        "psnr_db": [None if e == 0 else -10 * e.log10().item() for e in mse],
        "ssim": [ssim(a, b) for a, b in zip(frames, truth, strict=True)],
        "lpips": [lpips(a, b) for a, b in zip(frames, truth, strict=True)] if lpips else None,
    }
    means = {name: mean(values) for name, values in per_frame.items()}
    return (
        means
        | {"identical_frames": per_frame["psnr_db"].count(None)}
        | {f"{name}_per_frame": values for name, values in per_frame.items()}
    )


def mean(values):
    """Mean of what is there, None when nothing is."""
    values = [value for value in values or [] if value is not None]
    return sum(values) / len(values) if values else None


def ssim(a, b):
    a, b = (x.double().permute(1, 2, 0).numpy() for x in (a, b))
    return float(
        structural_similarity(
            a, b, data_range=1.0, channel_axis=2, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False,
        )
    )  # fmt: skip


@functools.cache
def load_lpips():
    """LPIPS as a function of two frames, and None; or None and why not. Fetches nothing."""
    weights = Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET
    if not weights.is_file():
        return None, f"AlexNet weights are not in torch hub's cache ({ALEXNET})"
    import lpips

    network = lpips.LPIPS(net="alex", verbose=False).eval().requires_grad_(False)

    def distance(a, b):
        return network(a[None] * 2 - 1, b[None] * 2 - 1).item()

    return distance, None
