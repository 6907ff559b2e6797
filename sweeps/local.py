"""Runs the rows of a sweep on this machine, some at a time, and compares them."""

import contextlib
import shlex
import sys
import time

import runs
from runs.names import printable
from sweeps.controls import lenders
from sweeps.processes import launch, processes, wait
from sweeps.rows import COMPARE
from sweeps.status import is_complete

LAST = 1 << 12  # bytes at the end of a log, of which the last line is shown


def run_here(rows, compare=None, jobs=1, logs=None):
    """Runs what is not complete, `jobs` rows at a time, then compares, if with words. Of several at
    a time each writes what it has to say into a file in `logs`. 1 where a row failed, 3 where one
    lacks videos."""
    for row in rows:  # once, for all the forks
        row.args.kind.import_model(row.args.checkpoint)
    if logs := logs if jobs > 1 else None:
        logs.mkdir(parents=True, exist_ok=True)
    codes = run_rows(rows, jobs, logs)
    if runs.STOPPED in codes.values():
        return runs.STOPPED
    if compare:
        with processes() as running:
            launch(running, COMPARE, COMPARE, compare)
            codes[COMPARE] = wait(running)[1]
    for name, code in codes.items():
        if code not in (0, 3):
            message = "its message stands above"
            print(f"{name} failed with exit code {code}; {message}", file=sys.stderr)
    return 1 if set(codes.values()) - {0, 3} else max(codes.values())


def run_rows(rows, jobs, logs):
    """{name: exit code} of the rows, begun in their order, one that takes the adapters of another
    after that. Ends early where a row was stopped."""
    waiting, lent, codes, began = list(rows), lenders(rows), {}, {}
    with processes() as running:
        while waiting or running:
            ready = (r for r in waiting if r.name not in lent or lent[r.name] in codes)
            row = next(ready, None) if len(running) < jobs else None
            if row is None:
                name, code = wait(running)
                codes[name] = code
                if logs:
                    print(said(name, code, time.monotonic() - began[name], logs), flush=True)
                if code == runs.STOPPED:
                    break
                continue
            waiting.remove(row)
            number = len(rows) - len(waiting)
            print(f"[{number}/{len(rows)}] {row.name}: {row.script} {shlex.join(row.flags)}")
            began[row.name] = time.monotonic()
            if codes.get(lent.get(row.name), 0) not in (0, 3):
                print(f"{row.name}: not run, it takes the adapters of {lent[row.name]}")
                codes[row.name] = 1
            elif is_complete(row):
                codes[row.name] = 0
            else:
                words = [*row.flags, "--out", str(row.out)]
                launch(running, row.name, row.script, words, logs and logs / f"{row.name}.txt")
    return codes


def said(name, code, seconds, logs):
    """A line on a row that has ended; of one that failed with the last that it has said."""
    path = logs / f"{name}.txt"
    if code == 0:
        return f"{name}: done in {seconds:.0f} s"
    if code == 3:
        return f"{name}: done in {seconds:.0f} s but for some videos, {path} says why"
    last = ""
    # a row that was killed at its very start has no log
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - LAST))
        lines = file.read().decode(errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "")
    return printable(f"{name}: ended with {code}: {last} ({path})")
