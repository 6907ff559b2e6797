"""Tables of dicts as text, Markdown and CSV."""

import csv

from report.statistics import FEWEST
from runs.names import printable

TOO_FEW = "too few"
MEANING = (
    f"95 %: where the mean gain lies, from resampled sources; too few are less than {FEWEST}. p: "
    "of a signed-rank test, which asks whether the sources' gains lie symmetrically about zero, so "
    "the two need not agree; Holm's correction over the methods. Smallest p: what so many sources "
    "can reach at best, before the correction. Harmed: videos that lose more than a gain changes "
    "from seed to seed; of a single seed those that lose at all."
)
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # what a spreadsheet computes begins so


def readable(rows):
    """The rows of a comparison's table as strings for people, without columns that are empty."""
    return filled([cells(row) for row in rows])


def filled(rows):
    """Rows of strings without the columns in which none has any."""
    kept = [key for key in rows[0] if any(row[key] != "" for row in rows)]
    return [{key: row[key] for key in kept} for row in rows]


def cells(row):
    known = row["gain"] is not None
    unit = f" {row['gain_unit']}" if known and row["gain_unit"] else ""
    return {
        "method": row["method"],
        "gain": number(row["gain"], "+") + unit,
        "95 %": interval(row["low"], row["high"], unit=unit) if known else "",
        "improved": f"{100 * row['improved']:.0f} %" if known else "",
        "videos": row["videos"],
        "sources": row["sources"],
        "mean": number(row["mean"]),
        "p": number(row["p"]),
        "smallest p": number(row["smallest_p"]),
        "harmed": f"{100 * row['harmed']:.0f} %" if known else "",
        "spread_ratio": number(row["spread_ratio"]),
        "noise": number(row["noise"]) + (unit if row["noise"] is not None else ""),
        "adapt s": number(row["adapt_seconds"]),
        "GB": number(row["peak_memory_gb"]),
        "parameters": "" if row["parameters"] is None else f"{row['parameters']:,}",
        "worst": " ".join(row["worst"]),
    }


def interval(low, high, sign="+", unit=""):
    return TOO_FEW if low is None else f"{number(low, sign)} to {number(high, sign)}{unit}"


def number(value, sign=""):
    """Three digits after the point, of small and large numbers three or four that count."""
    if value is None:
        return ""
    if 0 < abs(value) < 0.1:
        return f"{value:{sign}.3g}"
    return f"{value:{sign}.3f}" if abs(value) < 10 else f"{value:{sign}.4g}"


def as_text(rows):
    """Columns side by side, for a terminal."""
    cells = as_cells(rows)
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def as_markdown(rows):
    head, *body = [[cell.replace("|", "\\|") for cell in row] for row in as_cells(rows)]
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def as_cells(rows):
    """The header and the rows as strings."""
    return [[*rows[0].keys()], *([printable(str(x)) for x in row.values()] for row in rows)]


def write_csv(path, rows):
    """Text that a spreadsheet would take for a formula begins with ' then."""
    with open(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, rows[0].keys() if rows else [])
        writer.writeheader()
        writer.writerows({key: unharmed(value) for key, value in row.items()} for row in rows)


def unharmed(value):
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
