"""Paired comparison of runs with their baseline over the videos they share."""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from common.errors import UsageError
from common.identity import NEUTRAL
from common.results import METRICS
from report.runs import refuse_mismatch
from report.statistics import clustered_interval, holm, signed_rank_p, spread_over_seeds

LOWER_IS_BETTER = {"lpips", "flow_error_px", "warping_error"}
COMPARED = [name for name in METRICS if name != "truth_warping_error"]
REFERENCES = {
    "repeat_last": "(last frame repeated)", "reconstruction": "(real frames, autoencoder)"
}  # fmt: skip
WORST = 5  # videos named for each method


@dataclass(frozen=True)
class Method:
    """Runs that differ in the seed only; scores are means over those, per video."""

    name: str
    runs: list

    @property
    def seeds(self):
        return [run.arguments["seed"] for run in self.runs]

    def at(self, seeds):
        """Its runs at those seeds alone."""
        return replace(self, runs=[r for r in self.runs if r.arguments["seed"] in seeds])

    def scores(self, metric, videos):
        """(seeds, videos)."""
        return np.array([[run.done[video][metric] for video in videos] for run in self.runs])

    def mean_of(self, key, videos):
        return float(np.mean([[run.done[video][key] for video in videos] for run in self.runs]))

    def record(self, video):
        """Of the first seed."""
        return self.runs[0].done[video]


@dataclass(frozen=True)
class Comparison:
    baseline: Method
    methods: list  # without the baseline
    videos: list  # ids that every run has
    notes: list  # what is left out, and why

    @property
    def sources(self):
        return [self.baseline.record(video)["source"] for video in self.videos]

    def scored(self, metric):
        """The shared videos that have this score in every run."""
        runs = [run for method in [self.baseline, *self.methods] for run in method.runs]
        return [v for v in self.videos if all(r.done[v].get(metric) is not None for r in runs)]

    def differences(self, method, metric, videos):
        """(seeds, videos) over the baseline at the same seed; larger is better."""
        sign = -1 if metric in LOWER_IS_BETTER else 1
        baseline = self.baseline.at(method.seeds)
        return sign * (method.scores(metric, videos) - baseline.scores(metric, videos))

    def gains(self, method, metric, videos):
        """(videos,), means over the seeds."""
        return self.differences(method, metric, videos).mean(axis=0)


def compare(runs):
    """Raises UsageError where the runs cannot be compared."""
    methods = by_seed(runs)
    baselines = [m for m in methods if m.runs[0].is_baseline]
    if len(baselines) != 1:
        found = ", ".join(m.name for m in baselines) or "none"
        raise UsageError(
            f"one baseline (--steps 0) is needed to compare with, got {found}; of runs that "
            "generate otherwise make a comparison each"
        )
    baseline = begun(baselines[0])
    if not baseline.runs:
        raise UsageError(f"{baseline.name}: no video of the baseline is done yet")
    rest = [m for m in methods if m is not baselines[0]]
    paired = [begun(method).at(baseline.seeds) for method in rest]
    for method in [baseline, *paired]:
        for there, here in zip(baseline.at(method.seeds).runs, method.runs, strict=True):
            refuse_mismatch(there, here)
    notes = notes_on_seeds(rest, paired, baseline)
    kept = [method for method in paired if method.runs]
    if kept:
        baseline = baseline.at({seed for method in kept for seed in method.seeds})
    shared = set.intersection(*(set(r.done) for m in [baseline, *kept] for r in m.runs))
    if not shared:
        raise UsageError(f"no video is done in all of {', '.join(m.name for m in methods)}")
    return Comparison(baseline, kept, sorted(shared), notes_on(runs, shared) + notes)


def begun(method):
    """Its runs that have results."""
    return replace(method, runs=[run for run in method.runs if run.done])


def notes_on_seeds(methods, paired, baseline):
    """Which seeds are left out for want of a partner. Raises UsageError where no method has one."""
    notes = []
    for method, kept in zip(methods, paired, strict=True):
        seeds = begun(method).seeds
        if seeds and set(seeds) != set(baseline.seeds):
            notes.append(
                f"{method.name} has results of the seeds {seeds}, its baseline of "
                f"{baseline.seeds}; compared at {kept.seeds or 'none'}"
            )
    if notes and not any(kept.runs for kept in paired):
        raise UsageError("; ".join(notes))
    return notes


