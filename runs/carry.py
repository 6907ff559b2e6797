"""Adaptation that goes on from item to item of a run: one worker, one order, and a state that is
saved with each item, so that a run that was killed goes on as if it had not been."""

import contextlib
import hashlib
import pickle

import torch

from common.errors import StopRun, UsageError
from common.start import shrunk
from devices import ranks
from runs.claims import Claims
from runs.results import discard, read_record, save_whole

FOLDER = "state"  # beside `videos`
KINDS = (".pt", ".safetensors", ".adapter")  # of what an item leaves there
WHY = "what is learned from a clip goes on to the next, so that their order is part of the run"


def add_order(group, default="seed"):
    group.add_argument(
        "--order", choices=("list", "seed"), default=default, changes="adaptation",
        help="where what is learned goes on from one to the next; seed: one that --seed gives, but "
        "clips of a source as listed",
    )  # fmt: skip


def refuse_parts(args, flag):
    """Raises UsageError where one worker does not have all items. flag: what carries over."""
    if ranks.count() > 1:
        raise UsageError(f"{flag}: of torchrun one process, --nproc-per-node 1")
    if args.shard != (0, 1):
        part = "/".join(map(str, args.shard))
        raise UsageError(f"--shard {part}: not with {flag}: {WHY}; one worker runs it (--array=0)")
    if args.batch_start:
        raise UsageError(f"--batch-start {args.batch_start}: not with {flag}: {WHY}; leave it out")


def in_order(items, args):
    """As listed, or, where what is learned goes on, in an order that the seed and each item's id
    give; but those of one source as listed, in turn at its places: a later clip may show what an
    earlier one is scored by."""
    if args.order == "list" or not args.kind.carries(args):
        return items
    mixed = sorted(items, key=lambda x: hashlib.sha256(f"{args.seed} {x.id}".encode()).digest())
    listed = {}
    for item in items:
        listed.setdefault(item.source, []).append(item)
    waiting = {source: iter(found) for source, found in listed.items()}
    return [next(waiting[item.source]) for item in mixed]


def passed(items, folder):
    """How many items, in their order, are behind this run: up to the last that is done, with those
    between that were skipped. Raises UsageError where the record of one of them is gone, or some
    are to do that others, which are not among the items, were adapted without."""
    records = [read_record(folder / f"{item.id}.json") for item in items]
    count = max((i for i, r in enumerate(records, 1) if r and r["status"] == "done"), default=0)
    for item, record in zip(items[:count], records, strict=False):
        if record is None:
            raise UsageError(
                f"--out {folder.parent}: lacks the record of {item.id}, which later ones were "
                f"adapted after: {WHY}; choose another folder (--order seed mixes all of the "
                "range, so that another --limit is another order)"
            )
    if count < len(items):
        refuse_beyond(items, folder)
    return count


def refuse_beyond(items, folder):
    """Raises UsageError where items that are not among these are done."""
    known = {f"{item.id}.json" for item in items}
    for path in folder.glob("*.json"):
        if path.name not in known and (read_record(path) or {}).get("status") == "done":
            raise UsageError(
                f"--out {folder.parent}: {path.stem} is done, is not in this range, and began "
                f"without those that are to do: {WHY}; give the range that it had, or more"
            )


@contextlib.contextmanager
def alone(out):
    """Raises UsageError where another worker is at this folder."""
    (out / FOLDER).mkdir(exist_ok=True)
    with Claims(out / FOLDER) as claims:
        if not claims.take("worker"):
            raise UsageError(
                f"--out {out}: another worker is at it, and one runs alone: {WHY}; wait "
                "for it, or choose another --out"
            )
        yield


class Chain:
    """The items of a run that begin at what those before them left: the order is part of it. With
    `links` False they do not, and nothing is asked of it."""

    def __init__(self, out, links):
        self.out, self.links = out, links

    def done_among(self, items, done):
        """Ids of those that are not to do: `done`, and of a chain the skipped ones between."""
        self.items = items
        self.passed = self._count() if self.links else 0
        return done | {item.id for item in items[: self.passed]}

    def _count(self):
        return passed(self.items, self.out / "videos")

    @property
    def last(self):
        """The id of the last one that is done, or None."""
        return self.items[self.passed - 1].id if self.passed else None

    @contextlib.contextmanager
    def working(self):
        """Within it no other worker is at this folder."""
        with alone(self.out) if self.links else contextlib.nullcontext():
            if self.links and self._count() != self.passed:
                raise UsageError(f"--out {self.out}: another worker was at it; start again")
            yield

    def in_turn(self, pending):
        """(place, item) of those, none of which may be jumped over."""
        for count, (place, item) in enumerate(pending):
            if self.links and place != count:  # another worker's claim still stands
                raise StopRun(f"--out {self.out}: another worker has one before {item.id}")
            yield place, item

    def stand_back(self):
        """Where another worker took an item over: the state here is not that after it."""
        if self.links:
            raise StopRun(f"--out {self.out}: another worker goes on there")


class Carried:
    """The state after the last item that is done, in memory and in `out`; None at the start.

    A state has tensors, numbers and texts, nested: what an adaptation's state_dict() gives."""

    def __init__(self, chain):
        """chain: the Chain of the items. Raises UsageError where the last one's state cannot be
        read."""
        self.folder, self.last = chain.out / FOLDER, chain.last
        self.names = {item.id for item in chain.items}
        self.state = None if self.last is None else self._read(self.last)
        self.take_back()

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

    def into(self, adaptation, keep):
        """Puts it where the last item left it, shrunk towards its start, or there."""
        if self.state is None:
            adaptation.reset()
        else:
            adaptation.load_state_dict(shrunk(self.state, adaptation.start, keep))

    def keep(self, name, state):
        """To be called before the item's record is written; that of the item before stays."""
        self.next = state
        self.folder.mkdir(exist_ok=True)
        save_whole(state, self._path(name))

    def settle(self, name):
        """To be called after the item's record is written: what it has left counts, and earlier
        states are not needed."""
        self.state, self.last = self.next, name
        self._clear()

    def take_back(self):
        """To be called where an item is skipped that had left a state: it leaves none."""
        self.next = self.state
        self._clear()

    def _clear(self):
        """Removes what other items than the last that is done have left, and nothing else."""
        others = self.names - {self.last}
        for path in self.folder.glob("*"):
            unfinished = path.name.startswith(".") and path.suffix == ".tmp"
            if unfinished or (path.suffix in KINDS and path.stem in others):
                discard(path)
