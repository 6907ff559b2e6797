"""The baseline beside a run: the same videos and noise, without adaptation."""

from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from common.errors import UsageError
from runs.flags import effort_of, generation, is_table, spelt, value_of
from runs.identity import is_baseline, read_config
from runs.results import in_8_bits, read_record

SHARED = ("manifest_sha256", "checkpoint_sha256")  # facts that a run and its baseline agree in


def add_arguments(group):
    group.add_argument(
        "--baseline", type=Path, metavar="FOLDER", changes=None,
        help="a run with --steps 0 to show means beside (default: baseline* beside --out); if "
        "given, with its --save-frames, also how far frames moved",
    )  # fmt: skip


def find_baseline(args, config):
    """The folder of this run's baseline, or None. Raises UsageError where --baseline is another
    run's."""
    if args.baseline is None:
        return baseline_beside(args.out, config)
    if why := why_not(args.baseline, config):
        raise UsageError(f"--baseline {args.baseline}: {why}")
    return args.baseline


def baseline_beside(out, config):
    """The first folder baseline* beside `out` with the baseline of that config.json, or None."""
    beside = sorted(path.parent for path in out.parent.glob("baseline*/config.json"))
    return next((path for path in beside if why_not(path, config) is None), None)


def compared_with(baseline, config):
    """Folders that compare.py takes with a baseline with that config.json: it and the runs beside
    it that it is the baseline of; else, with those that it is a control of, taking more time, their
    own baseline before and it behind. [] where there is none."""
    beside = sorted(path.parent for path in baseline.parent.glob("*/config.json"))
    adapted = {
        folder: its
        for folder, its in zip(beside, map(read_config, beside), strict=True)
        if its and is_table(its.get("flags")) and not is_baseline(its["arguments"])
    }
    if own := [f for f, its in adapted.items() if difference_of(config, its) is None]:
        return [baseline, *own]
    but = effort_of(config["flags"], {})
    for folder, its in adapted.items():
        plain = baseline_beside(folder, its)
        if plain and difference_of(config, its, but) is None:
            same = [f for f, other in adapted.items() if why_not(plain, other) is None]
            return [plain, *same, baseline]
    return []


def why_not(folder, config):
    """Why `folder` does not hold the baseline of a run with that config.json, or None."""
    found = read_config(folder)
    if found is None or not is_table(found.get("flags")):
        return "is no run's folder; give that of a run with --steps 0"
    if not is_baseline(found["arguments"]):
        return "adapts; give a run with --steps 0"
    return difference_of(found, config)


def difference_of(there, here, but=()):
    """Words on the first thing in which the continuations of two configs differ, or None. but:
    names of arguments in which they may."""
    flags = there["flags"] | here["flags"]
    compared = [(name, there.get(name), here.get(name)) for name in SHARED] + [
        (spelt(flags, name), *(value_of(flags, name, x["arguments"]) for x in (there, here)))
        for name in [*generation(flags), "seed"]
        if name not in but
    ]
    for name, its, mine in compared:
        if its != mine:
            return f"is not this run's: {name} is {its} there, {mine} here"
    return None


def moved(folder, video_id, frames):
    """Root mean square difference of generated frames (F, 3, H, W) from the baseline's from the
    same noise, in levels of 8 bits; None where it kept none."""
    path = folder / "videos" / f"{video_id}.npz"
    if not path.is_file():
        return None
    try:
        with np.load(path) as arrays:
            difference = in_8_bits(frames).astype(float) - arrays["generated"]
    except (OSError, EOFError, KeyError, ValueError, BadZipFile) as error:
        raise UsageError(f"--baseline {folder}: {path.name} cannot be read ({error})") from error
    return float(np.sqrt(np.mean(difference**2)))


def shared_records(folder, out):
    """[(the baseline's record, the run's)] of the videos that both have done."""
    pairs = []
    for path in sorted((out / "videos").glob("*.json")):
        both = read_record(folder / "videos" / path.name), read_record(path)
        if all(record and record["status"] == "done" for record in both):
            pairs.append(both)
    return pairs
