"""Gain over the flags that a sweep varies: a line for one, a heat map for two."""

import numpy as np

from report.figures import as_svg, colour, drawing
from report.statistics import clustered_interval


def swept_figures(comparison, rows, metric):
    """(title, SVG) for every set of flags that rows of the sweep vary together."""
    over = {row["name"]: row["over"] for row in rows if row["over"]}
    sets = {}
    for method in comparison.methods:
        if method.name in over:
            sets.setdefault(series_of(method.name, over[method.name]), []).append(method)
    videos = comparison.scored(metric)
    sources = [comparison.baseline.record(video)["source"] for video in videos]
    found = []
    for (_, *keys), methods in sets.items():
        points = {}
        for method in methods:
            values = tuple(str(over[method.name][key]) for key in keys)
            points[values] = clustered_interval(comparison.gains(method, metric, videos), sources)
        if len(points) > 1:
            draw = line if len(keys) == 1 else heat_map
            found.append((" and ".join(keys), draw(keys, points, metric)))
    return found


def series_of(name, values):
    """The row's name with the values taken out, and the flags: rows of one template share it."""
    for key, value in values.items():
        name = name.replace(str(value), f"{{{key}}}", 1)
    return name, *values


def line(keys, points, metric):
    figure, (axis,) = drawing()
    labels = [values[0] for values in points]
    for x, (mean, low, high) in enumerate(points.values()):
        errors = None if low is None else [[mean - low], [high - mean]]
        axis.errorbar(x, mean, errors, fmt="o-", color=colour(0))
    axis.plot(range(len(points)), [mean for mean, *_ in points.values()], color=colour(0), lw=1)
    axis.set_xticks(range(len(labels)), labels)
    axis.axhline(0, color="#7f7f80", lw=1)
    axis.set(xlabel=keys[0], ylabel=f"gain, {metric}")
    return as_svg(figure)


def heat_map(keys, points, metric):
    """The first two flags as rows and columns, means of any others written in them."""
    across = list(dict.fromkeys(values[1] for values in points))
    down = list(dict.fromkeys(values[0] for values in points))
    grid = np.full((len(down), len(across)), np.nan)
    for values, (mean, *_) in points.items():
        grid[down.index(values[0]), across.index(values[1])] = mean
    figure, (axis,) = drawing(1.6 + 0.9 * len(across), 1.2 + 0.5 * len(down))
    limit = np.nanmax(np.abs(grid)) or 1.0
    axis.imshow(grid, cmap="coolwarm", vmin=-limit, vmax=limit, aspect="auto")
    for (i, j), mean in np.ndenumerate(grid):
        if np.isfinite(mean):
            axis.text(j, i, f"{mean:+.2f}", ha="center", va="center", color="black", fontsize=8)
    axis.set_xticks(range(len(across)), across)
    axis.set_yticks(range(len(down)), down)
    axis.set(xlabel=keys[1], ylabel=keys[0], title=f"gain, {metric}")
    axis.grid(False)
    return as_svg(figure)
