"""Which adaptation makes nano predict the true future better? The loss on it, without sampling.

    python -m benchmarks.future_study --videos ../shared/clips/metadata.csv --report nano/FUTURE.md

Each method's learning rate is chosen on the clips of a quarter of the sources and reported on the
rest; then steps, draws, seeds and the wrong sign of what was chosen. One process a core; a finished
row of a clip is kept in --work, so the same command goes on where it was stopped.
"""

import argparse
import contextlib
import functools
import hashlib
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import common
import runs
from adasteer import AdaSteer
from common.clip import Window, load_clip
from common.data import sha256
from common.errors import UsageError
from common.loading import NANO
from delta_c import DeltaC
from film_tta import FiLM
from full_tta import FullTTA
from last_layer_tta import LastLayer
from lora_tta import LoRA
from norm_tta import NormTTA
from prepare.workers import start_workers, submit
from report.statistics import clustered_interval
from runs.identity import fingerprint, source_sha256
from runs.lists import list_videos
from runs.results import read_json, write_json

STEPS, DRAWS = "--steps 20", "--draws 4 --context varying"
GRID = {  # method, its flags, and the rates to choose from
    "AdaSteer, 1 group": (AdaSteer, "--groups 1", ("2e-4", "5e-4", "2e-3", "5e-3", "2e-2")),
    "AdaSteer, 4 groups": (AdaSteer, "--groups 4", ("2e-4", "5e-4", "2e-3", "5e-3", "2e-2")),
    "AdaSteer, 12 groups": (AdaSteer, "--groups 12", ("2e-4", "5e-4", "2e-3", "5e-3", "2e-2")),
    "FiLM, 12 groups": (FiLM, "--groups 12", ("1e-4", "3e-4", "1e-3", "3e-3")),
    "norms": (NormTTA, "", ("1e-3", "3e-3", "1e-2", "3e-2")),
    "LoRA, rank 1": (LoRA, "", ("1e-4", "2e-4", "5e-4", "2e-3", "8e-3")),
    "Delta-C": (DeltaC, "", ("2e-4", "1e-3", "5e-3", "2e-2")),
    "last layer": (LastLayer, "", ("3e-4", "1e-3", "3e-3", "1e-2", "3e-2")),
    "all weights": (FullTTA, "", ("3e-6", "1e-5", "3e-5", "1e-4", "3e-4")),
}
VARIED = ("AdaSteer, 12 groups", "LoRA, rank 1", "all weights")
QUARTER = 0.25  # of the sources, on which rates are chosen


@dataclass(frozen=True)
class Row:
    method: type
    flags: str
    flipped: bool = False

    @property
    def name(self):
        return f"{self.method.__name__} {self.flags}" + (", sign flipped" if self.flipped else "")

    def arguments(self, shared):
        return runs.parse_args(__doc__, self.method, [*shlex.split(self.flags), *shared])


def row_of(name, rate, manner=None, flipped=False):
    method, flags, _ = GRID[name]
    usual = STEPS if method is LastLayer else f"{STEPS} {DRAWS}"  # it draws once, in its own way
    return Row(method, f"{flags} --lr {rate} {manner or usual}".strip(), flipped)


def choosing(sources):
    """The sources on which rates are chosen: the first quarter by their SHA-256."""
    ranked = sorted(set(sources), key=lambda source: hashlib.sha256(source.encode()).digest())
    return set(ranked[: max(1, round(QUARTER * len(ranked)))])


def reported_rows(chosen):
    """(name, row) of the table; chosen: the rate of each method."""
    rows = [(name, row_of(name, rate)) for name, rate in chosen.items()]
    rows.append(("all weights, the rate that PSNR prefers", row_of("all weights", "3e-4")))
    for name in VARIED:
        rate = chosen[name]
        for steps in (5, 50):
            row = row_of(name, rate, f"--steps {steps} {DRAWS}")
            rows.append((f"{name}, {steps} steps", row))
        rows.append((f"{name}, 1 draw, fixed context", row_of(name, rate, STEPS)))
    for name in ("AdaSteer, 12 groups", "all weights"):
        flipped = row_of(name, chosen[name], STEPS, flipped=True)
        rows.append((f"{name}, 1 draw, sign flipped", flipped))
    for seed in (1, 2, 3):
        for name in ("AdaSteer, 12 groups", "all weights"):
            row = row_of(name, chosen[name], f"{STEPS} --seed {seed}")
            rows.append((f"{name}, 1 draw, seed {seed}", row))
    return rows


@contextlib.contextmanager
def sign_flipped(model, really):
    """The mistake of the first attempt: adaptation against the negated velocity."""
    model.network_sign *= -1 if really else 1
    try:
        yield
    finally:
        model.network_sign *= -1 if really else 1


def measure(row, args, model, video, texts):
    clip = load_clip(
        model, video, Window.of(args, model.geometry), model.frame_size, *texts, args.seed
    )
    method = row.method(model, clip, args)
    with method.attached():
        # the loss on the future is the right sign's, whatever is adapted to
        before = common.future.Future(model, clip, args)
        with sign_flipped(model, row.flipped):
            record = common.adapt(model, method, clip, without_future(args))
        found = before.record(updated=True)
    return found | {name: record[name] for name in ("losses", "diverged")}


