"""With which settings the runs of a comparison were made."""

from report.notes import listed
from report.table import filled
from runs.flags import OURS, spelt, tells_apart

MAIN = ("steps", "lr", "draws")
ABSENT = "absent"  # a flag that a script does not have


def settings(comparison):
    """One dict a method, the baseline first: the main flags, the seeds, and the others in which the
    runs of the report differ. A baseline does not adapt: its --steps and seeds alone."""
    methods = [comparison.baseline, *comparison.methods]
    names = differing([method.runs[0] for method in methods])
    rows = []
    for method in methods:
        arguments, adapts = method.runs[0].arguments, method is not comparison.baseline
        row = {"method": method.name, "script": arguments.get("script") or ""}
        row |= {name: shown(arguments.get(name)) if adapts else "" for name in MAIN}
        row |= {"steps": shown(arguments["steps"]), "seed": listed(method.seeds)}
        row["other flags"] = flags(method.runs[0], names) if adapts else ""
        rows.append(row)
    return filled(rows)


def differing(runs):
    """Names of the flags that change numbers and are not the same in all runs."""
    skipped = {*MAIN, *OURS, "seed"}
    names = dict.fromkeys(name for run in runs for name in run.arguments if name not in skipped)
    return [
        name
        for name in names
        if any(name == "adapter" or tells_apart(run.flags, name) for run in runs)
        and len({str(run.arguments.get(name, ABSENT)) for run in runs}) > 1
    ]


def flags(run, names):
    """As they are typed, without those that are off or that the script does not have."""
    typed = [spelled(run, name, run.arguments[name]) for name in names if name in run.arguments]
    return " ".join(filter(None, typed))


def spelled(run, name, value):
    flag = spelt(run.flags, name)
    if isinstance(value, bool):
        return flag if value != flag.startswith("--no-") else ""
    return "" if value is None else f"{flag} {shown(value)}"


def shown(value):
    """A flag's value as it is typed."""
    if isinstance(value, dict):
        return " ".join(f"{key}={one}" for key, one in value.items())
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