def by_seed(runs):
    """Methods in the order of the runs; runs that agree in all but the seed are one."""
    found, left_out = {}, NEUTRAL | {"seed"}
    if any("script" not in run.arguments for run in runs):  # of before it was recorded
        left_out |= {"script"}
    for run in runs:
        rest = {k: v for k, v in run.arguments.items() if k not in left_out}
        found.setdefault((run.config["method"], str(sorted(rest.items()))), []).append(run)
    methods = []
    for group in found.values():
        group = sorted(group, key=lambda run: run.arguments["seed"])
        if len({run.arguments["seed"] for run in group}) < len(group):
            names = " and ".join(str(run.path) for run in group)
            raise UsageError(f"{names} are the same run; give it once")
        methods.append(Method(name_of(group), group))
    return methods


def name_of(runs):
    """The run's name; of several seeds the one they share with * for the seed."""
    shared = {run.name.replace(str(run.arguments["seed"]), "*") for run in runs}
    return " ".join(r.name for r in runs) if len(runs) == 1 or len(shared) > 1 else shared.pop()


def notes_on(runs, shared):
    """What each run lacks, and how many adaptations diverged."""
    everything = set().union(*(run.done.keys() | run.skipped.keys() for run in runs))
    notes = [f"{len(shared)} of {len(everything)} videos are in every run and compared"]
    for run in runs:
        lacking = sorted(everything - run.done.keys())
        reasons = Counter(run.why_missing(video) for video in lacking)
        for reason, count in reasons.most_common():
            notes.append(f"{run.name} lacks {count} videos: {reason}")
        diverged = [video for video, record in run.done.items() if record["diverged"]]
        if diverged:
            named = ", ".join(sorted(diverged)[:5])
            notes.append(
                f"{run.name}: adaptation diverged on {len(diverged)} of {len(run.done)} videos, "
                f"which count with the state that was kept: {named}"
            )
        notes += [f"{run.name}: {path.name} is damaged and left out" for path in run.damaged]
    return notes


def table(comparison, metric):
    """One dict a method, the baseline first; p corrected over the methods. Empty where no video
    has this score."""
    videos = comparison.scored(metric)
    if not videos:
        return []
    sources = [comparison.baseline.record(video)["source"] for video in videos]
    gains = [comparison.gains(method, metric, videos) for method in comparison.methods]
    p_values = holm([signed_rank_p(gain, sources) for gain in gains])
    rows = [describe(comparison.baseline, metric, videos)]
    for method, gain, p in zip(comparison.methods, gains, p_values, strict=True):
        mean, low, high = clustered_interval(gain, sources)
        worst = [videos[i] for i in np.argsort(gain)[:WORST] if gain[i] < 0]
        rows.append(
            describe(method, metric, videos)
            | {
                "noise": spread_over_seeds(comparison.differences(method, metric, videos)),
                "gain": float(mean),
                "low": low,
                "high": high,
                "p": p,
                "improved": float((gain > 0).mean()),
                "worst": worst,
            }
        )
    return rows + references(comparison, metric, videos)


def references(comparison, metric, videos):
    """Rows of what every table is read against: the last frame repeated, and the real frames
    through the autoencoder, which no method can beat."""
    records = [comparison.baseline.record(video) for video in videos]
    rows = []
    for kind, name in REFERENCES.items():
        scores = [r.get("references", {}).get(kind, {}).get(metric) for r in records]
        if all(score is not None for score in scores):
            empty = dict.fromkeys(describe(comparison.baseline, metric, videos))
            means = {"mean": float(np.mean(scores)), "worst": []}
            rows.append(empty | {"method": name, "videos": len(videos)} | means)
    return rows


def describe(method, metric, videos):
    scores = method.scores(metric, videos)
    return {
        "method": method.name,
        "videos": len(videos),
        "mean": float(scores.mean()),
        "noise": spread_over_seeds(scores),
        "gain": None,
        "low": None,
        "high": None,
        "p": None,
        "improved": None,
        "worst": [],
        "adapt_seconds": method.mean_of("adapt_seconds", videos),
        "peak_memory_gb": method.mean_of("peak_memory_gb", videos),
        "parameters": int(method.mean_of("adapted_parameters", videos)),
    }
