"""Does early stopping on held-out latents stop where the loss on the true future is least?

    python full_tta.py --steps 50 --draws 4 --context varying --stop-every 5 --patience 100 \\
        --trace-future 5 --no-generate --videos LIST --out results/full
    python -m benchmarks.stopping_study results/full

Takes runs that measured both losses after the same steps and never ran out of patience. Prints the
relative change of the loss on the true future, with 95 % intervals over sources, at the step that
the held-out latents choose, at the last one, and at each video's best one, known afterwards only.
"""

from runs.exits import run_script  # first: signals, and how torch's threads wait

# isort: split
import argparse
from pathlib import Path
from statistics import median

import numpy as np

from common.errors import UsageError
from report.statistics import clustered_interval
from runs.results import read_record


def curves(record):
    """{step: loss} on the held-out latents and on the true future, step 0 included."""
    held_out, future = (dict(record[f"{kind}_losses"]) for kind in ("anchor", "future"))
    future[0] = record["future_loss_before"]
    if held_out.keys() != future.keys() or len(future) < 2:
        raise UsageError(
            f"{record['id']}: needs --stop-every N --trace-future N and enough --patience"
        )
    return held_out, future


def least(curve):
    return min(curve, key=lambda step: (curve[step], step))


def summary(path):
    """Lines on one run."""
    records = [read_record(p) for p in sorted((path / "videos").glob("*.json"))]
    records = [r for r in records if r and r["status"] == "done" and not r["diverged"]]
    if not records:
        raise UsageError(f"{path}: holds no finished video")
    pairs = [curves(record) for record in records]
    chosen = [least(held_out) for held_out, _ in pairs]
    best = [least(future) for _, future in pairs]
    last = [max(future) for _, future in pairs]
    sources = [record["source"] for record in records]
    ways = (("held-out latents", chosen), ("last", last), ("best in hindsight", best))
    for name, steps in ways:
        both = zip(pairs, steps, strict=True)
        changes = np.array([100 * (curve[s] / curve[0] - 1) for (_, curve), s in both])
        mean, low, high = clustered_interval(changes, sources)
        interval = "too few sources" if low is None else f"{low:+.2f} to {high:+.2f}"
        worse = (changes > 0).mean()
        yield f"{name}: step {median(steps):g}, {mean:+.2f} % ({interval}), worse {worse:.0%}"
    near = sum(abs(a - b) <= 5 for a, b in zip(chosen, best, strict=True)) / len(best)
    yield f"within 5 steps of the best: {near:.0%} of {len(records)} videos"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs")
    for path in parser.parse_args().runs:
        print(path, *summary(path), sep="\n  ")
    return 0


if __name__ == "__main__":
    run_script(main)
