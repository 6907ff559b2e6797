"""What a training shows of itself: the curve, and a sheet of clips that it does not learn from."""

import imageio.v3 as iio
import torch
from matplotlib.figure import Figure

from common.metrics import psnr_db

STEPS = (1, 4)  # of sampling, that are shown
SHOWN = 4  # clips
SIGMAS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)


@torch.no_grad()
def check(restorer, text, latents, low, path):
    """Restores the latents `low` (M, C, T, h, w) of other clips. PSNR in dB against what `latents`
    decode to, of what was given and of each number of steps, and the attention; draws the sheet:
    what was given, restored in each number of steps, the truth."""

    def decode(stacked):  # clip by clip, as a large model has room for
        return torch.cat([restorer.decode(x[None]).cpu() for x in stacked])

    truth, given = decode(latents), decode(low)
    results = {"given": given}
    for steps in STEPS:
        noise = torch.randn(low.shape, generator=torch.Generator().manual_seed(steps))
        restored = [
            restorer.generate(x[None], text, n[None].to(x), steps)
            for x, n in zip(low, noise, strict=True)
        ]
        results[f"{steps}_steps"] = decode(torch.cat(restored))
    columns = [given, *(results[f"{steps}_steps"] for steps in STEPS), truth]
    rows = [torch.cat([x[i, :, -1] for x in columns], dim=2) for i in range(min(SHOWN, len(low)))]
    sheet = (torch.cat(rows, dim=1).permute(1, 2, 0) * 255).round().byte()
    iio.imwrite(path, sheet.cpu().numpy())
    found = {f"psnr_db_{name}": mean_psnr(x, truth) for name, x in results.items()}
    pairs = zip(latents.split(1), low.split(1), strict=True)
    shares = [attention(restorer, text, *pair) for pair in pairs]
    means = {sigma: sum(each[sigma] for each in shares) / len(shares) for sigma in SIGMAS}
    return found | {"attention": means}


@torch.no_grad()
def attention(restorer, text, latents, low):
    """{sigma: share of the adapter's attention that falls on the low-resolution stream}, of latents
    (M, C, T, h, w) on the way from noise, the state the estimate of the sigma before; each a mean
    over clips and layers. The rest falls on the state stream."""
    noise = torch.randn(low.shape, generator=torch.Generator().manual_seed(0)).to(low)
    state, found = low, {}
    for value in SIGMAS:
        masses, sigma = [], torch.full((len(low),), value, device=low.device)
        noisy = (1 - value) * latents + value * noise
        restorer.adapter(low, state, sigma, masses)
        found[value] = torch.stack(masses).mean().item()
        state = noisy - value * restorer.velocity(noisy, sigma, low, text, state)
    return found


def mean_psnr(x, truth):
    values = [psnr_db(a, b) for a, b in zip(x.cpu(), truth.cpu(), strict=True)]
    return sum(v for v in values if v is not None) / len(values)


def draw_curve(curve, folder):
    figure = Figure(figsize=(12, 3.5), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    steps = [row["step"] for row in curve]
    left.plot(steps, [row["loss"] for row in curve])
    left.set(xlabel="iteration", ylabel="training loss", yscale="log")
    for name in curve[0]:
        if name.startswith("psnr_db_"):
            middle.plot(steps, [row[name] for row in curve], label=name.removeprefix("psnr_db_"))
    middle.set(xlabel="iteration", ylabel="PSNR of clips not learned from, dB")
    middle.legend()
    if last := curve[-1].get("attention"):
        right.plot([float(sigma) for sigma in last], list(last.values()))
    right.set(xlabel="sigma", ylabel="attention on the low resolution", ylim=(0, 1))
    figure.savefig(folder / "curve.png", dpi=100)
