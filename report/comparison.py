"""Paired comparison of runs with their baseline over the videos they share."""

from dataclasses import replace

import numpy as np

from common.errors import UsageError
from report.controls import controls_of, notes_on_controls
from report.metrics import ZERO, declared, shared, unit
from report.notes import (
    edited,
    listed,
    not_paired,
    notes_on,
    notes_on_order,
    notes_on_seeds,
    versions,
)
from report.paired import Comparison, Method
from report.runs import efforts, refuse_mismatch
from report.statistics import clustered_interval, harmed, holm, signed_rank, spread_over_seeds
from runs.identity import goes_on

REFERENCE_NAMES = {
    "repeat_last": "(last frame repeated)", "reconstruction": "(real frames, autoencoder)",
    "second_take": "(second take: physical noise)",
}  # fmt: skip
WORST = 5  # videos named for each method


def compare(runs):
    """Raises UsageError where the runs cannot be compared."""
    methods = by_seed(runs)
    baselines = baselines_of(methods)
    if len(baselines) != 1:
        found = ", ".join(m.name for m in baselines) or "none"
        raise UsageError(
            f"one baseline (--steps 0) is needed to compare with, got {found}; of runs that "
            "generate otherwise make a comparison each" + "".join(f"; {n}" for n in edited(methods))
        )
    with_results = [replace(m, runs=[run for run in m.runs if run.done]) for m in methods]
    baseline = with_results[methods.index(baselines[0])]
    if not baseline.runs:
        raise UsageError(f"{baseline.name}: no video of the baseline is done yet")
    with_results = [method for method in with_results if method.runs]
    seeds = common_seeds(with_results)
    kept = [method.at(seeds) for method in with_results]
    for run in (run for method in kept for run in method.runs):
        refuse_mismatch(baseline.at(seeds).runs[0], run)
    videos = set.intersection(*(set(run.done) for method in kept for run in method.runs))
    if not videos:
        raise UsageError(f"no video is done in all of {', '.join(m.name for m in kept)}")
    used = [run for method in kept for run in method.runs]
    left_out = measured_otherwise(used)
    notes = notes_on(used + [run for run in runs if not run.done], videos)
    notes += [*notes_on_order(used), *notes_on_seeds(with_results, seeds)]
    notes += [*edited(methods), *versions(used)]
    notes += [f"{metric} is not compared: {why}" for metric, why in left_out.items()]
    first = kept.pop(with_results.index(baseline))
    controls = controls_of(kept)
    notes += notes_on_controls(kept, controls) + not_paired(kept, first, sorted(videos))
    metrics = shared([run for method in kept or [first] for run in method.runs])
    return Comparison(first, kept, sorted(videos), notes, left_out, metrics, controls)


def baselines_of(methods):
    """Those that adapt nothing; of several only those that take no more time for a continuation
    than the runs that adapt, or than the first."""
    found = [m for m in methods if m.adapts_nothing]
    adapted = [m for m in methods if not m.adapts_nothing]
    if len(found) < 2:
        return found
    first = (adapted or found)[0].runs[0]
    pairs = [efforts(first, m.runs[0]) for m in found]
    return [m for m, (there, here) in zip(found, pairs, strict=True) if there == here]


def measured_otherwise(runs):
    """Metrics that the runs measured in different ways, and why."""
    weights = {run.config.get("lpips_sha256") for run in runs} - {None}
    differ = "the runs have different weights for it (lpips_sha256)"
    clean = {name for run in runs for name in run.config.get("metrics") or ()} & {"lpips_clean"}
    return dict.fromkeys(["lpips", *clean], differ) if len(weights) > 1 else {}


def common_seeds(methods):
    """Those that all methods have results of. Raises UsageError where there are none."""
    seeds = set.intersection(*(set(method.seeds) for method in methods))
    if not seeds:
        found = "; ".join(f"{m.name} has {listed(m.seeds)}" for m in methods)
        edits = "".join(f"; {note}" for note in edited(methods))
        raise UsageError(f"no seed has results in the baseline and in all methods: {found}{edits}")
    return seeds


def by_seed(runs):
    """Methods in the order of the runs; runs that agree in all but the seed are one."""
    found = {}
    for run in runs:
        found.setdefault(run.kind, []).append(run)
    methods = []
    for group in found.values():
        group = sorted(group, key=lambda run: run.seed)
        if len({run.seed for run in group}) < len(group):
            names = " and ".join(str(run.path) for run in group)
            raise UsageError(f"{names} are the same run; give it once")
        label = " (carried over)" if goes_on(group[0].arguments) else ""
        name = name_of(group) + label
        taken = any(name == method.name for method in methods)  # seeds before and after an edit
        runs_named = " ".join(run.name for run in group) + label
        methods.append(Method(runs_named if taken else name, group))
    return methods


