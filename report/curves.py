"""Curves of a comparison: losses over the steps of adaptation, scores over frames and noise."""

from collections import defaultdict

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
    videos, sign = comparison.videos, 1 if comparison.metrics[metric].better == "higher" else -1
    before, sources = frames_of(comparison.baseline, metric, videos), comparison.sources(videos)
    figure, (axis,) = drawing()
    for i, method in enumerate(comparison.methods):
        after = frames_of(method, metric, videos)
        count = min(before.shape[1], after.shape[1])
        gains = sign * (after[:, :count] - before[:, :count])
        measured = np.isfinite(gains).any(axis=0)
        places = np.arange(1, count + 1)[measured]
        if not len(places):
            continue
        mean, low, high = clustered_band(gains[:, measured], sources)
        control = method.name in comparison.controls
        style = {"color": colour(i), "ls": "--" if control else "-", "label": label(method.name)}
        axis.plot(places, mean, lw=1 if control else 1.5, **style)
        if low is not None and not control:
            axis.fill_between(places, low, high, color=colour(i), alpha=0.2, lw=0)
    if not axis.lines:
        return None
    axis.axhline(0, color=INK, lw=1)
    axis.set(xlabel="generated frame", ylabel=f"gain of a frame, {metric}")
    whole_numbers(axis)
    axis.legend()
    return as_svg(figure)


def frames_of(method, metric, videos):
    """(videos, frames) of a score by frame, means over the seeds; NaN where there is none."""
    key = f"{metric}_per_frame"
    lists = [[run.done[video].get(key) or [] for video in videos] for run in method.runs]
    longest = max(len(found) for each in lists for found in each)
    padded = [[[*found, *[None] * (longest - len(found))] for found in each] for each in lists]
    return np.array(padded, dtype=float).mean(axis=0)


PARTS = {"latent": "latent frame after the given ones", "sigma": "noise level sigma"}


def parts_of_the_future(comparison):
    """Relative gain in the mean loss on the true future by latent frame and by noise level, a panel
    for each that was measured; None without any."""
    videos = comparison.scored("future_loss")
    found = {part: gains_of_parts(comparison, part, videos) for part in PARTS if videos}
    found = {part: gains for part, gains in found.items() if any(gains)}
    if not found:
        return None
    figure, axes = drawing(4 * len(found), 3.2, len(found), sharey=True)
    for axis, (part, gains) in zip(axes, found.items(), strict=True):
        for i, (method, points) in enumerate(zip(comparison.methods, gains, strict=True)):
            places = list(points)
            values = list(points.values())
            axis.plot(places, values, ".-", color=colour(i), label=label(method.name))
        axis.axhline(0, color=INK, lw=1)
        axis.set_xlabel(PARTS[part])
        if part == "latent":
            whole_numbers(axis)
    axes[0].set_ylabel(gain_label(comparison.metrics["future_loss"]))
    axes[0].legend()
    return as_svg(figure)


def gains_of_parts(comparison, part, videos):
    """{place: gain in per cent} of each method."""
    before = means_of(comparison.baseline, part, videos)
    after = [means_of(method, part, videos) for method in comparison.methods]
    return [
        {
            x: 100 * (before[x] - means[x]) / before[x]
            for x in before
            if x in means and before[x] > 0
        }
        for means in after
    ]


def whole_numbers(axis):
    axis.xaxis.get_major_locator().set_params(integer=True)


def means_of(method, part, videos):
    """Mean losses by latent frame (from 1) or by sigma."""
    records = [run.done[video] for run in method.runs for video in videos]
    lists = [record.get(f"future_loss_per_{part}") or [] for record in records]
    places = SIGMAS if part == "sigma" else range(1, max(map(len, lists)) + 1)
    values = by_step(zip(places, found, strict=False) for found in lists)
    return {place: float(np.mean(found)) for place, found in values.items()}
