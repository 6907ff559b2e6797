"""A sweep that reports on several shifts in one table: methods down, shifts across; in a second one
against the truth without the shift."""

from dataclasses import dataclass

from common.metrics import CLEAN_OF, ONLINE_OF
from report.metrics import main_metric, title, unit
from report.table import TOO_FEW
from report.verdict import HELPS, counted, outcome
from runs.names import printable

KEPT = ("gain", "low", "high", "sources")  # of a method's row in the table of a comparison
ABOUT = (
    "The gain over the baseline, with its 95 % interval over sources. A gain that is told beats a "
    "control where its lead over that is told too: random, a random change of the same norm; "
    "other, what was learned on a video of another source (nothing tells that from what is carried "
    "over)."
)
CHANCE = (
    "The number of cells, {count}, is not corrected for: of those without an effect one in twenty "
    "is told all the same, from few sources one in eight."
)


@dataclass(frozen=True)
class Across:
    metric: str  # of the gains
    cells: dict  # {method: {shift: {gain, low, high, sources, beats, level}}}

    @property
    def columns(self):
        """{shift: the head of its column}."""
        counts = {
            shift: cell["sources"] for each in self.cells.values() for shift, cell in each.items()
        }
        return {shift: f"{shift}, {counted(count, 'source')}" for shift, count in counts.items()}

    @property
    def heading(self):
        return title(self.metric)

    @property
    def about(self):
        count = sum(map(len, self.cells.values()))
        parts = self.metric.about, ABOUT, CHANCE.format(count=count)
        return " ".join(filter(None, parts))

    @property
    def readable(self):
        """The rows as strings for people."""
        return [
            {"method": method}
            | {head: self.words(found.get(shift)) for shift, head in self.columns.items()}
            for method, found in self.cells.items()
        ]

    def words(self, cell):
        """As "+2.10 % (+1.00 to +3.20), beats random, other"; "" of what is not there."""
        if cell is None:
            return ""
        ends = TOO_FEW if cell["low"] is None else f"{cell['low']:+.2f} to {cell['high']:+.2f}"
        said = f"{cell['gain']:+.2f}{unit(self.metric)} ({ends})"
        if cell["beats"] is None:
            return said
        lost = ", ".join(cell["level"])
        won = ", ".join(cell["beats"]) or "no control"
        return f"{said}, beats {won}" + (f", not {lost}" if lost and cell["beats"] else "")


def across(comparisons, tables, controls, rows):
    """Of the main metric, of the same against the clean truth, and of what was carried over, before
    adapting to a video, an Across each, none where there is nothing to show. comparisons by name,
    and the tables of each by metric; controls: methods beside theirs, by name; rows: those of the
    sweep."""
    main = main_metric(*comparisons.values())
    names = {name: name for c in comparisons.values() for name in c.metrics.values()}
    others = [CLEAN_OF.get(main), ONLINE_OF.get(main)]
    metrics = [main, *(names[name] for name in dict.fromkeys(others) if name in names)]
    found = [cells_of(metric, comparisons, tables, controls, rows) for metric in metrics]
    return [Across(m, cells) for m, cells in zip(metrics, found, strict=True) if cells]


def cells_of(metric, comparisons, tables, controls, rows):
    shifts, cells = {printable(row["name"]): row["shift"] for row in rows if row.get("shift")}, {}
    for name, comparison in comparisons.items():
        shift = shifts.get(comparison.baseline.runs[0].name)
        for row in tables[name].get(metric, ()) if shift else ():
            if row["gain"] is not None and not row["control"]:
                own = row["method"].replace(f"report_{shift}_", "")
                beats = beaten(row, controls[name], metric)
                cell = {key: row[key] for key in KEPT} | beats
                cells.setdefault(own, {})[shift] = cell
    return cells


def beaten(row, controls, metric):
    """Of a method that helps the controls that it is told to be ahead of, `beats`, and the others
    that were run, `level`; None where there is no gain to explain, or nothing to explain it by."""
    leads = {}
    for each in controls:
        rows = each.rows[2:] if each.method == row["method"] else ()
        for other in (other for other in rows if metric in other["ahead"]):
            lead = dict(zip(("gain", "low", "high"), other["ahead"][metric], strict=True))
            kind = other["control"].removeprefix("--control ")
            leads.setdefault(kind, []).append(outcome(lead))
    if not leads or outcome(row) != HELPS:
        return {"beats": None, "level": None}
    ahead = [kind for kind, told in leads.items() if set(told) == {HELPS}]
    return {"beats": ahead, "level": [kind for kind in leads if kind not in ahead]}
