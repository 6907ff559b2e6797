"""Choosing clips: one of each category in turn, in a seeded order, of each source so many."""

import csv
import json
import math
import os
import random
import sys
from collections import Counter, defaultdict
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from common.data import real, sha256
from common.errors import StopRun, UsageError
from prepare.make import Rules, make_clip
from prepare.workers import start_workers, submit
from runs.names import printable, unusable
from runs.results import read_json, replace_file, write_json

COLUMNS = (
    "filename caption category source start_frame frames fps width height motion sha256".split()
)


def prepare(candidates, args):
    """Makes args.count clips, or all that pass, and their manifest; gives the exit code.

    Every verdict is a file in args.out/verdicts, so the same command goes on where it was stopped,
    and ends with the same manifest.
    """
    rules = Rules(
        args.size, args.fps, args.min_frames, args.max_frames, args.min_motion, args.max_cut
    )
    if args.max_frames < args.min_frames:
        raise UsageError(f"--max-frames {args.max_frames}: is below --min-frames {args.min_frames}")
    folder = args.out / "clips"
    refuse_overwriting(candidates, args)
    folder.mkdir(parents=True, exist_ok=True)
    same_rules(args, rules)
    chosen, rejected = [], unusable_names(candidates)
    candidates = [c for c in candidates if unusable(c.name) is None]
    try:
        choose(candidates, rules, args, chosen, rejected)
    except BrokenProcessPool as error:
        raise StopRun(
            "a process that makes clips was killed, perhaps for want of memory; the same command "
            "goes on"
        ) from error
    kept = {Path(row["filename"]).stem for row in chosen}
    for verdict in (args.out / "verdicts").glob("*.json"):
        if verdict.stem not in kept:  # a clip that was made ahead
            (folder / f"{verdict.stem}.mp4").unlink(missing_ok=True)
    return finish(chosen, rejected, args)


def refuse_overwriting(candidates, args):
    """Raises UsageError where writing to --out would replace what is there."""
    clips, manifest = real(args.out / "clips"), real(args.out / "manifest.csv")
    if clips.is_dir() and any(clips.iterdir()) and not (args.out / "verdicts").is_dir():
        raise UsageError(f"--out {args.out}: has a folder clips/ that this did not make")
    paths = {c.path for c in candidates}
    if any(clips in (*p.absolute().parents, *real(p).parents) for p in paths):
        raise UsageError(
            f"--out {args.out}: source videos lie in its folder clips/, where they would be "
            "overwritten; choose another folder"
        )
    if real(args.source) == manifest:
        raise UsageError(
            f"--out {args.out}: SOURCE {args.source} would be overwritten; choose another folder"
        )


def unusable_names(candidates):
    return [f"its name {why}" for c in candidates if (why := unusable(c.name))]


def choose(candidates, rules, args, chosen, rejected):
    """Fills the lists `chosen` with rows of the manifest and `rejected` with why others are not."""
    with (
        start_workers() as pool,
        tqdm(total=args.count, unit="clip", desc="preparing") as bar,
    ):
        for verdict in judged(candidates, rules, args, pool):
            if "rejected" in verdict:
                rejected.append(verdict["rejected"])
            else:
                chosen.append(verdict)
                bar.update()
            if len(chosen) == args.count:
                break


def same_rules(args, rules):
    asked = json.loads(json.dumps(asdict(rules) | {"seed": args.seed, "source": args.source.name}))
    path = args.out / "verdicts" / "rules.json"
    path.parent.mkdir(exist_ok=True)
    if (read_json(path) or asked) != asked:
        raise UsageError(
            f"--out {args.out}: was made with {read_json(path)}; choose another folder"
        )
    write_json(path, asked)


def judged(candidates, rules, args, pool):
    """Verdicts in the order in which clips are chosen: rounds over the categories, in each the
    next candidate that passes and whose source has not given args.per_source clips yet. The next
    of every category are made ahead, and some more where there are more processors.
    """
    queues, jobs = in_order(candidates, args.seed), {}
    left = defaultdict(lambda: args.per_source or math.inf)
    ahead = (os.cpu_count() or 1) // max(1, len(queues))

    def job(candidate):
        if candidate.name not in jobs:
            jobs[candidate.name] = submit(pool, verdict_of, candidate, rules, args.out)
        return jobs[candidate.name]

    while any(queues):
        turns = [next_of(queue, left) for queue in queues]
        for candidate in [*filter(None, turns), *(c for queue in queues for c in queue[:ahead])]:
            if left[candidate.source]:
                job(candidate)
        for queue, candidate in zip(queues, turns, strict=True):
            yield from until_accepted(candidate, queue, left, job)


def next_of(queue, left):
    while queue:
        candidate = queue.pop(0)
        if left[candidate.source]:
            return candidate
    return None


def until_accepted(candidate, queue, left, job):
    while candidate is not None:
        if not left[candidate.source]:  # taken by another category in this round
            candidate = next_of(queue, left)
            continue
        verdict = job(candidate).result()
        yield verdict
        if "rejected" not in verdict:
            left[candidate.source] -= 1
            return
        candidate = next_of(queue, left)


def in_order(candidates, seed):
    """One list a category, each and all of them shuffled; the order of the files does not count."""
    lists, order = defaultdict(list), random.Random(seed)
    for candidate in sorted(candidates, key=lambda c: c.name):
        lists[candidate.category].append(candidate)
    queues = [lists[name] for name in sorted(lists)]
    for queue in queues:
        order.shuffle(queue)
    order.shuffle(queues)
    return queues


def verdict_of(candidate, rules, out):
    """Makes the clip, unless that was done before."""
    path, asked = out / "verdicts" / f"{candidate.name}.json", repr(candidate)
    found = read_json(path)
    if isinstance(found, dict) and found.get("candidate") == asked:
        verdict = found.get("verdict")
        if still_holds(verdict, out / "clips" / f"{candidate.name}.mp4"):
            return verdict
    verdict = make_clip(candidate, rules, out / "clips")
    write_json(path, {"candidate": asked, "verdict": verdict})
    return verdict


def still_holds(verdict, clip):
    """Whether what was read is a whole verdict, and a clip that it speaks of is there."""
    if not isinstance(verdict, dict):
        return False
    if "rejected" in verdict:
        return isinstance(verdict["rejected"], str)
    whole = set(COLUMNS) == verdict.keys() and verdict["filename"] == f"clips/{clip.name}"
    return whole and clip.is_file() and sha256(clip) == verdict["sha256"]


def finish(chosen, rejected, args):
    path = args.out / "manifest.csv"
    kinds = Counter(reason.partition(":")[0] for reason in rejected)
    for kind, count in kinds.most_common():
        first = next(reason for reason in rejected if reason.partition(":")[0] == kind)
        why = first.removeprefix(kind).replace(": ", ", as ", 1)
        print(printable(f"rejected {count}: {kind}{why}"))
    if rejected:
        print(f"{args.out}/verdicts has the reason of each")
    if len(chosen) < (args.count or 1):
        asked = (
            f"--count {args.count}: only {len(chosen)} clips pass"
            if args.count
            else ("no clip passes")
        )
        print(f"{asked}; more videos or looser rules", file=sys.stderr)
        path.unlink(missing_ok=True)
        return 1
    replace_file(path, lambda temporary: write_manifest(temporary, chosen))
    categories, sources = (len({c[name] for c in chosen}) for name in ("category", "source"))
    print(f"{len(chosen)} clips, {categories} categories, {sources} sources: {path}")
    return 0


def write_manifest(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