def without_future(args):
    return argparse.Namespace(**vars(args) | {"future_draws": 0})


@functools.cache  # once a process
def load(checkpoint):
    torch.set_num_threads(1)  # there is one process a core
    flags = ["--checkpoint", str(checkpoint), "--device", "cpu", "--checkpointing", "none"]
    return common.load_model(Row(AdaSteer, "--steps 0").arguments(flags))


def study_clip(video, checkpoint, rows, path):
    """Runs the rows that the clip's file does not hold yet."""
    found = read_json(path)
    made_of = {"source_sha256": source_sha256(), "video_sha256": sha256(video.path)}
    made_of["caption"] = video.caption
    if found is None or any(found.get(name) != value for name, value in made_of.items()):
        found = made_of | {"rows": {}}
    model = load(checkpoint)
    texts = list(model.embed_each([video.caption, ""]))
    for row in rows:
        args = row.arguments(["--no-generate", "--checkpoint", str(checkpoint)])
        script = {"script_sha256": args.script_sha256}
        if not script.items() <= found["rows"].get(row.name, {}).items():
            found["rows"][row.name] = measure(row, args, model, video, texts) | script
            write_json(path, found)
    return found["rows"]


def changes(found, row):
    """Relative change of the loss on the future in per cent, a clip each; below zero is better."""
    pairs = [(f[row.name]["future_loss_before"], f[row.name]["future_loss"]) for f in found]
    return np.array([100 * (after / before - 1) for before, after in pairs])


def table_line(name, row, found, sources, args):
    change = changes(found, row)
    mean, low, high = clustered_interval(change, sources)
    script = sys.modules[row.method.__module__].__file__
    command = f"python {Path(script).name} {row.flags} --no-generate --videos {args.videos}"
    if args.checkpoint != NANO:
        command += f" --checkpoint {args.checkpoint}"
    shown = "sign flipped in Python" if row.flipped else f"`{command}`"
    interval = "too few sources" if low is None else f"{low:+.2f} to {high:+.2f}"
    return f"| {name} | {mean:+.2f} % | {interval} | {100 * (change < 0).mean():.0f} % | {shown} |"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=Path, required=True, help="manifest of real clips")
    parser.add_argument("--checkpoint", type=Path, default=NANO)
    parser.add_argument("--limit", type=int, help="the first N clips only")
    parser.add_argument("--work", type=Path, default=Path("nano/work/future_study"))
    parser.add_argument("--report", type=Path, help="Markdown file to write; else standard output")
    args = parser.parse_args()
    videos = list_videos(args.videos)[0][: args.limit]
    folder = args.work / fingerprint(args.checkpoint)[:12]
    folder.mkdir(parents=True, exist_ok=True)
    first = choosing(video.source for video in videos)
    few = [video for video in videos if video.source in first]
    rest = [video for video in videos if video.source not in first]
    if not rest:
        raise UsageError(f"--videos {args.videos}: has one source; rates are chosen on others")

    def run(pool, chosen, rows, title):
        jobs = [
            submit(pool, study_clip, v, args.checkpoint, rows, folder / f"{v.id}.json")
            for v in chosen
        ]
        return [job.result() for job in tqdm(jobs, title, unit="clip")]

    with start_workers() as pool:
        grid = {name: [row_of(name, r) for r in rates] for name, (_, _, rates) in GRID.items()}
        tried = run(pool, few, [row for rows in grid.values() for row in rows], "choosing")
        means = {n: [changes(tried, row).mean() for row in rows] for n, rows in grid.items()}
        chosen = {n: GRID[n][2][int(np.argmin(means[n]))] for n in GRID}
        rows = reported_rows(chosen)
        found = run(pool, rest, [row for _, row in rows], "reporting")
    text = report(args, few, rest, means, rows, found)
    print(text) if args.report is None else args.report.write_text(text, encoding="utf-8")
    return 0


def report(args, few, rest, means, rows, found):
    sources = [video.source for video in rest]
    lines = [
        "# Does adaptation make nano predict the true future better?",
        "",
        "Relative change of the flow-matching loss on the latents that really followed, given the "
        "conditioning latents; below zero is better. Intervals are 95 %, BCa bootstrap "
        f"over sources. Rates were chosen on {len(few)} clips of {len({v.source for v in few})} "
        f"sources, the table is over the other {len(rest)} clips of {len(set(sources))}.",
        "",
        f"    python -m benchmarks.future_study {shlex.join(sys.argv[1:])}",
        "",
        "| method | change | 95 % interval | clips improved | command |",
        "|---|---|---|---|---|",
        *(table_line(name, row, found, sources, args) for name, row in rows),
        "",
        "## The choice of rates",
        "",
        "| method | mean change at each rate |",
        "|---|---|",
    ]
    for name, values in means.items():
        shown = ", ".join(f"{r}: {v:+.2f} %" for r, v in zip(GRID[name][2], values, strict=True))
        lines.append(f"| {name} | {shown} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    runs.run_script(main)
