"""What the reader of a comparison must know of its runs: what they lack, and how they differ."""

from collections import Counter

from runs.identity import goes_on
from runs.names import printable

SAME = 2e-3  # a relative difference that rounding makes


def notes_on(runs, shared):
    """What each run lacks, and how many adaptations diverged."""
    everything = set().union(*(run.done.keys() | run.skipped.keys() for run in runs))
    notes = [f"{len(shared)} of {len(everything)} videos are in every run and compared"]
    for run in runs:
        lacking = sorted(everything - run.done.keys())
        reasons = Counter(run.why_missing(video) for video in lacking)
        for reason, count in reasons.most_common():
            notes.append(f"{run.name} lacks {count} videos: {printable(reason)}")
        diverged = [video for video, record in run.done.items() if record["diverged"]]
        if diverged:
            named = printable(", ".join(sorted(diverged)[:5]))
            notes.append(
                f"{run.name}: adaptation diverged on {len(diverged)} of {len(run.done)} videos, "
                f"which count with the state that was kept: {named}"
            )
        notes += [
            f"{run.name}: {printable(path.name)} is damaged and left out" for path in run.damaged
        ]
    return notes


def notes_on_order(runs):
    """Which are single passes through the clips, whose scores hang together."""
    return [
        f"{run.name}: what is learned goes on from one to the next, so the interval holds for this "
        "order; --order seed with other seeds gives others"
        for run in runs
        if goes_on(run.arguments)
    ]


def notes_on_seeds(methods, seeds):
    """Which have results of more seeds than are compared."""
    return [
        f"{m.name} has results of the seeds {listed(m.seeds)}; compared at {listed(seeds)}, which "
        "all have"
        for m in methods
        if set(m.seeds) != seeds
    ]


def edited(methods):
    """Notes on scripts whose runs are of several versions."""
    scripts = {}
    for method in methods:
        arguments = method.runs[0].arguments
        found = scripts.setdefault(arguments.get("script"), {})
        found.setdefault(arguments.get("script_sha256"), []).append(method.name)
    notes = []
    for script, found in scripts.items():
        if script and len(found) > 1:
            names = " and ".join(", ".join(names) for names in found.values())
            was = "may have been" if None in found else "was"  # recorded before scripts' were
            notes.append(f"{names}: {printable(script)}.py {was} edited between")
    return notes


def versions(runs):
    """A note where the code below the scripts is not the same."""
    found = {run.name: run.versions for run in runs}
    if len(set().union(*found.values())) < 2:
        return []
    named = "; ".join(
        f"{name} {' and '.join(digests)}" for name, digests in found.items() if digests
    )
    return [f"the code below the scripts was not the same (source_sha256): {named}"]


def not_paired(methods, baseline, videos):
    """Which found another loss of the model as it is than the baseline did, on the same draws."""
    notes = []
    for run in (run for method in methods for run in method.runs):
        (before,) = (each for each in baseline.runs if each.seed == run.seed)
        pairs = [[r.done[v].get("future_loss_before") for r in (before, run)] for v in videos]
        differ = [there for there, here in pairs if None not in (there, here)
                  and abs(here - there) > SAME * abs(there)]  # fmt: skip
        if differ:
            notes.append(
                f"{run.name}: before adapting the loss on the true future is not the baseline's on "
                f"{len(differ)} of {len(videos)} videos (by more than {SAME:.1%}): another device "
                "or type gave other latents or other noise, so that they are not exactly paired"
            )
    return notes


def listed(seeds):
    return ", ".join(map(str, sorted(seeds)))