def name_of(runs):
    """The run's name; of several seeds the one they share with * for the seed."""
    shared = set.intersection(*map(starred, runs))
    return min(shared) if shared and len(runs) > 1 else " ".join(run.name for run in runs)


def starred(run):
    """The run's name with * for the seed, wherever that may be meant."""
    seed, name = str(run.seed), run.name
    starts = [i for i in range(len(name)) if name.startswith(seed, i)]
    return {name.replace(seed, "*"), *(f"{name[:i]}*{name[i + len(seed) :]}" for i in starts)}


def table(comparison, metric):
    """One dict a method, the baseline first; p corrected over the methods. Empty where no video
    has this score."""
    videos = comparison.scored(metric)
    if not videos:
        return []
    sources = comparison.sources(videos)
    # some have no such score of their own, as one before adapting where nothing was carried over
    methods = [m for m in comparison.methods if metric in declared(m.runs[0].config.get("metrics"))]
    gains = [comparison.gains(method, metric, videos) for method in methods]
    found = [signed_rank(gain, sources) for gain in gains]
    judged = [i for i, m in enumerate(methods) if m.name not in comparison.controls]
    p_values = dict(zip(judged, holm([found[i][0] for i in judged]), strict=True))
    count = {"sources": len(set(sources)), "gain_unit": unit(comparison.metrics[metric]).strip()}
    idle = {"adapt_seconds": None, "parameters": None}  # a baseline does not adapt
    rows = [describe(comparison.baseline, metric, videos) | count | idle]
    for i, (method, gain) in enumerate(zip(methods, gains, strict=True)):
        mean, low, high = clustered_interval(gain, sources)
        differences = comparison.differences(method, metric, videos)
        worst = [videos[i] for i in np.argsort(gain, kind="stable")[:WORST] if gain[i] < 0]
        rows.append(
            describe(method, metric, videos)
            | count
            | {
                "control": i not in p_values,
                "noise": spread_over_seeds(differences),
                "gain": float(mean),
                "low": low,
                "high": high,
                "p": p_values.get(i),
                "smallest_p": found[i][1] if i in p_values else None,
                "improved": float((gain > 0).mean()),
                "harmed": harmed(differences),
                "worst": worst,
                "spread_ratio": spread_ratio(comparison, method, metric, videos),
            }
            | (idle if method.adapts_nothing else {})
        )
    return rows + reference_rows(comparison, metric, videos)


def spread_ratio(comparison, method, metric, videos):
    """Variance between the samples as a share of the baseline's, in the table of the kernel score;
    None elsewhere and where it was not measured."""
    spread = "sample_variance"
    measured = set(comparison.scored(spread))
    if metric != "kernel_score" or not measured.issuperset(videos):
        return None
    before = comparison.baseline.mean_of(spread, videos)
    return method.mean_of(spread, videos) / before if before > ZERO else None


def unmeasured(comparison):
    """Lines on the metrics that have no table."""
    lines = [f"{metric}: {why}." for metric, why in comparison.left_out.items()]
    left_out = comparison.left_out
    rest = [m for m in comparison.metrics if m not in left_out and not comparison.scored(m)]
    return [*lines, *([f"Not measured in all of these runs: {', '.join(rest)}."] if rest else [])]


def reference_rows(comparison, metric, videos):
    """Rows of what every table is read against: the last frame repeated, and the real frames
    through the autoencoder, which no method can beat. A second take is of those videos that have
    one, and its row says how many."""
    references = {v: comparison.baseline.record(v).get("references", {}) for v in videos}
    rows = []
    for kind, name in REFERENCE_NAMES.items():
        found = {v: each.get(kind, {}).get(metric) for v, each in references.items()}
        scores = {v: score for v, score in found.items() if score is not None}
        if scores and (len(scores) == len(videos) or kind == "second_take"):
            empty = dict.fromkeys(describe(comparison.baseline, metric, videos))
            means = {"mean": float(np.mean([*scores.values()])), "worst": []}
            counts = {"videos": len(scores), "sources": len(set(comparison.sources(scores)))}
            rows.append(empty | {"method": name} | counts | means)
    return rows


def describe(method, metric, videos):
    scores = method.scores(metric, videos)
    return {
        "method": method.name,
        "videos": len(videos),
        "sources": None,
        "mean": float(scores.mean()),
        "noise": spread_over_seeds(scores),
        "gain": None,
        "low": None,
        "high": None,
        "p": None,
        "smallest_p": None,
        "improved": None,
        "harmed": None,
        "control": False,
        "gain_unit": "",
        "spread_ratio": None,
        "worst": [],
        "adapt_seconds": method.mean_of("adapt_seconds", videos),
        "peak_memory_gb": method.mean_of("peak_memory_gb", videos),
        "parameters": int(method.mean_of("adapted_parameters", videos)),
    }
