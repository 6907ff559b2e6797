"""Runs a sweep file: every row, and one baseline for each way of generating, then compares them.

    python sweep.py sweeps/groups_5_steps.yaml --nano --limit 4 --local
    python sweep.py sweeps/groups_5_steps.yaml --slurm      # an array a row, then compare.py
    python sweep.py sweeps/groups_5_steps.yaml --status

The same command goes on where it was stopped. Checkpoint and videos come from the flags, from
sbatch/site.sh, or with --nano from the bundled ones. A sweep file has the keys

    baseline: the script that runs without adaptation (--steps 0)
    shared:   flags of every row
    rows:     a list of {name, script, flags, over}; over: {key: [values]} makes a row of every
              combination, with {key} in name and flags replaced
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

import runs  # first: signals, and how torch's threads wait

# isort: split
import common
from report.table import as_text
from runs.identity import ROOT, plain_arguments
from runs.results import write_json
from sweeps.local import run_here
from sweeps.rows import read_sweep
from sweeps.slurm import submit
from sweeps.status import status

SETTINGS = {"--checkpoint": "CHECKPOINT", "--videos": "VIDEOS"}


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="a sweep, as in sweeps/")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--local", action="store_true", help="run the rows here, one after the other")
    what.add_argument("--slurm", action="store_true", help="submit an array of jobs for each row")
    what.add_argument(
        "--status", action="store_true", help="videos done, running, skipped, missing"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands only")
    parser.add_argument("--nano", action="store_true", help="the bundled checkpoint and demo clips")
    parser.add_argument("--checkpoint", type=Path, metavar="FOLDER")
    parser.add_argument("--videos", type=Path, metavar="LIST")
    parser.add_argument("--limit", type=common.at_least(1), metavar="N", help="first N videos only")
    parser.add_argument(
        "--out",
        type=folder,
        help="folder of the rows' folders; results/<file>, with nano_ before it",
    )  # fmt: skip
    parser.add_argument(
        "--array", type=common.at_least(1), default=8, metavar="N", help="tasks of a row (slurm)"
    )
    args = parser.parse_args()
    if not (args.local or args.slurm or args.status or args.dry_run):
        parser.error("say what to do: --local, --slurm, --status or --dry-run")
    if args.nano and args.checkpoint:
        parser.error("--nano: has its own checkpoint, --checkpoint another; give one of them")
    return args


def folder(text):
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; give the name of a folder")
    return Path(text)


def settings(args):
    """Flags that hold where the file says nothing, and flags that hold in any case."""
    after = ["--batch-end", str(args.limit)] if args.limit else []
    for flag in SETTINGS:
        value = getattr(args, flag.removeprefix("--"))
        after += [flag, str(value)] if value else []
    if args.nano:
        nano = ROOT / "nano"
        after = ["--checkpoint", str(nano / "checkpoint"), *after]
        if not args.videos:
            after += ["--videos", str(nano / "demo" / "manifest.csv")]
        return [], after
    before = []
    for flag, variable in SETTINGS.items():
        value = site_setting(ROOT / "sbatch" / "site.sh", variable)
        before += [flag, value] if value else []
        if flag not in before + after:
            raise common.UsageError(
                f"no {flag}: pass it, write {variable}=... into sbatch/site.sh, or try --nano"
            )
    return before, after


def site_setting(path, variable):
    """What a variable is after site.sh, "" without the file."""
    if not path.is_file():
        return ""
    show = f'. "$0" > /dev/null 2>&1; printf %s "${variable}"'
    return subprocess.run(["bash", "-c", show, path], capture_output=True, text=True).stdout


def print_status(rows):
    table = [{"row": row.name, **status(row)} for row in rows]
    print(as_text(table))
    return 0


def main():
    args = parse_args()
    out = args.out or Path("results") / (("nano_" if args.nano else "") + args.file.stem)
    if out.exists() and not out.is_dir():
        raise common.UsageError(f"--out {out}: is a file; give a folder")
    rows = read_sweep(args.file, out, *settings(args))
    compare = ["--sweep", str(out), "--out", str(out / "report")]
    if args.status:
        return print_status(rows)
    if args.dry_run and not args.slurm:
        for row in rows:
            print(shlex.join([sys.executable, row.script, *row.flags, "--out", str(row.out)]))
        return 0
    keys = ("name", "baseline", "over", "template")
    described = [
        {key: getattr(row, key) for key in keys} | {"arguments": plain_arguments(row.args)}
        for row in rows
    ]
    if not args.dry_run:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "sweep.json", {"file": args.file.name, "rows": described})
    if args.slurm:
        return submit(rows, out, args.array, compare, args.dry_run)
    return run_here(rows, compare)


if __name__ == "__main__":
    runs.run_script(main)
