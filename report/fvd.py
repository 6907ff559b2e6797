"""Frechet video distance of a run's generated frames to the real ones (Unterthiner et al. 2018).

    python -m report.fvd results/adasteer --weights i3d_torchscript.pt

The run needs --save-frames. WEIGHTS is an I3D network as TorchScript that takes videos (B, 3, T,
224, 224) in -1..1 and the keyword arguments rescale, resize and return_features, as the one that
StyleGAN-V published. Below a few hundred videos the figure says little; it is printed with the
number.
"""

import argparse
import math
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from common.results import read_json

SIZE, FEW = 224, 256


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
    return out.flatten().double().numpy()


def fvd(folder, network):
    """(distance, number of videos) of a run's folder. Raises ValueError where it holds fewer than
    two saved videos."""
    files = sorted((folder / "videos").glob("*.npz"))
    if len(files) < 2:
        raise ValueError(f"{folder}: holds {len(files)} saved videos; run it with --save-frames")
    records = (folder / "videos").glob("*.json")
    done = sum((read_json(path) or {}).get("status") == "done" for path in records)
    if done > len(files):
        raise ValueError(
            f"{folder}: {len(files)} of its {done} videos are saved, the others were run without "
            "--save-frames; run all of them with it into a new folder"
        )
    rows = []
    for path in tqdm(files, "features", unit="video", disable=None):
        with np.load(path) as saved:
            rows.append([features(network, saved[name]) for name in ("generated", "truth")])
    generated, truth = (np.stack(x) for x in zip(*rows, strict=True))
    return frechet_distance(generated, truth), len(files)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="RUN")
    parser.add_argument("--weights", type=Path, required=True, help="I3D as TorchScript")
    args = parser.parse_args()
    if not args.weights.is_file():
        parser.error(f"--weights {args.weights}: no such file")
    try:
        distance, count = fvd(args.folder, torch.jit.load(args.weights).eval())
    except ValueError as error:
        parser.error(str(error))
    few = f"; fewer than {FEW}, take it with care" if count < FEW else ""
    print(f"FVD {distance:.3f} over {count} videos{few}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
