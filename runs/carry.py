"""Adaptation that goes on from item to item of a run: one worker, one order, and a state that is
saved with each item, so that a run that was killed goes on as if it had not been."""

import contextlib
import hashlib
import pickle

import torch

from common.errors import UsageError
from runs.claims import Claims
from runs.results import discard, read_record, replace_file

FOLDER = "state"  # beside `videos`
WHY = "what is learned from a clip goes on to the next, so that their order is part of the run"


def add_order(group):
    group.add_argument(
        "--order", choices=("list", "seed"), default="list", changes="adaptation",
        baseline=True,  # a range is cut from the ordered list
        help="of the clips; seed: one that --seed gives",
    )  # fmt: skip


def refuse_parts(args, flag):
    """Raises UsageError where a run does not begin with the first item. flag: what carries over."""
    if args.shard != (0, 1):
        part = "/".join(map(str, args.shard))
        raise UsageError(f"--shard {part}: not with {flag}: {WHY}; one worker runs it (--array=0)")
    if args.batch_start:
        raise UsageError(f"--batch-start {args.batch_start}: not with {flag}: {WHY}; leave it out")


def in_order(items, args):
    """As listed, or in an order that the seed and each item's id give, whatever else is listed."""
    if args.order == "list":
        return items
    return sorted(items, key=lambda x: hashlib.sha256(f"{args.seed} {x.id}".encode()).digest())


def passed(items, folder):
    """How many items, in their order, are behind this run: up to the last that is done, with those
    between that were skipped. Raises UsageError where the record of one of them is gone."""
    records = [read_record(folder / f"{item.id}.json") for item in items]
    count = max((i for i, r in enumerate(records, 1) if r and r["status"] == "done"), default=0)
    for item, record in zip(items[:count], records, strict=False):
        if record is None:
            raise UsageError(
                f"--out {folder.parent}: lacks the record of {item.id}, which later ones were "
                f"adapted after: {WHY}; choose another folder"
            )
    return count


@contextlib.contextmanager
def alone(out):
    """Raises UsageError where another worker is at this folder."""
    (out / FOLDER).mkdir(exist_ok=True)
    with Claims(out / FOLDER) as claims:
        if not claims.take("worker"):
            raise UsageError(f"--out {out}: another worker is at it, and one runs alone: {WHY}")
        yield


class Carried:
    """The state after the last item that is done, in memory and in `out`; None at the start.

    A state is what an adaptation's state_dict() gives: tensors, numbers and texts, nested."""

    def __init__(self, out, last=None):
        """last: the id of that item. Raises UsageError where its state cannot be read."""
        self.folder = out / FOLDER
        self.state = None if last is None else self._read(last)

    def _path(self, name):
        return self.folder / f"{name}.pt"

    def _read(self, name):
        path = self._path(name)
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
            why = (str(error).splitlines() or ["it is empty"])[0]
            raise UsageError(
                f"{path}: the state after {name} cannot be read ({why}); without it the run cannot "
                "go on, choose another --out"
            ) from error

    def into(self, adaptation):
        """Puts it where the last item left it, or at its start."""
        if self.state is None:
            adaptation.reset()
        else:
            adaptation.load_state_dict(self.state)

    def keep(self, name, adaptation):
        """To be called before the item's record is written; that of the item before stays."""
        self.state = adaptation.state_dict()
        self.folder.mkdir(exist_ok=True)
        replace_file(self._path(name), lambda path: torch.save(self.state, path))

    def settle(self, name):
        """To be called after the item's record is written: earlier states are not needed."""
        for path in self.folder.iterdir():
            if path != self._path(name) and path.suffix in (".pt", ".tmp"):
                discard(path)
