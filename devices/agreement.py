"""What the processes of torchrun decide together: each says its own, all learn it. Through the
store, which outlives any of them, so that whoever does not answer can be named."""

import json
import time
from datetime import timedelta

import torch

from devices import ranks

PATIENCE = 1800.0  # seconds until a process that says nothing is taken for lost
IMPATIENCE = 60.0  # the same, after memory ran out here: others may wait for us within a step
POLL = 1.0  # seconds; signals are heard in between
said, turns = [0], [0]  # how many times all have said something, and the first has gone on


class StoodAlone(ConnectionError):
    """Memory ran out here in the middle of what the others wait for."""


def said_by_all(value, patience=PATIENCE):
    """The value of every process, in their order; values that JSON holds."""
    if ranks.count() == 1:
        return [value]
    store, said[0] = ranks.stores[0], said[0] + 1
    keys = [f"said {said[0]} {i}" for i in range(ranks.count())]
    store.set(keys[ranks.rank()], json.dumps(value))
    wait_for(store, keys, patience)
    found = [json.loads(store.get(key)) for key in keys]
    store.delete_key(f"said {said[0] - 1} {ranks.rank()}")  # all have read that
    return found


def wait_for(store, keys, patience):
    end = time.monotonic() + patience
    while True:
        try:
            return store.wait(keys, timedelta(seconds=POLL))
        except torch.distributed.DistStoreError as error:
            if time.monotonic() < end:
                continue
            silent = [str(i) for i, key in enumerate(keys) if not store.check([key])]
            raise ranks.RankLost(
                f"rank {ranks.rank()} of {ranks.count()}: no answer from rank "
                f"{', '.join(silent)} in {patience:.0f} s"
            ) from error


def with_all(attempt, recover=lambda: None):
    """A function: attempt(), after which all processes know whether one ran out of memory; then it
    is so for all."""

    def run():
        result = problem = None
        try:
            result = attempt()
        except torch.OutOfMemoryError as error:
            problem = str(error).splitlines()[0]
        try:
            problems = said_by_all(problem, IMPATIENCE if problem else PATIENCE)
        except ranks.RankLost as error:
            if not problem:
                raise
            raise StoodAlone(
                f"rank {ranks.rank()} of {ranks.count()}: out of memory ({problem}) in the middle "
                "of a step, where the others wait for it; try --checkpointing all, fewer --draws "
                "or a smaller --size, and keep other programs off this GPU"
            ) from error
        if any(problems):
            recover()
            first = next(i for i, found in enumerate(problems) if found)
            raise torch.OutOfMemoryError(f"rank {first}: {problems[first]}")
        return result

    return run if ranks.count() > 1 else attempt


def begin_turn():
    """The first process goes on, for which the others may have waited for hours."""
    if ranks.count() > 1:
        turns[0] += 1
        ranks.stores[0].set(f"turn {turns[0]}", "")


def wait_for_turn():
    turns[0] += 1
    wait_for(ranks.stores[0], [f"turn {turns[0]}"], float("inf"))
