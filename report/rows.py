"""The rows of a sweep, by its sweep.json, and the run of each."""

from common.errors import UsageError
from report.runs import is_plain, read_run
from runs.identity import difference
from runs.names import printable, unusable
from runs.results import read_json


def read_rows(folder):
    """The rows of a sweep's folder. Raises UsageError where sweep.json is not as sweep.py writes
    it."""
    sweep = read_json(folder / "sweep.json")
    if sweep is None:
        raise UsageError(f"--sweep {folder}: no whole sweep.json in it; run sweep.py first")
    rows = sweep.get("rows") if isinstance(sweep, dict) else None
    if not isinstance(rows, list) or not rows:
        raise UsageError(f"--sweep {folder}: sweep.json has no rows; run sweep.py again")
    for number, row in enumerate(rows, 1):
        if not is_row(row):
            raise UsageError(
                f"--sweep {folder}: row {number} in sweep.json is not as sweep.py writes it; run "
                "sweep.py again"
            )
    return rows


def is_row(row):
    """name, over and template, perhaps more; the name is that of a folder in the sweep's."""
    if not isinstance(row, dict):
        return False
    texts = [row.get("name"), row.get("template")]
    dicts = [row.get("over"), row.get("arguments", {})]
    return (
        all(
            isinstance(text, str)
            for text in [*texts, row.get("control_of") or "", row.get("shift", "")]
        )
        and all(isinstance(found, dict) for found in dicts)
        and all(is_plain(value) for found in dicts for value in found.values())
        and unusable(row["name"]) is None
    )


def read_row(folder, row):
    """The run of a sweep's row. Raises UsageError where its folder holds none, or another run."""
    path = folder / row["name"]
    if not (path / "config.json").is_file():
        raise UsageError("not begun")
    run = read_run(path, row["name"])
    if found := difference(run.config, {"arguments": row.get("arguments", run.arguments)}):
        raise UsageError(f"left out, its folder holds another run ({printable(found[:300])})")
    return run
