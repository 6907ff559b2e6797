"""Choosing clips: one of each category in turn, in a seeded order, no source twice."""

import csv
import json
import os
import random
import sys
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from common.data import sha256
from common.errors import UsageError
from common.results import read_json, replace_file, write_json
from common.values import at_least, frame_size, not_negative, positive
from prepare.clips import Rules, make_clip

COLUMNS = (
    "filename caption category source start_frame frames fps width height motion sha256".split()
)


def add_arguments(parser):
    """Flags of every preparation."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="clips and manifest")
    parser.add_argument("--count", type=at_least(1), default=100, help="clips, exactly")
    parser.add_argument("--seed", type=int, default=42, help="of the order that is chosen in")
    parser.add_argument(
        "--size", type=frame_size, default=(480, 832), metavar="WxH",
        help="scaled with the aspect kept, and cropped at the centre (default: 832x480)",
    )  # fmt: skip
    parser.add_argument("--fps", type=positive, help="frame rate; a file's own where not given")
    parser.add_argument(
        "--min-frames", type=at_least(1), default=46, help="anchor + generated frames (default: 46)"
    )
    parser.add_argument(
        "--max-frames", type=at_least(1), default=300, help="longer ones are cut (default: 300)"
    )
    parser.add_argument(
        "--min-motion", type=not_negative, default=0.05,
        help="mean optical flow, pixels per frame at 120x72; below it a clip is static "
        "(default: 0.05)",
    )  # fmt: skip
    parser.add_argument(
        "--max-cut", type=not_negative, default=0.22,
        help="how far one frame difference, in 0..1, may stand above its neighbours (default: "
        "0.22; hard cuts give 0.3 and more)",
    )  # fmt: skip


def prepare(candidates, args):
    """Makes args.count clips and their manifest; gives the exit code.

    Every verdict is a file in args.out/verdicts, so the same command goes on where it was stopped,
    and ends with the same manifest.
    """
    rules = Rules(
        args.size, args.fps, args.min_frames, args.max_frames, args.min_motion, args.max_cut
    )
    if any(side < 2 or side % 2 for side in args.size):
        raise UsageError(f"--size {args.size[1]}x{args.size[0]}: must be even numbers, as 832x480")
    folder = args.out / "clips"
    if folder.is_dir() and any(folder.iterdir()) and not (args.out / "verdicts").is_dir():
        raise UsageError(f"--out {args.out}: has a folder clips/ that this did not make")
    folder.mkdir(parents=True, exist_ok=True)
    same_rules(args, rules)
    chosen, rejected = [], Counter()
    with (
        ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool,
        tqdm(total=args.count, unit="clip", desc="preparing") as bar,
    ):
        for verdict in judged(candidates, rules, args, pool):
            if "rejected" in verdict:
                rejected[verdict["rejected"].split(":")[0]] += 1
            else:
                chosen.append(verdict)
                bar.update()
            if len(chosen) == args.count:
                break
        pool.shutdown(cancel_futures=True)
    kept = {Path(row["filename"]).stem for row in chosen}
    for verdict in (args.out / "verdicts").glob("*.json"):
        if verdict.stem not in kept:  # a clip that was made ahead
            (folder / f"{verdict.stem}.mp4").unlink(missing_ok=True)
    return finish(chosen, rejected, args)


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
    next candidate that passes and whose source is new. The next of every category are made ahead.
    """
    queues, used, jobs = in_order(candidates, args.seed), set(), {}

    def submit(candidate):
        if candidate.name not in jobs:
            jobs[candidate.name] = pool.submit(verdict_of, candidate, rules, args.out)
        return jobs[candidate.name]

    while any(queues):
        turns = [next_of(queue, used) for queue in queues]
        for candidate in filter(None, turns):
            submit(candidate)
        for queue, candidate in zip(queues, turns, strict=True):
            yield from until_accepted(candidate, queue, used, submit)


def next_of(queue, used):
    while queue:
        candidate = queue.pop(0)
        if candidate.source not in used:
            return candidate
    return None


def until_accepted(candidate, queue, used, submit):
    while candidate is not None:
        if candidate.source in used:  # by another category in this round
            candidate = next_of(queue, used)
            continue
        verdict = submit(candidate).result()
        yield verdict
        if "rejected" not in verdict:
            used.add(candidate.source)
            return
        candidate = next_of(queue, used)


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
    if found and found["candidate"] == asked:
        verdict = found["verdict"]
        if "rejected" in verdict:
            return verdict
        clip = out / verdict["filename"]
        if clip.is_file() and sha256(clip) == verdict["sha256"]:
            return verdict
    verdict = make_clip(candidate, rules, out / "clips")
    write_json(path, {"candidate": asked, "verdict": verdict})
    return verdict


def finish(chosen, rejected, args):
    path = args.out / "manifest.csv"
    for reason, count in rejected.most_common():
        print(f"rejected {count}: {reason}")
    if len(chosen) < args.count:
        print(
            f"--count {args.count}: only {len(chosen)} clips pass; more videos or looser rules",
            file=sys.stderr,
        )
        path.unlink(missing_ok=True)
        return 1
    replace_file(path, lambda temporary: write_manifest(temporary, chosen))
    print(f"{len(chosen)} clips of {len({c['category'] for c in chosen})} categories: {path}")
    return 0


def write_manifest(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
