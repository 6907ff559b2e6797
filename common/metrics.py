"""How close generated frames are to the ones that really followed, per frame and as means."""

import functools
from pathlib import Path

import torch

from common.data import sha256
from common.errors import UsageError

METRICS = {  # the proper ones first, and which values of each are better
    "future_loss": "lower", "kernel_score": "lower", "energy_score": "lower", "psnr_db": "higher",
    "ssim": "higher", "lpips": "lower", "temporal_psnr_db": "higher", "temporal_ssim": "higher",
    "flow_error_px": "lower", "warping_error": "lower", "truth_warping_error": None,
}  # fmt: skip
# those that are taken against the clean truth as well, where a list names one, as <name>_clean
CLEAN = ("future_loss_clean", "psnr_db_clean", "ssim_clean", "lpips_clean")
CLEAN_OF = {name.removesuffix("_clean"): name for name in CLEAN}
ONLINE_OF = {"future_loss": "future_loss_online"}  # adapted to the videos before alone
CLEAN_OF["future_loss_online"] = "future_loss_clean_online"
ALEXNET = "alexnet-owt-7be5be79.pth"  # torchvision's file name
# puts that file where alexnet_file looks
FETCH = """python -c "import torchvision; torchvision.models.alexnet(weights='DEFAULT')\""""


def add_arguments(group):
    group.add_argument(
        "--lpips-weights", type=Path, metavar="FILE",
        changes=None, known_by="lpips_sha256", baseline=True,  # reports leave out LPIPS of others
        help="torchvision's alexnet-owt-7be5be79.pth; that in torch hub's cache where not given",
    )  # fmt: skip


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
    per_frame = {
        "psnr_db": [psnr_db(a, b) for a, b in zip(frames, truth, strict=True)],
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


def psnr_db(a, b, data_range=1.0):
    """None where the two are identical."""
    error = (a.double() - b.double()).square().mean() / data_range**2
    return None if error == 0 else -10 * error.log10().item()


def ssim(a, b, data_range=1.0):
    from skimage.metrics import structural_similarity  # here: a program starts faster without

    a, b = (x.double().permute(1, 2, 0).numpy() for x in (a, b))
    return float(
        structural_similarity(
            a, b, data_range=data_range, channel_axis=2, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False,
        )
    )  # fmt: skip


def alexnet_file(weights):
    """The file of `weights`, else that in torch hub's cache; None where there is none."""
    cached = Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET
    return weights or (cached if cached.is_file() else None)


def lpips_sha256(weights):
    """Of the weights that `load_lpips` loads; None where there are none."""
    path = alexnet_file(weights)
    return path and sha256(path)


@functools.cache
def load_lpips(weights=None):
    """LPIPS as a function of two frames, and None; or None and why not. Fetches nothing.

    weights: torchvision's AlexNet file; where None, that in torch hub's cache. Raises UsageError
    when the file is not AlexNet's.
    """
    path = alexnet_file(weights)
    if path is None:
        return (
            None,
            f"AlexNet weights are not in torch hub's cache ({ALEXNET}); fetch them: {FETCH}",
        )
    import lpips

    network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    load_alexnet(network.net, path)
    network.eval().requires_grad_(False)

    def distance(a, b):
        return network(a[None] * 2 - 1, b[None] * 2 - 1).item()

    return distance, None


def load_alexnet(slices, path):
    """Puts the convolutions of torchvision's AlexNet file into lpips' slices of it."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        own = {f"features.{name.partition('.')[2]}": p for name, p in slices.named_parameters()}
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(saved[name])
    except Exception as error:
        raise UsageError(
            f"--lpips-weights {path}: not torchvision's AlexNet ({error}); leave the flag out and "
            f"fetch it: {FETCH}"
        ) from error
