"""Gain over the flags that a sweep varies: a line for one, heat maps for more."""

import numpy as np

from report.figures import INK, as_svg, colour, drawing, error_bar, label
from report.metrics import gain_label
from report.statistics import clustered_interval
from runs.names import printable


def swept_figures(comparisons, rows, metric):
    """(title, SVG) for each row of the sweep file that became several, every point's gain over its
    own baseline."""
    points, metrics = {}, next(iter(comparisons.values())).metrics
    for comparison in comparisons.values():
        videos = comparison.scored(metric)
        sources = comparison.sources(videos)
        for method in comparison.methods:
            names = {run.name for run in method.runs}
            for row in rows:
                swept = row["over"] and not row.get("control_of")
                if videos and swept and printable(row["name"]) in names:
                    gain = clustered_interval(comparison.gains(method, metric, videos), sources)
                    values = {k: label(str(v)) for k, v in row["over"].items() if k != "seed"}
                    points.setdefault(row["template"], []).append((values, gain))
                    break  # the other rows of the method differ in the seed
    found = []
    for template, series in points.items():
        series = [(values, gain) for values, gain in series if values.keys() == series[0][0].keys()]
        keys = telling([values for values, _ in series])
        if keys:
            found.append((template, figure_of(keys, series, metrics[metric])))
    return found


def telling(values):
    """The keys that vary, without those that only follow an earlier one."""
    kept = []
    for key in values[0]:
        column = [v[key] for v in values]
        follows = any(
            len({(v[k], v[key]) for v in values}) == len({v[k] for v in values}) for k in kept
        )
        if len(set(column)) > 1 and not follows:
            kept.append(key)
    return kept


def figure_of(keys, series, metric):
    if len(keys) == 1:
        return line(keys[0], series, metric)
    panels = {}
    for values, gain in series:
        rest = ", ".join(f"{label(key)} {values[key]}" for key in keys[2:])
        panels.setdefault(rest, {})[values[keys[0]], values[keys[1]]] = gain
    return heat_maps(keys, panels, metric)


def line(key, series, metric):
    figure, (axis,) = drawing()
    for x, (_, (mean, low, high)) in enumerate(series):
        axis.errorbar(x, mean, error_bar(mean, low, high), fmt="o", color=colour(0))
    axis.plot([mean for _, (mean, *_) in series], color=colour(0), lw=1)
    axis.set_xticks(range(len(series)), [values[key] for values, _ in series])
    axis.axhline(0, color=INK, lw=1)
    axis.set(xlabel=label(key), ylabel=gain_label(metric))
    return as_svg(figure)


def told_mean(gain):
    """The mean of a gain whose interval excludes zero: what has a colour. NaN of the others."""
    mean, low, high = gain or (np.nan, None, None)
    return mean if low is not None and (low > 0 or high < 0) else np.nan


def heat_maps(keys, panels, metric):
    down, across = (
        list(dict.fromkeys(place[i] for gains in panels.values() for place in gains))
        for i in (0, 1)
    )
    size = (1.6 + 0.9 * len(across)) * len(panels), 1.4 + 0.5 * len(down)
    figure, axes = drawing(*size, len(panels))
    limit = 1.5 * max(abs(mean) for gains in panels.values() for mean, *_ in gains.values()) or 1.0
    for axis, (rest, gains) in zip(axes, panels.items(), strict=True):
        told = [[told_mean(gains.get((a, b))) for b in across] for a in down]
        axis.imshow(told, cmap="coolwarm_r", vmin=-limit, vmax=limit, aspect="auto")
        for (a, b), (mean, *_) in gains.items():
            i, j = down.index(a), across.index(b)
            ink = INK if np.isnan(told[i][j]) else "black"
            axis.text(j, i, f"{mean:+.2f}", ha="center", va="center", color=ink, size=8)
        axis.set_xticks(range(len(across)), across)
        axis.set_yticks(range(len(down)), down)
        axis.set(xlabel=label(keys[1]), ylabel=label(keys[0]), title=rest or gain_label(metric))
        axis.grid(False)
    return as_svg(figure)
