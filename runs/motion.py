"""Does the video move as the real one did? Differences between successive frames, optical flow, and
how well a frame predicts the next along its flow.

Flow is Farneback's (2003) in OpenCV, in pixels per frame at the frames' own size.
"""

from dataclasses import dataclass

import numpy as np
import torch

from common.metrics import mean, psnr_db, ssim

FARNEBACK = {
    "pyr_scale": 0.5, "levels": 3, "winsize": 15, "iterations": 3, "poly_n": 5, "poly_sigma": 1.2,
}  # fmt: skip
OCCLUDED = 1.0  # pixels that forward and backward flow may disagree


@dataclass(frozen=True)
class Motion:
    """Frames (1 + F, 3, H, W) with the one before them, and what is computed of them once."""

    frames: torch.Tensor
    flow: np.ndarray  # (F, H, W, 2), from each frame to the next
    warping_errors: list

    @classmethod
    def of(cls, frames, before):
        frames = torch.cat([before[None], frames])
        flow = optical_flow(frames)
        return cls(frames, flow, warping_errors(frames, flow))


def motion_scores(frames, truth, before):
    """Scores of frames (F, 3, H, W) float in 0..1, as they follow the frame before (3, H, W),
    against truth, the Motion of the real ones; per frame and as means.

    temporal_psnr_db, temporal_ssim: of the differences to the frame before, which lie in -1..1, so
    the range is 2. flow_error_px: mean end-point error of the flow. warping_error: mean squared
    error of each frame warped to the next along its own flow, where that is visible in both (Lai
    et al. 2018); truth_warping_error is that of the real frames.
    """
    ours = Motion.of(frames, before)
    changes = list(zip(ours.frames.diff(dim=0), truth.frames.diff(dim=0), strict=True))
    per_frame = {
        "temporal_psnr_db": [psnr_db(a, b, data_range=2.0) for a, b in changes],
        "temporal_ssim": [ssim(a, b, data_range=2.0) for a, b in changes],
        "flow_error_px": np.linalg.norm(ours.flow - truth.flow, axis=3).mean((1, 2)).tolist(),
        "warping_error": ours.warping_errors,
        "truth_warping_error": truth.warping_errors,
    }
    return {name: mean(values) for name, values in per_frame.items()} | {
        f"{name}_per_frame": values for name, values in per_frame.items()
    }


def farneback(a, b):
    """Flow (H, W, 2) float32, x first, from a to b, both (H, W) 8-bit grey."""
    import cv2  # here: a program starts faster without

    return cv2.calcOpticalFlowFarneback(a, b, None, flags=0, **FARNEBACK)


def optical_flow(frames):
    """frames (F, 3, H, W) float in 0..1 -> (F - 1, H, W, 2) float32: from each to the next, x
    first."""
    grey = (frames.mean(1) * 255).round().byte().numpy()
    pairs = zip(grey[:-1], grey[1:], strict=True)
    return np.stack([farneback(a, b) for a, b in pairs])


def warping_errors(frames, forward):
    """Of each frame but the first; None where nothing of it was visible before."""
    backward = optical_flow(frames.flip(0))[::-1]
    pictures = frames.permute(0, 2, 3, 1).contiguous().numpy()
    errors = []
    for old, new, there, back in zip(pictures[:-1], pictures[1:], forward, backward, strict=True):
        visible = np.linalg.norm(back + along(there, back), axis=2) < OCCLUDED
        visible &= comes_from_inside(back)
        squared = ((along(old, back) - new) ** 2).mean(2)
        errors.append(float(squared[visible].mean()) if visible.any() else None)
    return errors


def along(picture, flow):
    """picture (H, W, C) looked up where flow (H, W, 2) points; its border goes on outside."""
    import cv2

    return cv2.remap(picture, *places(flow), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def places(flow):
    """Columns and rows (H, W) float32 that flow (H, W, 2) points to."""
    y, x = np.mgrid[: flow.shape[0], : flow.shape[1]].astype(np.float32)
    return x + flow[..., 0], y + flow[..., 1]


def comes_from_inside(flow):
    """(H, W): whether flow (H, W, 2) points to a place in the picture."""
    height, width = flow.shape[:2]
    x, y = places(flow)
    return (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
