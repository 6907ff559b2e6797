"""All scores of one generated clip, and the two references that a table needs beside them."""

from concurrent.futures import ThreadPoolExecutor

import torch

from common.metrics import score
from runs.motion import Motion, motion_scores


def evaluate(frames, clip, lpips=None):
    """Scores of frames (gen_frames, 3, H, W) in 0..1, per frame and as means."""
    before = clip.cond_frames[-1]
    with ThreadPoolExecutor(1) as pool:  # half of the work each
        moving = pool.submit(lambda: motion_scores(frames, Motion.of(clip.truth, before), before))
        return score(frames, clip.truth, lpips) | moving.result()


def clean_scores(frames, clip, lpips=None):
    """PSNR, SSIM and LPIPS of frames against the clean truth, as <name>_clean; none without one."""
    if "truth" not in clip.beside:
        return {}
    found, parts = score(frames, clip.beside["truth"], lpips), ("", "_per_frame")
    names = ((name, part) for name in ("psnr_db", "ssim", "lpips") for part in parts)
    return {f"{name}_clean{part}": found[f"{name}{part}"] for name, part in names}


def reference_scores(clip, reconstruction, lpips=None):
    """Means for the same frames: of repeating the last frame before them, of the real ones through
    the autoencoder and back (the ceiling of any method), and of the scene's second take, where the
    list names one."""
    before = clip.cond_frames[-1]
    shown = {"repeat_last": before.expand_as(clip.truth), "reconstruction": reconstruction}
    shown |= {name: clip.beside[name] for name in ("second_take",) if name in clip.beside}
    return {
        name: {
            key: value
            for key, value in (
                evaluate(frames, clip, lpips) | clean_scores(frames, clip, lpips)
            ).items()
            if not key.endswith("_per_frame")
        }
        for name, frames in shown.items()
    }


def reconstruct(model, clip):
    """The real frames (gen_frames, 3, H, W) through the autoencoder and back, on the CPU."""
    real = torch.cat([clip.cond_frames, clip.truth])
    geometry = model.geometry
    whole = geometry.frames_of(geometry.latents_covering(len(real)))
    # filled up at the end: autoencoders are causal
    real = torch.cat([real, real[-1:].expand(whole - len(real), -1, -1, -1)])
    again = model.decode(model.encode(real.transpose(0, 1)[None]))[0].transpose(0, 1)
    return again[len(clip.cond_frames) :][: len(clip.truth)].cpu()
