"""Curves of a comparison: losses over the steps of adaptation, scores over frames and noise."""

from collections import defaultdict
from dataclasses import replace

import numpy as np

from common.future import SIGMAS
from report.figures import INK, as_svg, colour, drawing, label
from report.metrics import gain_label
from report.statistics import clustered_band

PANELS = {  # title by kind of loss
    "losses": "draws of each update (held in)",
    "anchor_losses": "held-out latents, fixed draws",
    "future_losses": "true future",
}


def learning_curves(comparison):
    """Mean losses over the steps, a panel for each kind that was measured; dots are where early
    stopping stopped. None without any."""
    found = {kind: [] for kind in PANELS}
    for method in comparison.methods:
        records = [run.done[video] for run in method.runs for video in comparison.videos]
        for kind, curves in found.items():
            curves.append(by_step(curves_of(records, kind)))
    found = {kind: curves for kind, curves in found.items() if any(curves)}
    if not found:
        return None
    figure, axes = drawing(3.4 * len(found) + 1, 3.2, len(found))
    for axis, (kind, curves) in zip(axes, found.items(), strict=True):
        for i, (method, values) in enumerate(zip(comparison.methods, curves, strict=True)):
            plot_means(axis, values, colour(i), method)
            if kind != "losses":
                for step in stops(comparison, method) & values.keys():
                    axis.plot(step, np.mean(values[step]), "o", color=colour(i))
        title = PANELS[kind] if comparison.of_videos else "frames adapted to"
        axis.set(xlabel="step", title=title)
        whole_numbers(axis)
    axes[0].set_ylabel("loss, mean over videos")
    axes[0].legend()
    return as_svg(figure)


def curves_of(records, kind):
    """Of every video. One that early stopping stopped goes on with the loss of what was kept: else
    the mean would jump to that of the others. Not on the draws of updates, which end there."""
    curves = [curve(record, kind) for record in records]
    steps = sorted({step for points in curves for step, _ in points})
    for record, points in zip(records, curves, strict=True):
        if points and record.get("stop_step") is not None and kind != "losses":
            checked = [loss for _, loss in points if loss is not None]
            kept = record["future_loss"] if kind == "future_losses" else min(checked, default=None)
            points += [[step, kept] for step in steps if step > points[-1][0]]
    return curves


def curve(record, kind):
    """[step, loss] of each time that it was measured; that of the true future begins at step 0."""
    if kind == "losses":
        return list(enumerate(record["losses"], 1))
    traced = record.get(kind) or []
    if kind == "future_losses" and traced:
        return [[0, record["future_loss_before"]], *traced]
    return list(traced)


def stops(comparison, method):
    """The steps at which early stopping stopped."""
    records = [run.done[video] for run in method.runs for video in comparison.videos]
    return {record.get("stop_step") for record in records}


def by_step(curves):
    """Values by step over all curves of (step, value or None)."""
    values = defaultdict(list)
    for points in curves:
        for step, value in points:
            values[step] += [] if value is None else [value]
    return {step: found for step, found in values.items() if found}


def plot_means(axis, values, color, method):
    if values:
        steps = sorted(values)
        means = [np.mean(values[step]) for step in steps]
        marker = "." if len(steps) < 9 else None
        axis.plot(steps, means, color=color, label=label(method.name), marker=marker)


def by_frame(comparison, metric):
    """How the score falls with the horizon; None where no run has it per frame."""
    key = f"{metric}_per_frame"
    figure, (axis,) = drawing()
    for i, method in enumerate([comparison.baseline, *comparison.methods]):
        records = [run.done[video] for run in method.runs for video in comparison.videos]
        frames = by_step(enumerate(r.get(key) or [], 1) for r in records)
        plot_means(axis, frames, INK if i == 0 else colour(i - 1), method)
    if not axis.lines:
        return None
    frame = "generated frame" if comparison.of_videos else "predicted frame"
    axis.set(xlabel=frame, ylabel=metric)
    whole_numbers(axis)
    axis.legend()
    return as_svg(figure)


