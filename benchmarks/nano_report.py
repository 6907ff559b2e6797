"""The study of nano as a Markdown page."""

import platform

import numpy as np
import torch

from report.statistics import clustered_interval
from report.table import interval

MOVING = 0.3  # of the manifest's column motion: from here on a clip counts as moving


def study_report(results, captions, rows, baseline, command):
    """results: (video, what its file holds) of every clip; captions: loss differences."""
    sources = [video.source for video, _ in results]
    psnr = {row: column(results, "rows", row.name, "psnr_db") for row in rows}
    return "\n".join(
        [
            "# What adaptation does to nano",
            "",
            f"{len(results)} clips of {len(set(sources))} sources, none seen in pretraining. "
            "Intervals are 95 %, BCa bootstrap over sources. PSNR in dB over the generated frames.",
            "",
            f"    {command}",
            "",
            f"torch {torch.__version__.split('+')[0]}, {platform.machine()} CPU, one process a "
            "core.",
            "",
            "## The model",
            "",
            *reference_table(results, captions, psnr[baseline]),
            "",
            "## Adaptation against its own baseline, same noise",
            "",
            "| method | PSNR | gain | 95 % interval | improved | loss first -> last | s / clip |",
            "|---|---|---|---|---|---|---|",
            *(method_line(results, row, psnr, baseline, sources) for row in rows),
            "",
        ]
    )


def column(results, *keys):
    values = []
    for _, found in results:
        for key in keys:
            found = found[key]
        values.append(found)
    return np.array(values)


def reference_table(results, captions, baseline):
    repeat, ceiling, loss, zero = (
        column(results, "references", name)
        for name in ("repeat_psnr_db", "reconstruction_psnr_db", "loss", "zero_loss")
    )
    moving = np.array([float(video.columns.get("motion") or 0) >= MOVING for video, _ in results])
    mean, low, high = clustered_interval(captions, range(len(captions)))
    lines = [
        ("reconstruction by the autoencoder", f"{ceiling.mean():.2f} dB"),
        ("loss / loss of predicting zero (sigma 0.25, 0.5, 0.75)", f"{(loss / zero).mean():.3f}"),
        ("baseline, all clips", f"{baseline.mean():.2f} dB"),
        ("repeating the last frame, all clips", f"{repeat.mean():.2f} dB"),
    ]
    if moving.any():
        n = f"{moving.sum()} clips with motion >= {MOVING}"
        lines += [
            (f"baseline, {n}", f"{baseline[moving].mean():.2f} dB"),
            (f"repeating the last frame, {n}", f"{repeat[moving].mean():.2f} dB"),
            (f"reconstruction, {n}", f"{ceiling[moving].mean():.2f} dB"),
        ]
    lines.append(
        (
            f"loss with the right caption minus with a wrong one, {len(captions)} unseen scenes",
            f"{mean:+.4f} ({interval(low, high)})",
        )
    )
    return ["| what | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in lines)]


def method_line(results, row, psnr, baseline, sources):
    gain = psnr[row] - psnr[baseline]
    mean, low, high = clustered_interval(gain, sources)
    kept = [found["rows"][row.name] for _, found in results]
    seconds = np.mean([k["adapt_seconds"] for k in kept])
    losses = [k["losses"] for k in kept if k["losses"] and None not in k["losses"]]
    first, last = (np.mean([x[i] for x in losses]) if losses else None for i in (0, -1))
    fell = "-" if first is None else f"{first:.3f} -> {last:.3f}"
    return (
        f"| {row.name} | {psnr[row].mean():.2f} | {mean:+.2f} | {interval(low, high)} "
        f"| {100 * (gain > 0).mean():.0f} % | {fell} | {seconds:.1f} |"
    )
