"""Runs a sweep file: every row, and one baseline for each way of generating, then compares them.

    python sweep.py sweeps/groups_5_steps.yaml --nano --limit 4 --local
    python sweep.py sweeps/groups_5_steps.yaml --slurm      # an array a row, then compare.py
    python sweep.py sweeps/groups_5_steps.yaml --status

The same command goes on where it was stopped, and so does the file alone: the results' folder
remembers the flags. Checkpoint and videos come from the flags, the file, sbatch/site.sh, or with
--nano from the bundled ones. Rows that this model cannot run (more groups than blocks) are named
and left out; the exit code is 0 where the others worked, 1 where one failed, 3 where one lacks
videos, 2 where nothing started. A sweep file has the keys

    baseline: the script that runs without adaptation (--steps 0)
    shared:   flags of every row
    rows:     a list of {name, script, flags, over}; over: {key: [values]} makes a row of every
              combination, with {key} in name and flags replaced
    choose, report: {shifts, sources} of the videos that settings are chosen and reported on, as in
              sweeps/answer.yaml; the shifted clips are made first (prepare.shift)

In flags {results}NAME is the folder of the row NAME, of the same part and shift: a row with
--adapter {results}NAME/videos runs after it. Rows with --control choose no setting: they run on
the sets of report alone.
"""

import shlex
import sys
from pathlib import Path

import runs  # first: signals, and how torch's threads wait

# isort: split
import common
from common.values import folder
from report.chosen import rows_to_report
from report.table import as_text
from runs.parser import Parser
from sweeps.lists import Lists
from sweeps.remembered import folders_of, go_on, tokens_of, write_sweep
from sweeps.rows import read_sweep
from sweeps.settings import settings
from sweeps.slurm import TASKS
from sweeps.started import start, start_parts
from sweeps.status import left_out, status_table


def parser_of():
    parser = Parser(__doc__, "%(prog)s FILE [flags]")
    parser.add_argument("file", type=Path, metavar="FILE", help="a sweep, as in sweeps/")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--local", action="store_true", help="run the rows here, --jobs at a time")
    what.add_argument("--slurm", action="store_true", help="submit an array of jobs for each row")
    what.add_argument(
        "--status", action="store_true", help="videos done, running, skipped, missing"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands only")
    parser.add_argument("--nano", action="store_true", help="the bundled checkpoint and demo clips")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FOLDER",
        help="model; else the file's or site.sh's",
    )
    parser.add_argument(
        "--videos",
        type=Path,
        metavar="LIST",
        help="list of clips; else the same",
    )
    parser.add_argument(
        "--limit", type=common.at_least(1), metavar="N",
        help="first N videos only; a larger one later goes on with more, but of a file with choose "
        "or {results}",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=folder, metavar="FOLDER",
        help="of the rows' folders; results/<file>, with nano_ before it",
    )  # fmt: skip
    parser.add_argument(
        "--jobs", type=common.at_least(1), metavar="N",
        help="rows at once, for --local, each with one thread if several (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--array", type=common.at_least(1), metavar="N",
        help=f"tasks of a row, for --slurm (default: {TASKS})",
    )  # fmt: skip
    return parser


def check(args):
    if not (args.local or args.slurm or args.status or args.dry_run):
        raise common.UsageError("say what to do: --local, --slurm, --status or --dry-run")
    if args.nano and args.checkpoint:
        raise common.UsageError(
            "--nano: has its own checkpoint, --checkpoint another; give one of them"
        )


def run(args, out):
    """Runs or submits the rows, or prints their commands."""
    flags = settings(args)
    rows, unfit = read_sweep(args.file, out, *flags)
    lists = Lists.of(args.file, out, *flags)
    for name, why in unfit.items():
        print(f"{name}: {left_out(why)}", file=sys.stderr)
    if args.dry_run and (lists or not args.slurm):
        for words in [*(lists.commands().values() if lists else ()), *map(command, rows)]:
            print(shlex.join(words))
        return 0
    if not args.dry_run:
        if lists:
            lists.shared_out()  # or what is wrong with --videos and --limit, before they are kept
        write_sweep(args, out, rows, unfit)
    compare = ["--sweep", str(out), "--out", str(out / "report")]
    if not lists:
        return start(args, out, rows, compare)
    lists.make()
    return start_parts(args, out, rows, compare, rows_to_report)


def command(row):
    return [sys.executable, row.script, *row.flags, "--out", str(row.out)]


def main():
    parser = parser_of()
    args = parser.parse_args()
    folders = folders_of(args)
    for out in folders:
        if out.exists() and not out.is_dir():
            raise common.UsageError(f"--out {out}: is a file; give a folder")
    if args.status:
        for out in folders:
            if table := status_table(parser, args, out, rows_to_report):
                print(as_text(table))
        return 0
    if len(folders) > 1:
        both = " and ".join(map(str, folders))
        raise common.UsageError(f"{both} both hold this sweep; say which with --nano or --out")
    (out,) = folders
    if go_on(parser, args, out):
        print(f"{out} goes on with {shlex.join(tokens_of(args))}", file=sys.stderr)
    check(args)
    return run(args, out)


if __name__ == "__main__":
    runs.run_script(main)
