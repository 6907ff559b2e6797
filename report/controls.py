"""Which runs of a comparison are controls: what a method must beat before its gain is believed."""

from report.runs import efforts
from runs.flags import spelt


def controls_of(methods):
    """{name: names of those that it is a control of}. A run with --control is one of the run whose
    adaptation it replaces; one without adaptation that only takes more time, of all that adapt."""
    adapted = [m for m in methods if not m.adapts_nothing and m.runs[0].original is None]
    found = {}
    for method in methods:
        original = method.runs[0].original
        names = [
            m.name for m in adapted if method.adapts_nothing or m.runs[0].kind == original
        ]  # fmt: skip
        if names and (method.adapts_nothing or original is not None):
            found[method.name] = names
    return found


def notes_on_controls(methods, controls):
    """Which count as methods, since what they are controls of is not there."""
    return [
        f"{m.name} is a control (--control {m.runs[0].arguments['control']}) of a run that is not "
        "here, and counts as a method"
        for m in methods
        if m.runs[0].original is not None and m.name not in controls
    ]


def what_it_is(method, baseline):
    """In a word or two: the flags that make it a control, and "" of what is none."""
    run = method.runs[0]
    if not method.adapts_nothing:
        kind = run.arguments.get("control")
        return f"--control {kind}" if kind else ""
    before, own = efforts(baseline.runs[0], run)
    more = {name: value for name, value in own.items() if value != before[name]}
    return " ".join(f"{spelt(run.flags, name)} {value}" for name, value in more.items())
