"""A restored video against the sharp one."""

from common.errors import VideoError
from common.metrics import load_lpips, mean, psnr_db, ssim
from litevsr.data import enlarged
from litevsr.video import frames_of

LUMA = (65.481 / 255, 128.553 / 255, 24.966 / 255)  # of R, G, B in 0..1 (ITU-R BT.601); + 16/255


def scores(args, enlarge):
    """Lines of means over all frames: of the result and of enlarging alone."""
    lpips, reason = load_lpips()
    truth, result = frames_of(args.truth)[0], frames_of(args.out)[0]
    rows = {"restored": [], "bicubic": []}
    for sharp, restored, low in zip(truth, result, frames_of(args.video)[0], strict=False):
        if sharp.shape != restored.shape:
            raise VideoError(
                f"--truth {args.truth}: frames of {size(sharp)}, the result has {size(restored)}"
            )
        plain = enlarged(low[None], sharp.shape[1:])[0]
        rows["restored"].append(measured(restored, sharp, enlarge.scale, lpips))
        rows["bicubic"].append(measured(plain, sharp, enlarge.scale, lpips))
    for name, found in rows.items():
        means = {key: mean([row[key] for row in found]) for key in found[0]}
        yield f"{name}: " + ", ".join(
            f"{key} {value:.3f}" for key, value in means.items() if value is not None
        )
    if reason:
        yield f"LPIPS is not computed: {reason}"


def measured(frame, sharp, border, lpips):
    """PSNR and SSIM of RGB and of luma, without a border of as many pixels as the scale; LPIPS."""
    inner = (..., slice(border, -border), slice(border, -border))
    a, b = frame[inner], sharp[inner]
    y, z = luma(a), luma(b)
    return {
        "psnr_db": psnr_db(a, b), "ssim": ssim(a, b), "luma_psnr_db": psnr_db(y, z),
        "luma_ssim": ssim(y, z), "lpips": lpips(frame, sharp) if lpips else None,
    }  # fmt: skip


def luma(frame):
    return sum(w * c for w, c in zip(LUMA, frame, strict=True))[None] + 16 / 255


def size(frame):
    return f"{frame.shape[2]}x{frame.shape[1]}"
