"""How far the rows of a sweep are, from their folders."""

import argparse
import contextlib
import functools
import shlex

from common.adapters import adapter_files
from common.errors import UsageError
from runs.claims import is_live
from runs.identity import difference, network_sha256, plain_arguments, read_config
from runs.names import printable
from runs.results import read_record
from sweeps.files import load_yaml
from sweeps.remembered import go_on, is_started, tokens_of
from sweeps.rows import read_sweep
from sweeps.settings import settings

COUNTED = ("done", "running", "skipped", "missing")  # videos of a row


def status_table(parser, args, out, chosen):
    """A dict a row of the sweep in `out`, those that are left out last; none of one that is not
    started. Prints which it is. chosen(out) gives descriptions of the rows that are reported."""
    args = argparse.Namespace(**vars(args))  # which the flags of this folder complete
    if go_on(parser, args, out):
        print(f"{out}: {shlex.join(tokens_of(args))}")
    elif not is_started(out):
        print(f"{out}: not started; --local or --slurm starts it")
        if not (args.nano or args.checkpoint):
            load_yaml(args.file)  # or what is wrong with it
            return []
    rows, unfit = read_sweep(args.file, out, *settings(args))
    names = names_to_report(rows, out, chosen)
    shown = [r for r in rows if r.part != "report" or r.name in names or read_config(r.out)]
    table = [{"row": row.name, **status(row)} for row in shown if not awaits_list(row)]
    nothing = dict.fromkeys(("row", *COUNTED, "why"), "-")
    if any(map(awaits_list, rows)):
        table.append(nothing | {"row": "lists", "why": "not made yet"})
    if any(row.part for row in rows) and shown[-1].part == "choose":
        table.append(nothing | {"row": "report", "why": "begins when those of choose are done"})
    table += [nothing | {"row": name, "why": left_out(why)} for name, why in unfit.items()]
    return table


def names_to_report(rows, out, chosen):
    """Of the rows that are reported, none while settings are still to be chosen."""
    choose = [row for row in rows if row.part == "choose"]
    if not choose or not all(map(is_finished, choose)):
        return set()
    with contextlib.suppress(UsageError):  # which the sweep's own command says
        return {row["name"] for row in chosen(out)}
    return set()


def awaits_list(row):
    """Whether the row's list is one that the sweep makes, and has not made yet."""
    return bool(row.part) and not row.args.videos.is_file()


def left_out(why):
    return f"left out, this model cannot run it: {why}"


def status(row):
    """Numbers of videos done, running (claimed by a live worker), skipped and missing, and why: of
    the first that was skipped or replaced, or of a folder that holds another run, where nothing
    counts."""
    counts, reasons = dict.fromkeys(COUNTED, 0), []
    other, learned = other_run(row), learned_at(row.args)
    for video in videos_of(row.args):
        path = row.out / "videos" / f"{video.id}.json"
        record = None if other else read_record(path)
        state = record["status"] if record else "missing"
        if state == "done" and (other_file := row.args.kind.other_file(video, record)):
            state = "missing"
            reasons.append(f"{other_file} is another file than there")
        if state == "done" and path.stat().st_mtime < learned:
            state = "missing"
            reasons.append(f"{row.args.adapter} was learned anew")
        running = state != "done" and is_live(path.with_name(f"{video.id}.claim"))
        counts["running" if running else state] += 1
        if state == "skipped":
            reasons.append(record["reason"])
    return counts | {"why": printable(other or "".join(reasons[:1]))}


def learned_at(args):
    """When the newest of the adapters that a row takes was written; 0 where it takes none."""
    with contextlib.suppress(UsageError, AttributeError, OSError):  # none yet, or no such flag
        return max(file.stat().st_mtime for file in adapter_files(args.adapter))
    return 0


def other_run(row):
    """In what the folder's run differs from the row's flags, script, list and checkpoint of now,
    "" where it does not or there is none."""
    config = read_config(row.out)
    if config is None:
        path = row.out / "config.json"
        return f"{path.name} is damaged" if path.exists() else ""
    asked = row.args.kind.facts(row.args) | {
        "checkpoint_sha256": known(row.args.checkpoint, vars(row.args).get("lora")),
        "arguments": plain_arguments(row.args),
    }
    found = difference(config, asked)
    return f"another run: {found}" if found else ""


def videos_of(args):
    return args.kind.in_range(args)


def is_complete(row):
    """Whether every video is done, with the flags, script, list and checkpoint that the row has
    now."""
    if read_config(row.out) is None:
        return False  # the script will say so
    return status(row)["done"] == len(videos_of(row.args))


def is_finished(row):
    """Whether nothing is left to do: every video is done or skipped, by the run that it has now."""
    if read_config(row.out) is None:
        return False
    found = status(row)
    return not found["missing"] and not found["running"]


known = functools.cache(network_sha256)  # of a checkpoint, which all rows share
