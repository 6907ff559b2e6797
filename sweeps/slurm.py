"""Submits the rows of a sweep: an array of jobs each, and the comparison after them."""

import shlex
import subprocess
from pathlib import Path

import common
from runs.identity import ROOT
from runs.names import printable
from runs.results import read_json, write_json
from sweeps.controls import lenders
from sweeps.rows import COMPARE
from sweeps.status import is_complete, videos_of

TASKS = 8  # of a row's array


def submit(rows, out, tasks, compare, dry_run):
    """One array of at most `tasks` tasks per row that is not complete nor in the queue already,
    after that of the row whose adapters it takes; the numbers of the jobs go into jobs.json."""
    if Path.cwd() != ROOT:
        raise common.UsageError(f"--slurm: the jobs start where this is run; cd {ROOT} first")
    sizes = {row.name: tasks_of(row) for row in rows}  # all checked before any starts
    files = {row.name: batch_file(row) for row in rows}
    jobs = read_jobs(out / "jobs.json")
    queued = set() if dry_run else set(slurm("squeue", "--me", "--noheader", "--format=%F").split())
    waits_for, lent, begun = {}, lenders(rows), set()
    for row in rows:
        is_queued, waits = jobs.get(row.name) in queued, lent.get(row.name) in begun
        if is_queued and not waits:
            print(f"{row.name}: in the queue as job {jobs[row.name]}")
        elif is_complete(row):
            print(f"{row.name}: complete")
            continue
        else:
            if is_queued:  # it would not wait for the row whose adapters it takes
                slurm("scancel", jobs[row.name])
            begun.add(row.name)
            options = [f"--array=0-{min(tasks, sizes[row.name]) - 1}", f"--job-name={row.name}"]
            lender = waits_for.get(lent.get(row.name))
            options += after([lender] if lender else [])
            flags = [*row.flags, "--out", str(row.out)]
            jobs[row.name] = sbatch(options, files[row.name], flags, dry_run)
            keep(out, jobs, dry_run)
        waits_for[row.name] = jobs[row.name]
    if not compare:
        return 0
    if jobs.get(COMPARE) in queued:
        slurm("scancel", jobs[COMPARE])  # it would not wait for all of these
    jobs[COMPARE] = sbatch(after(waits_for.values()), "compare.sbatch", compare, dry_run)
    keep(out, jobs, dry_run)
    return 0


def after(jobs):
    """The option by which a job waits for others to end."""
    return [f"--dependency=afterany:{':'.join(jobs)}"] if jobs else []


def tasks_of(row):
    """How many a row can have: one for each video, but one where they go on from each other."""
    return 1 if row.args.kind.carries(row.args) else len(videos_of(row.args))


def read_jobs(path):
    """Numbers of jobs by row, {} where none was submitted. Raises UsageError on a damaged file: its
    rows may be in the queue."""
    jobs = read_json(path)
    if jobs is None and not path.exists():
        return {}
    if not isinstance(jobs, dict) or not all(isinstance(job, str) for job in jobs.values()):
        raise common.UsageError(
            f"{path}: is damaged, it should hold the number of each row's job; delete it once none "
            "of them is in the queue"
        )
    return jobs


def keep(out, jobs, dry_run):
    if not dry_run:
        write_json(out / "jobs.json", jobs)


def batch_file(row):
    """Its name in sbatch/. Raises UsageError where there is none."""
    path = (ROOT / "sbatch" / row.script).with_suffix(".sbatch")
    if not path.is_file():
        raise common.UsageError(f"sbatch/{path.name}: no such file; {row.script} needs one")
    return path.name


def sbatch(options, name, flags, dry_run):
    """Submits and gives the number of the job; every value is an argument, none is exported."""
    command = ["sbatch", "--parsable", *options, f"sbatch/{name}", *flags]
    print(shlex.join(command))
    if dry_run:
        return "JOB"
    job = slurm(*command).strip().partition(";")[0]
    print(f"  job {job}")
    return job


def slurm(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError as error:
        raise common.UsageError(f"--slurm: there is no {command[0]} on this machine") from error
    except subprocess.CalledProcessError as error:
        words = printable(" ".join(error.stderr.split()))
        raise common.UsageError(
            f"{command[0]}: {words or f'exit code {error.returncode}'}"
        ) from error
