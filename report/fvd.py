"""Frechet video distance of a run's generated frames to the real ones (Unterthiner et al. 2018).

    python -m report.fvd results/adasteer --weights i3d_torchscript.pt

The run needs --save-frames. WEIGHTS is an I3D network as TorchScript that takes videos (B, 3, T,
224, 224) in -1..1 and the keyword arguments rescale, resize and return_features, as the one that
StyleGAN-V published:

    curl -Lo i3d_torchscript.pt "https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt?dl=1"

Below a few hundred videos the figure says little; it is printed with the number.
"""

import math
import warnings
import zipfile
import zlib
from pathlib import Path

from runs.exits import run_script  # first: signals, and how torch's threads wait

# isort: split
import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from common.errors import UsageError
from runs.parser import Parser
from runs.results import read_json

SIZE, FEW = 224, 256
URL = "https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt?dl=1"  # StyleGAN-V's
FETCH = f'fetch the I3D that StyleGAN-V published: curl -Lo i3d_torchscript.pt "{URL}"'
DAMAGE = (  # what reading an npz file raises
    OSError, ValueError, KeyError, EOFError, RuntimeError, MemoryError, TypeError, AttributeError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def frechet_distance(a, b):
    """Between Gaussians fitted to features a and b, (N, D) each: |mean a - mean b|^2 + trace(A + B
    - 2 (A B)^1/2), covariances with N - 1."""
    mean_a, mean_b = a.mean(0), b.mean(0)
    a, b = ((x - x.mean(0)) / math.sqrt(len(x) - 1) for x in (a, b))
    # the trace of the root is the sum of these singular values, also with fewer videos than D
    small_a, small_b = (np.linalg.qr(x, mode="r") for x in (a, b))
    root = np.linalg.svd(small_a @ small_b.T, compute_uv=False).sum()
    return float(((mean_a - mean_b) ** 2).sum() + (a**2).sum() + (b**2).sum() - 2 * root)


@torch.no_grad()
def features(network, frames):
    """frames (F, H, W, 3) 8-bit -> (D,). The whole picture is resized, nothing is cropped."""
    x = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
    x = F.interpolate(x, (SIZE, SIZE), mode="bilinear", antialias=True)
    x = x.transpose(0, 1)[None]
    out = network(x, rescale=False, resize=False, return_features=True)
    if not isinstance(out, torch.Tensor) or len(out) != 1:
        raise ValueError("gives no tensor of one row for one video")
    return out.flatten().double().numpy()


def load_network(path):
    """Raises UsageError where the file is no TorchScript."""
    if not path.is_file():
        raise UsageError(f"--weights {path}: no such file; {FETCH}")
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # what I3D comes as
            return torch.jit.load(path, map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            f"--weights {path}: is no TorchScript ({last_line(error)}); {FETCH}"
        ) from error


def last_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


def saved_frames(path):
    """The generated and the true frames of a saved video. Raises UsageError."""
    try:
        with np.load(path) as saved:
            pair = [np.asarray(saved[name]) for name in ("generated", "truth")]
    except DAMAGE as error:
        raise UsageError(
            f"{path}: is damaged ({last_line(error)}); remove it and its .json, and run again"
        ) from error
    for frames in pair:
        if frames.dtype != np.uint8 or frames.shape[3:] != (3,) or frames.size == 0:
            raise UsageError(
                f"{path}: frames must be (F, H, W, 3) of 8 bits, not {frames.dtype} {frames.shape}"
            )
    return pair


def checked_features(network, path):
    """Of both kinds of frames of a file. Raises UsageError where the network does not give them."""
    pair = saved_frames(path)
    try:
        found = [features(network, frames) for frames in pair]
    except (RuntimeError, TypeError, AttributeError, ValueError) as error:
        raise UsageError(f"--weights: fails on {path} ({last_line(error)}); {FETCH}") from error
    if not all(x.size and np.isfinite(x).all() for x in found):
        raise UsageError(f"--weights: gives {path} no finite features")
    return found


def fvd(folder, network):
    """(distance, number of videos) of a run's folder. Raises UsageError where it holds fewer than
    two saved videos, or the network does not fit them."""
    videos = folder / "videos"
    status = {path.stem: status_of(path) for path in videos.glob("*.json")}
    files = sorted(p for p in videos.glob("*.npz") if status.get(p.stem) != "skipped")
    if len(files) < 2:
        raise UsageError(f"{folder}: holds {len(files)} saved videos; run it with --save-frames")
    done = list(status.values()).count("done")
    if done > len(files):
        raise UsageError(
            f"{folder}: {len(files)} of its {done} videos are saved, the others were run without "
            "--save-frames; run all of them with it into a new folder"
        )
    rows = []
    for path in tqdm(files, "features", unit="video", disable=None):
        rows.append(checked_features(network, path))
        if any(x.shape != rows[0][0].shape for x in rows[-1]):
            raise UsageError(f"{path}: has another number of features than {files[0]}")
    generated, truth = (np.stack(x) for x in zip(*rows, strict=True))
    return frechet_distance(generated, truth), len(files)


def status_of(path):
    record = read_json(path)
    return record.get("status") if isinstance(record, dict) else None


def main():
    parser = Parser(__doc__, "%(prog)s RUN --weights FILE")
    parser.add_argument("folder", type=Path, metavar="RUN")
    parser.add_argument("--weights", type=Path, required=True, help="I3D as TorchScript")
    args = parser.parse_args()
    distance, count = fvd(args.folder, load_network(args.weights))
    few = f"; fewer than {FEW}, take it with care" if count < FEW else ""
    print(f"FVD {distance:.3f} over {count} videos{few}")
    return 0


if __name__ == "__main__":
    run_script(main)
