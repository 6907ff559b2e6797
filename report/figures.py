"""Figures of a comparison as SVG text, in colours that read on light and on dark."""

import io
import itertools
import re
from collections import defaultdict

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from report.metrics import gain_label
from report.statistics import clustered_interval
from runs.names import printable

INK = "#7f7f80"  # becomes the text's colour in the page
STYLE = {
    "svg.hashsalt": "adasteer",  # the same figure is the same text
    "svg.fonttype": "none", "axes.axisbelow": True, "font.size": 9, "text.parse_math": False,
    "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.alpha": 0.25, "text.color": INK, "axes.edgecolor": INK,
    "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "grid.color": INK,
    "legend.frameon": False, "figure.facecolor": "none", "axes.facecolor": "none",
    "savefig.facecolor": "none",
    **{f"boxplot.{part}props.color": INK for part in ("box", "whisker", "cap")},
}  # fmt: skip
matplotlib.rcParams.update(STYLE)
COLOURS = ["#4c8fd6", "#e0803a", "#45a565", "#c65353", "#9a77c9", "#a5744f", "#d678b4", "#8a8f3c"]
LONGEST = 60  # characters of a name
ACROSS = 4  # panels in a row
NARROWEST = 55  # pixels an inch: what is narrower cannot be read, a narrow window scrolls
MANY = 30  # videos: from here on no bars with names below them


def drawing(width=6.4, height=3.2, panels=1, **keywords):
    figure = Figure((width, height), layout="constrained")
    return figure, figure.subplots(1, panels, squeeze=False, **keywords)[0]


def as_svg(figure):
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    narrowest = round(NARROWEST * figure.get_size_inches()[0])
    svg = svg.replace("<svg", f'<svg style="min-width: {narrowest}px"', 1)
    return svg.replace(INK, "currentColor")


def label(text):
    """Text that others wrote, short and without characters that no figure shows."""
    shown = printable(text)
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 3]}..."


def error_bar(mean, low, high):
    """None without an interval."""
    return None if low is None else [[max(0.0, mean - low)], [max(0.0, high - mean)]]


def colour(index):
    return COLOURS[index % len(COLOURS)]


def sorted_gains(comparison, metric):
    """A bar for each video, sorted, a panel for each method with a scale of its own; None where no
    video has the score."""
    videos = comparison.scored(metric)
    if not videos or not comparison.methods:
        return None
    count = len(comparison.methods)
    figure, axes = drawing(min(3.4 * count, 14), 3, count)
    for i, (axis, method) in enumerate(zip(axes, comparison.methods, strict=False)):
        gains = comparison.gains(method, metric, videos)
        order = np.argsort(gains)
        if few := len(videos) < MANY:
            axis.bar(range(len(videos)), gains[order], color=colour(i))
        else:  # one outline, drawn in a fraction of the time
            axis.fill_between(range(len(videos)), gains[order], step="mid", color=colour(i), lw=0)
        names = [label(videos[j]) for j in order] if few else []
        axis.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
        axis.set_title(label(method.name), fontsize=9)
    axes[0].set_ylabel(gain_label(comparison.metrics[metric]))
    return as_svg(figure)


def gains_by_category(comparison, metric):
    """Box plots; None where the manifest has no categories."""
    videos = comparison.scored(metric)
    if not videos or not comparison.methods:
        return None
    categories = defaultdict(list)
    for i, video in enumerate(videos):
        categories[comparison.baseline.record(video)["columns"].get("category") or ""].append(i)
    if len(categories) < 2:
        return None
    names, count = sorted(categories), len(comparison.methods)
    figure, (axis,) = drawing(max(6.4, 0.25 * len(names) * count), 3.4)
    for i, method in enumerate(comparison.methods):
        gains = comparison.gains(method, metric, videos)
        places = [j * (count + 1) + i for j in range(len(names))]
        axis.boxplot(
            [gains[categories[name]] for name in names], positions=places, widths=0.7,
            flierprops={"markersize": 2}, **{
                f"{part}props": {"color": colour(i)}
                for part in ("box", "median", "whisker", "cap")
            },
        )  # fmt: skip
        axis.plot([], color=colour(i), label=label(method.name))
    middle = [j * (count + 1) + (count - 1) / 2 for j in range(len(names))]
    axis.set_xticks(middle, map(label, names), rotation=90, fontsize=7)
    axis.set_ylabel(gain_label(comparison.metrics[metric]))
    axis.legend()
    return as_svg(figure)


