"""Compares runs, video by video: is the adaptation better than no adaptation, and by how much?

    python compare.py results/baseline results/adasteer --out results/report
    python compare.py --sweep results/groups_5_steps --out results/groups_5_steps/report

First comes a sentence for each method: does it help, by how much, how sure is that?
Gains are differences to the baseline (--steps 0) on the videos and seeds that all runs share,
positive where the method is better; in the loss on the true future, which leads, they are relative,
in per cent of each video's own baseline. The interval is a 95 % BCa bootstrap over sources and says
where their mean lies; from fewer than 8 sources it would be too narrow and is not given. p is a
signed-rank test with Holm's correction over the methods; it asks whether the gains lie
symmetrically about zero, so the two need not agree. Beside p is the smallest that so many sources
can reach. Runs that differ in the seed only are averaged.
"""

from pathlib import Path

import runs  # first: signals, and how torch's threads wait

# isort: split
import common
from common.values import folder
from report.across import across
from report.beside import beside_controls
from report.chosen import reported
from report.comparison import compare, table
from report.files import write_tables
from report.metrics import main_metric, title
from report.page import write_page
from report.predict import headline, lines, predict
from report.rows import read_row, read_rows
from report.runs import read_runs
from report.table import MEANING, as_text, readable
from report.verdict import verdicts
from runs.names import printable
from runs.parser import Parser


def parse_args():
    parser = Parser(__doc__, "%(prog)s RUN RUN ... --out FOLDER [flags]")
    parser.add_argument(
        "runs", nargs="*", type=Path, metavar="RUN", help="folders of runs, one with --steps 0"
    )
    parser.add_argument("--sweep", type=Path, metavar="FOLDER", help="all runs of a sweep")
    parser.add_argument("--out", type=folder, required=True, help="folder of the report")
    parser.add_argument(
        "--show", type=common.at_least(0), default=4, metavar="N", help="clips to show side by side"
    )
    parser.add_argument(
        "--predict", action="store_true", help="can it be known beforehand which videos gain?"
    )
    args = parser.parse_args()
    if bool(args.sweep) == bool(args.runs):
        parser.error("give either folders of runs or --sweep FOLDER")
    return args


def sets_of(args):
    """The runs to compare, by the name of their baseline; the rows of a sweep; what it lacks."""
    if not args.sweep:
        return {"": read_runs(args.runs)}, [], []
    rows, notes = reported(args.sweep, read_rows(args.sweep))
    sets = {}
    for row in rows:
        try:
            run = read_row(args.sweep, row)
        except common.UsageError as error:
            notes.append(f"{printable(row['name'])}: {error}")
        else:
            sets.setdefault(run.setting, []).append(run)
    return {found[0].name: found for found in sets.values()}, rows, notes


def compared(sets, notes):
    """Comparisons by name. Of a sweep a set without results is a note, else an error."""
    found = {}
    for name, each in sets.items():
        try:
            found[name] = compare(each)
        except common.UsageError as error:
            if not name:
                raise
            notes.append(str(error))
    return found


def predictions_of(comparison):
    """By method: from the conditioning frames and the losses before generating."""
    shown = main_metric(comparison)
    return {m.name: predict(comparison, m, shown) for m in comparison.judged}


def tables_of(comparison):
    """The table of each metric, the main one first."""
    return {metric: table(comparison, metric) for metric in comparison.metrics.values()}


def print_verdicts(tables, controls, predictions):
    for name, each in tables.items():
        claims = [found.claim for found in controls[name]]
        print(*(verdict.sentence for verdict in [*verdicts(each), *claims]), sep="\n")
    print()
    for found in predictions.values():
        for name, result in found.items():
            print(f"{name}: {headline(result)}")
            print(as_text(lines(result)), end="\n\n")


def print_tables(comparisons, tables, notes):
    """The table of the main metric of each comparison, and what a reader must know."""
    for name, comparison in comparisons.items():
        shown = main_metric(comparison)
        rows = tables[name][shown]
        words = [title(shown), shown.about, as_text(readable(rows))] if rows else []
        print(*filter(None, [name, *words]), sep="\n")
        print(*comparison.notes, "", sep="\n")
    print(*notes, MEANING, sep="\n")


def main():
    args = parse_args()
    sets, rows, notes = sets_of(args)
    comparisons = compared(sets, notes)
    if not comparisons:
        raise common.UsageError("nothing to compare: " + "; ".join(notes))
    args.out.mkdir(parents=True, exist_ok=True)
    tables = {name: tables_of(comparison) for name, comparison in comparisons.items()}
    found = {n: predictions_of(c) for n, c in comparisons.items()} if args.predict else {}
    controls = {name: beside_controls(comparison) for name, comparison in comparisons.items()}
    shifts = across(comparisons, tables, controls, rows)
    write_tables(args.out, comparisons, tables, controls, found, notes, shifts)
    write_page(args.out, comparisons, tables, controls, notes, rows, found, args.show, shifts)
    for each in shifts:
        print(each.heading, as_text(each.readable), "", sep="\n")
    print_verdicts(tables, controls, found)  # what is printed last may be cut off, as by head
    print_tables(comparisons, tables, notes)
    print(f"{args.out}/index.html")
    return 0


if __name__ == "__main__":
    runs.run_script(main)