def gains_by_frame(comparison, metric):
    """Mean gain of each generated frame over the baseline's with its band over sources; controls
    dashed and without. None where no run has the score by frame."""
    if metric not in comparison.metrics or not comparison.of_videos:
        return None
    sign = 1 if comparison.metrics[metric].better == "higher" else -1
    key = f"{metric}_per_frame"
    gains = gains_of(comparison, key, lambda before, after: sign * (after - before))
    if not gains:
        return None
    figure, (axis,) = drawing()
    plot_gains(axis, comparison, gains)
    axis.set(xlabel="generated frame", ylabel=f"gain of a frame, {metric}")
    whole_numbers(axis)
    axis.legend()
    return as_svg(figure)


PARTS = {"latent": "latent frame after the given ones", "sigma": "noise level sigma"}


def parts_of_the_future(comparison):
    """Relative gain in the mean loss on the true future by latent frame and by noise level, with
    its band over sources, a panel for each that was measured; None without any."""
    comparison = replace(comparison, videos=comparison.scored("future_loss"))
    found = {part: gains_of(comparison, f"future_loss_per_{part}", share) for part in PARTS}
    found = {part: gains for part, gains in found.items() if gains}
    if not found:
        return None
    figure, axes = drawing(4 * len(found), 3.2, len(found), sharey=True)
    for axis, (part, gains) in zip(axes, found.items(), strict=True):
        plot_gains(axis, comparison, gains, SIGMAS if part == "sigma" else None, marker=".")
        axis.set_xlabel(PARTS[part])
        if part == "latent":
            whole_numbers(axis)
    axes[0].set_ylabel(gain_label(comparison.metrics["future_loss"]))
    axes[0].legend()
    return as_svg(figure)


def gains_of(comparison, key, gain):
    """{place of a method: (videos, places)}: gain(before, after) of the records' lists `key`, of
    the methods that have any."""
    before, found = by_place(comparison.baseline, key, comparison.videos), {}
    for i, method in enumerate(comparison.methods):
        after = by_place(method, key, comparison.videos)
        count = min(before.shape[1], after.shape[1])
        gains = gain(before[:, :count], after[:, :count])
        if np.isfinite(gains).any():
            found[i] = gains
    return found


def by_place(method, key, videos):
    """(videos, places) of a list of each record, means over the seeds; NaN where there is none."""
    lists = [[run.done[video].get(key) or [] for video in videos] for run in method.runs]
    longest = max((len(found) for each in lists for found in each), default=0)
    padded = [[[*found, *[None] * (longest - len(found))] for found in each] for each in lists]
    return np.array(padded, dtype=float).reshape(len(lists), len(videos), longest).mean(axis=0)


def share(before, after):
    """Gain in per cent of the mean before; lower is better."""
    there = np.isfinite(after)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(there, before, 0.0).sum(axis=0) / there.sum(axis=0)
        return 100 * (before - after) / mean


def plot_gains(axis, comparison, gains, places=None, **style):
    """Means and bands over sources of what gains_of gave; places: from 1 if not given."""
    sources = comparison.sources(comparison.videos)
    for i, values in gains.items():
        measured = np.isfinite(values).any(axis=0)
        at = np.array(places or range(1, len(measured) + 1))[: len(measured)][measured]
        mean, low, high = clustered_band(values[:, measured], sources)
        method = comparison.methods[i]
        control = method.name in comparison.controls
        line = {"ls": "--", "lw": 1} if control else {"lw": 1.5}
        axis.plot(at, mean, color=colour(i), label=label(method.name), **line, **style)
        if low is not None and not control:
            axis.fill_between(at, low, high, color=colour(i), alpha=0.2, lw=0)
    axis.axhline(0, color=INK, lw=1)


def whole_numbers(axis):
    axis.xaxis.get_major_locator().set_params(integer=True)
