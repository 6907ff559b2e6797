"""How the processes of torchrun end: together, and with one line.

When one of them ends torchrun stops the others by SIGTERM, half a minute later by SIGKILL. Which of
them has ended, and whether it has said why, is known from the store of torchrun's own process.
"""

import os
import sys
import threading

from devices import ranks
from devices.agreement import said_by_all
from runs.claims import machine, started

LOOK, PATIENCE = 1.0, 10.0  # seconds between looks; and after one is lost, until this one ends too
members = []  # host, process and its start, of every process
over, watchers = threading.Event(), []


def gather(device):
    """Makes the process group, once. Without torchrun nothing is done."""
    if ranks.count() > 1 and not members:
        ranks.start(device)
        members.extend(said_by_all([machine(), os.getpid(), started(os.getpid())]))
        watchers.append(threading.Thread(target=watch, daemon=True))
        watchers[0].start()


def watch():
    """Ends a process that waits in a GPU's library, where it hears no signal, for a lost one."""
    while not lost():
        if over.wait(LOOK):
            return
    if not over.wait(PATIENCE) and lost():  # else the others have ended in peace
        say_lost()
        os._exit(1)


def end(code):
    """Says that this process ends by its own will."""
    if members:
        over.set()  # a thread that asks the store while Python ends would abort the process
        for thread in watchers:
            thread.join(LOOK)
        ranks.stores[0].set(f"ended {ranks.rank()}", str(code))


def ended(i):
    """The exit code of a process that has said so, None of another."""
    store, key = ranks.stores[0], f"ended {i}"
    return int(store.get(key)) if store.check([key]) else None


def lost():
    """Those, on this machine, that have ended without a word."""
    here = machine()
    return [
        i
        for i, (host, process, began) in enumerate(members)
        if host == here and began and started(process) != began and ended(i) is None
    ]


def speaks():
    """Whether this is the process that tells what is the same for all."""
    gone = lost() if members else []
    return ranks.rank() == min(i for i in range(ranks.count()) if i not in gone)


def has_spoken():
    """Whether another one has ended with a line of its own."""
    codes = [ended(i) for i in range(len(members)) if i != ranks.rank()]
    return any(code in (1, 2) for code in codes)


def say_lost():
    """Prints which processes are lost; whether there are any."""
    gone = lost() if members else []
    if gone and speaks():
        which = ", ".join(map(str, gone))
        print(
            f"\nstopped: rank {which} of {ranks.count()} has ended without a word (killed, or out "
            "of host memory); the same command goes on where this ended",
            file=sys.stderr,
        )
        sys.stderr.flush()
    return bool(gone)