def gain_against(comparison, metric):
    """Gain of every video against motion (of the conditioning frames), caption length, the
    baseline's score and values per parameter; what is the same for all videos is left out."""
    videos = comparison.scored(metric)
    features = features_of(comparison, metric, videos)
    if not features:
        return None
    figure, axes = drawing(min(3.2 * len(features) + 0.6, 11), 2.8, len(features), sharey=True)
    for axis, (name, values) in zip(axes, features.items(), strict=True):
        for i, (method, x) in enumerate(zip(comparison.methods, values, strict=True)):
            gains = comparison.gains(method, metric, videos)
            axis.plot(x, gains, ".", color=colour(i), alpha=0.6, label=label(method.name))
        axis.axhline(0, color=INK, lw=1)
        axis.set_xlabel(name)
        axis.locator_params(axis="x", nbins=4)
    axes[0].set_ylabel(gain_label(comparison.metrics[metric]))
    axes[0].legend()
    return as_svg(figure)


def features_of(comparison, metric, videos):
    """{name: (methods, videos)} of what differs between the videos or the methods."""
    records = [comparison.baseline.record(video) for video in videos]
    found = {
        "mean change between given frames": [r.get("cond_motion", np.nan) for r in records],
        "words in the caption": [len(r["caption"].split()) for r in records],
        f"{metric} of the baseline": [r[metric] for r in records],
    }
    found = {name: [x] * len(comparison.methods) for name, x in found.items()}
    found["log10 of values per parameter"] = [
        [values_per_parameter(method.record(video)) for video in videos]
        for method in comparison.methods
    ]
    return {name: x for name, x in found.items() if varies(np.ravel(x))}


def varies(values):
    return len(np.unique(values[np.isfinite(values)])) > 1


def values_per_parameter(record):
    values = record.get("target_values") or np.nan
    return np.log10(values / max(1, record["adapted_parameters"]))


def quality_against_cost(comparison, metric):
    """Mean gain and its interval against adaptation time; ringed: no other is better for less."""
    videos = comparison.scored(metric)
    if not videos or not comparison.methods:
        return None
    sources = comparison.sources(videos)
    figure, (axis,) = drawing()
    points = []
    for i, method in enumerate(comparison.methods):
        mean, low, high = clustered_interval(comparison.gains(method, metric, videos), sources)
        seconds = method.mean_of("adapt_seconds", videos)
        points.append((seconds, mean))
        bar = error_bar(mean, low, high)
        axis.errorbar(seconds, mean, bar, fmt="o", color=colour(i), label=label(method.name))
    for seconds, mean in pareto([(0.0, 0.0), *points]):
        axis.plot(seconds, mean, "o", ms=12, mfc="none", color=INK)
    axis.axhline(0, color=INK, lw=1)
    gain = gain_label(comparison.metrics[metric])
    axis.set(xlabel="adaptation, seconds a video", ylabel=gain)
    axis.legend()
    return as_svg(figure)


def one_against_other(comparison, across="future_loss", up="psnr_db"):
    """Gain in one metric against that in another, a point a video, a panel a method; in the corners
    how many videos gain in which. None where no video has both."""
    videos = [v for v in comparison.scored(across) if v in set(comparison.scored(up))]
    if not videos or not comparison.methods:
        return None
    figure, axes = grid(len(comparison.methods))
    for i, (axis, method) in enumerate(zip(axes, comparison.methods, strict=False)):
        x, y = (comparison.gains(method, metric, videos) for metric in (across, up))
        axis.plot(x, y, ".", color=colour(i), alpha=0.7)
        axis.axhline(0, color=INK, lw=1)
        axis.axvline(0, color=INK, lw=1)
        axis.margins(0.15, 0.3)  # room for the corners
        words = {(1, 1): "both better", (1, 0): f"{across} only", (0, 1): f"{up} only"}
        for right, top in itertools.product((1, 0), repeat=2):
            count = int((((x > 0) == right) & ((y > 0) == top)).sum())
            axis.text(
                *(0.98 if right else 0.02, 0.98 if top else 0.02),
                f"{count} {words.get((right, top), 'neither')}", transform=axis.transAxes, size=8,
                ha="right" if right else "left", va="top" if top else "bottom",
            )  # fmt: skip
        axis.set_title(label(method.name), fontsize=9)
    figure.supxlabel(gain_label(comparison.metrics[across]), fontsize=9)
    figure.supylabel(gain_label(comparison.metrics[up]), fontsize=9)
    return as_svg(figure)


def grid(count):
    """Axes with scales of their own, at most ACROSS beside each other."""
    rows, columns = -(-count // ACROSS), min(count, ACROSS)
    size = (max(4.4, 3.4 * columns), 3.2 * rows)
    figure = Figure(size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[count:]:
        axis.remove()
    return figure, axes[:count]


def pareto(points):
    """Of (cost, quality) those that none beats in both."""
    return [p for p in points if not any(q[0] <= p[0] and q[1] >= p[1] and q != p for q in points)]
