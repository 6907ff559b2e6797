"""What was learned: norms of the adapted parameters and how alike they are between videos."""

import math

import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter
from safetensors import SafetensorError
from safetensors.torch import load_file

from report.figures import as_svg, colour, drawing, label

ADAPTERS_READ = 100  # of each run at most


def moved(record):
    """Distance from the start over all parameters."""
    return math.hypot(*record["distances"].values())


def distances_figure(comparison):
    """How far the parameters went from their start, on every video."""
    figure, (axis,) = drawing()
    found = [[moved(m.record(v)) for v in comparison.videos] for m in comparison.methods]
    if not found:
        return None
    boxes = axis.boxplot(found, tick_labels=[label(m.name) for m in comparison.methods])
    for i, line in enumerate(boxes["medians"]):
        line.set_color(colour(i))
    axis.set_ylabel("distance from the start")
    axis.tick_params(axis="x", rotation=20)
    readable_log(axis, [value for values in found for value in values])
    return as_svg(figure)


def readable_log(axis, values):
    """A logarithmic scale with plain numbers, where the values span enough for one."""
    if min(values) <= 0 or max(values) < 3 * min(values):
        return
    axis.set_yscale("log")
    span = max(values) / min(values)
    subs = range(1, 10) if span < 10 else (1, 2, 5) if span < 1000 else (1,)
    axis.yaxis.set_major_locator(LogLocator(subs=subs))
    axis.yaxis.set_major_formatter("{x:g}")  # matplotlib's own are TeX, which is not parsed here
    axis.yaxis.set_minor_formatter(NullFormatter())


def cosines(run, videos):
    """(videos, videos) cosines between what was learned on different videos; None without
    --save-adapter, and where parameters do not start at zero: all of those point the same way."""
    vectors = []
    for video in videos[:ADAPTERS_READ]:
        path, record = run.path / "videos" / f"{video}.safetensors", run.done[video]
        if record.get("norms") != record["distances"] or not path.is_file():
            return None
        vectors.append(as_vector(path))
    if len(vectors) < 2 or any(v is None or len(v) != len(vectors[0]) for v in vectors):
        return None
    lengths = [max(np.linalg.norm(v), 1e-30) for v in vectors]
    units = np.stack([v / length for v, length in zip(vectors, lengths, strict=True)])
    return units @ units.T


def as_vector(path):
    """All of an adapter's numbers, or None where it is not a whole file of them."""
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, KeyError, ValueError):
        return None
    parts = [tensors[key].float().numpy().ravel() for key in sorted(tensors)]
    vector = np.concatenate([np.zeros(0, np.float32), *parts])
    return vector if np.isfinite(vector).all() else None


def cosine_figure(comparison):
    """A matrix for each method that kept its adapters; the title has the mean over pairs."""
    found = [(m.name, cosines(m.runs[0], comparison.videos)) for m in comparison.methods]
    found = [(name, matrix) for name, matrix in found if matrix is not None]
    if not found:
        return None
    figure, axes = drawing(min(3.4 * len(found) + 0.6, 14), 3.2, len(found))
    for axis, (name, matrix) in zip(axes, found, strict=True):
        pairs = matrix[~np.eye(len(matrix), dtype=bool)]
        image = axis.imshow(matrix, vmin=-1, vmax=1, cmap="coolwarm")
        axis.set_title(f"{label(name)}: mean {pairs.mean():+.2f}", fontsize=9)
        axis.grid(False)
    figure.colorbar(image, ax=list(axes), label="cosine")
    return as_svg(figure)
