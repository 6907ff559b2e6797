"""What a pretraining shows of itself: the loss curve, and scenes that the model continues."""

import json

import imageio.v3 as iio
import torch
from matplotlib.figure import Figure

import backbones
from nano import scenes


def draw_curve(curve, folder):
    """curve: (step, seconds, mean loss since the last) -> curve.json and curve.png."""
    (folder / "curve.json").write_text(json.dumps(curve))
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([step for step, _, _ in curve], [loss for *_, loss in curve])
    axes.set(xlabel="step", ylabel="training loss", yscale="log")
    figure.savefig(folder / "curve.png", dpi=100)


def draw_samples(checkpoint, path, count=6):
    """A picture of unseen scenes, three rows each: truth, reconstruction, continuation.

    Left of the line what the model was given, 13 frames; right of it the 16 that follow.
    """
    model = backbones.load(checkpoint)
    rows = []
    for seed in range(scenes.UNSEEN, scenes.UNSEEN + count):
        frames, caption = scenes.clip(seed, 29, photos=scenes.HELD_OUT)
        latents = model.encode(frames.transpose(0, 1)[None])
        negative, text = model.embed_each(["", caption])
        noise = torch.randn(latents[:, :, 4:].shape, generator=torch.Generator().manual_seed(seed))
        new = model.generate(
            latents[:, :, :4], text, negative, noise, guidance_scale=model.guidance_scale
        )
        both = torch.cat([latents, torch.cat([latents[:, :, :4], new], dim=2)])
        decoded = model.decode(both).transpose(1, 2)  # (2, 29, 3, H, W)
        rows += [in_a_row(x) for x in (frames, *decoded)]
        rows.append(torch.ones_like(rows[-1][:, :4]))
    sheet = (torch.cat(rows, dim=1).permute(1, 2, 0) * 255).round().byte()
    iio.imwrite(path, sheet.numpy())


def in_a_row(frames):
    """Every fourth of the first 13 frames, a white line, every third after: (3, H, W)."""
    line = torch.ones(3, frames.shape[2], 4)
    return torch.cat([*frames[:13:4], line, *frames[13::3]], dim=2)
