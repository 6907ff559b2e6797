"""The tables of a report as files."""

from report.beside import MEANING as WITH_CONTROLS
from report.comparison import unmeasured
from report.metrics import title
from report.settings import settings
from report.table import MEANING, as_markdown, readable, write_csv
from report.verdict import verdicts
from runs.results import write_json


def write_tables(out, comparisons, tables, controls, predictions, notes, shifts=()):
    """table.md for people, table.csv and results.json for programs."""
    text, flat, everything = [], [], {}
    for each in shifts:
        text += [f"# {each.heading}\n", as_markdown(each.readable), f"{each.about}\n"]
    for name, comparison in comparisons.items():
        everything[name or "runs"] = {
            "verdicts": [verdict.sentence for verdict in verdicts(tables[name])],
            "claims": [each.claim.sentence for each in controls[name]],
            "controls": {each.method: each.rows for each in controls[name]},
            "notes": comparison.notes,
            "settings": settings(comparison),
            "tables": tables[name],
            "predictions": predictions.get(name),
        }
        said = everything[name or "runs"]
        text += [f"- {sentence}" for sentence in said["verdicts"] + said["claims"]]
    for name, comparison in comparisons.items():
        text.append(f"\n# {name}\n" if name else "")
        text.append(markdown(comparison, tables[name], controls[name]))
        for metric, rows in tables[name].items():
            flat += [{"set": name, "metric": metric, **row} for row in rows]
    text += [f"- {note}" for note in notes] + [f"\n{MEANING}\n"]
    (out / "table.md").write_text("\n".join(text), encoding="utf-8")
    write_csv(out / "table.csv", flat)
    more = {"shifts": {each.metric: each.cells for each in shifts}} if shifts else {}
    write_json(out / "results.json", {"comparisons": everything, "notes": notes, **more})


def markdown(comparison, tables, controls):
    """The tables of a comparison, each with what a reader must know of it, methods beside their
    controls, the runs' settings, and the notes."""
    parts = []
    for metric, rows in tables.items():
        if rows:
            parts += [f"## {title(metric)}\n", *([f"{metric.about}\n"] if metric.about else [])]
            parts.append(as_markdown(readable(rows)))
    for each in controls:
        parts += [f"## {each.method} beside its controls\n", as_markdown(each.readable)]
    parts += [f"{WITH_CONTROLS}\n"] if controls else []
    parts += ["## settings\n", as_markdown(settings(comparison))]
    notes = [*comparison.notes, *unmeasured(comparison)]
    return "\n".join([*parts, *(f"- {note}" for note in notes), ""])
