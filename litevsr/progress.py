"""What a training shows of itself: the curve, and a sheet of unseen clips."""

import imageio.v3 as iio
import torch
from matplotlib.figure import Figure

from common.metrics import psnr_db

STEPS = (1, 4)  # of sampling, that are shown
SHOWN = 4  # clips


@torch.no_grad()
def check(restorer, text, latents, low, path):
    """Restores the latents `low` (M, C, T, h, w) of unseen clips. PSNR in dB against what `latents`
    decode to, of what was given and of each number of steps; draws the sheet."""
    truth, given = restorer.decode(latents), restorer.decode(low)
    results = {"given": given}
    for steps in STEPS:
        noise = torch.randn(low.shape, generator=torch.Generator().manual_seed(steps))
        restored = [
            restorer.generate(x[None], text, n[None].to(x), steps)
            for x, n in zip(low, noise, strict=True)
        ]
        results[f"{steps}_steps"] = restorer.decode(torch.cat(restored))
    columns = [given, *(results[f"{steps}_steps"] for steps in STEPS), truth]
    rows = [torch.cat([x[i, :, -1] for x in columns], dim=2) for i in range(min(SHOWN, len(low)))]
    sheet = (torch.cat(rows, dim=1).permute(1, 2, 0) * 255).round().byte()
    iio.imwrite(path, sheet.cpu().numpy())
    return {f"psnr_db_{name}": mean_psnr(x, truth) for name, x in results.items()}


def mean_psnr(x, truth):
    values = [psnr_db(a, b) for a, b in zip(x.cpu(), truth.cpu(), strict=True)]
    return sum(v for v in values if v is not None) / len(values)


def draw_curve(curve, folder):
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = [row["step"] for row in curve]
    left.plot(steps, [row["loss"] for row in curve])
    left.set(xlabel="iteration", ylabel="training loss", yscale="log")
    for name in curve[0]:
        if name.startswith("psnr_db_"):
            right.plot(steps, [row[name] for row in curve], label=name.removeprefix("psnr_db_"))
    right.set(xlabel="iteration", ylabel="PSNR of unseen clips, dB")
    right.legend()
    figure.savefig(folder / "curve.png", dpi=100)
