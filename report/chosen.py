"""Settings that a sweep chose on one part of its data, to be reported on the other; see
sweeps/parts.py."""

import contextlib
from collections import Counter

from common.errors import UsageError
from report.comparison import compare
from report.metrics import main_metric, unit
from report.rows import read_row, read_rows
from report.statistics import clustered_interval
from runs.lists import SHIFTS
from runs.names import printable


def reported(folder, rows):
    """Of a sweep's rows those to report, and notes on how they were chosen: of each template the
    setting with the largest mean gain over the sets of `choose`. All rows and no notes of a sweep
    without parts. Raises UsageError where nothing can be chosen yet, or what was chosen on is
    reported."""
    to_choose, to_report = ([r for r in rows if r.get("part") == x] for x in ("choose", "report"))
    if not to_choose and not to_report:
        return rows, []
    chosen_on = runs_of(folder, to_choose)
    gains, metric = grid(folder, to_choose, chosen_on)
    best = {template: max(found, key=found.get) for template, found in gains.items()}
    own = [r for r in to_report if r["baseline"] and best.get(r["template"]) == setting(r)]
    names = {row["name"] for row in own} | {row["baseline"] for row in own}
    kept = [row for row in to_report if names & {row["name"], row.get("control_of")}]
    reported_on = runs_of(folder, kept)
    refuse_leak(folder, chosen_on, reported_on)
    lines = [line(template, found, metric) for template, found in gains.items()]
    return kept, [basis(chosen_on, reported_on), *lines]


def rows_to_report(folder):
    """As `reported`, without the notes, of all rows of a sweep's folder."""
    return reported(folder, read_rows(folder))[0]


def runs_of(folder, rows):
    """{row's name: run} of those that are begun."""
    found = {}
    for row in rows:
        with contextlib.suppress(UsageError):  # compare.py says of each row why it is not there
            found[row["name"]] = read_row(folder, row)
    return found


def setting(row):
    """What is swept, with its values. Seeds are averaged."""
    return tuple((k, v) for k, v in row["over"].items() if k != "seed")


def grid(folder, rows, runs):
    """{template: {setting: mean gain}} over the sets of `choose`, of settings with results on each
    of them, and the metric that the gains are in."""
    sets, counts = {}, Counter((row["template"], setting(row)) for row in rows)
    for run in runs.values():
        sets.setdefault(run.setting, []).append(run)
    try:
        comparisons = [compare(each) for each in sets.values()]
    except UsageError as error:
        raise UsageError(f"--sweep {folder}: no setting can be chosen yet: {error}") from error
    gains, by_name = {}, {printable(row["name"]): row for row in rows}
    metric = main_metric(*comparisons) if comparisons else None
    for name, gain in (each for c in comparisons for each in gains_in(c, metric, by_name)):
        row = by_name[name]
        gains.setdefault(row["template"], {}).setdefault(setting(row), []).append(gain)
    whole = {}
    for template, found in gains.items():
        for each, means in found.items():
            if len(means) == counts[template, each]:
                whole.setdefault(template, {})[each] = sum(means) / len(means)
    if not whole:
        raise UsageError(
            f"--sweep {folder}: no setting can be chosen yet: none has results on every shift of "
            "choose; the sweep's own command goes on"
        )
    return whole, metric


def gains_in(comparison, metric, names):
    """(name of a run, mean gain of its method) in one set, of those names."""
    videos = comparison.scored(metric)
    for method in comparison.methods if videos else ():
        gains = comparison.gains(method, metric, videos)
        mean = float(clustered_interval(gains, comparison.sources(videos))[0])
        yield from ((run.name, mean) for run in method.runs if run.name in names)


def refuse_leak(folder, chosen_on, reported_on):
    """Raises UsageError where settings were chosen on a shift, a source or a clip that is
    reported: by what the records say, whatever the sweep's file does."""
    for what, facts in (("the shift", shifts), ("the source", sources), ("the file", files)):
        both = facts(chosen_on) & facts(reported_on)
        if both:
            raise UsageError(
                f"--sweep {folder}: {what} {printable(min(both))!r} was used to choose settings "
                "and is reported; both must not be: choose on others, in another folder"
            )


def records(runs):
    return [record for run in runs.values() for record in run.done.values()]


def shifts(runs):
    """Kinds of prepare.shift; what else a list's own column `shift` may say is none."""
    return {r["columns"].get("shift") for r in records(runs)} & {*SHIFTS}


def sources(runs):
    return {r["source"] for r in records(runs)}


def files(runs):
    """SHA-256s of clips, of their clean counterparts and of what both were made from."""
    found = {r["video_sha256"] for r in records(runs)}
    made = {r["columns"].get(f"{x}_sha256") for r in records(runs) for x in ("truth", "original")}
    return found | made - {None}


def basis(chosen_on, reported_on):
    used, shown = (
        {x if (x := r["columns"].get("shift")) in SHIFTS else "clean" for r in records(runs)}
        for runs in (chosen_on, reported_on)
    )
    count, but = len(sources(chosen_on)), " (but for clean)" if "clean" in used & shown else ""
    return (
        f"settings were chosen on other shifts{but} and sources than those reported: on "
        f"{', '.join(sorted(used))}, {count} source{'' if count == 1 else 's'}"
    )


def line(template, gains, metric):
    """All settings of a row of the sweep's file, with the gains that they were chosen by."""
    best = max(gains, key=gains.get)
    shown = (
        f"{', '.join(f'{k} {v}' for k, v in each) or 'its flags'} {gain:+.2f}{unit(metric)}"
        + (" (chosen)" if each == best else "")
        for each, gain in gains.items()
    )
    return printable(f"{template}: mean gain in {metric} where it was chosen: {'; '.join(shown)}")
