"""Starts the rows of a sweep, here or in the queue; in two steps where it chooses settings."""

from sweeps.files import PARTS
from sweeps.local import run_here
from sweeps.slurm import TASKS, submit
from sweeps.status import is_complete, is_finished


def start(args, out, rows, compare):
    if args.slurm:
        return submit(rows, out, args.array or TASKS, compare, args.dry_run)
    return run_here(rows, compare, args.jobs or 1, out / "logs")


def start_parts(args, out, rows, compare, chosen):
    """First the rows that settings are chosen on, then, when these are done, those of which
    chosen(out) gives descriptions. 3 also where the first lack videos."""
    choose, report = ([row for row in rows if row.part == part] for part in PARTS)
    if not all(map(is_finished, choose)):
        code = start(args, out, choose, None)
        if args.slurm and not code:
            print("once these are done the same command submits those that are reported")
        if args.slurm or code not in (0, 3):
            return code
    names = {row["name"] for row in chosen(out)}
    code = start(args, out, [row for row in report if row.name in names], compare)
    lacking = not args.slurm and not all(map(is_complete, choose))
    return 3 if lacking and code == 0 else code
