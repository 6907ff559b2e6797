"""How the processes of torchrun end: together, and with one line.

When one of them ends torchrun stops the others by SIGTERM, half a minute later by SIGKILL; before
that signal is there a broken connection may have stopped them. Which of them has ended, by its own
will or without a word, and whether one has said why, is known from the store of torchrun's own
process, through a connection that nothing else waits on.
"""

import contextlib
import json
import os
import sys
import threading
import time

from common.errors import UsageError
from devices import ranks
from devices.agreement import PATIENCE, said_by_all
from runs.claims import machine, started

LOOK, LIMIT = 1.0, 10.0  # seconds between looks; and after one is lost, until this one ends too
GRACE = 3.0  # seconds in which the end of another is seen, after it broke a connection
SLOWEST = 60.0  # seconds for which one that cannot begin waits for others
stores, watchers, over, asked = [], [], threading.Event(), threading.Event()


def join():
    """Makes this process known to the others of torchrun, before anything else is done. Without
    torchrun nothing is."""
    if ranks.count() > 1 and "TORCHELASTIC_RUN_ID" in os.environ and not stores:
        ranks.stores.append(ranks.connect())
        stores.append(ranks.connect())
        me = [machine(), os.getpid(), started(os.getpid())]
        stores[0].set(f"member {ranks.rank()}", json.dumps(me))


def gather(device):
    """Makes the process group, once. Raises UsageError where one of them cannot begin."""
    if ranks.count() > 1 and not watchers:
        if problem := first_problem():
            raise UsageError(problem)
        watchers.append(threading.Thread(target=watch, daemon=True))
        watchers[0].start()
        ranks.start(device)


def first_problem(own=None):
    """An error of usage that keeps one of them from beginning, for all; None where there is none.
    own: that of this one. Asked once, before anything waits for another; later its own."""
    if not stores or asked.is_set():
        return own
    asked.set()
    try:
        found = said_by_all(own, SLOWEST if own else PATIENCE)
    except ranks.RankLost:
        if not own:
            raise
        return own
    return next(filter(None, found), None)


def watch():
    """Ends a process that waits in a library, where it hears no signal, for a lost one."""
    with contextlib.suppress(RuntimeError):  # the store is gone
        while not lost():
            if over.wait(LOOK):
                return
        if not over.wait(LIMIT) and say_lost():  # else the others have ended in peace
            os._exit(1)


def end(code):
    """Says that this process ends by its own will."""
    over.set()  # a thread that asks the store while Python ends would abort the process
    for thread in watchers:
        thread.join(LOOK)
    with contextlib.suppress(RuntimeError):
        for store in stores:
            store.set(f"ended {ranks.rank()}", str(code))


def known(key):
    """What is set under a key, or None."""
    store = stores[0]
    return store.get(key).decode() if store.check([key]) else None


def ended():
    """Exit codes of the others that have ended by their own will."""
    others = (i for i in range(ranks.count()) if i != ranks.rank())
    return [int(code) for i in others if (code := known(f"ended {i}"))]


def lost():
    """Those, on this machine, that have ended without a word."""
    gone = []
    for i in range(ranks.count()):
        host, process, began = json.loads(known(f"member {i}") or "[null, 0, null]")
        if host == machine() and began and started(process) != began:
            gone.append(i)
    return [i for i in gone if known(f"ended {i}") is None]


def absent():
    """Those that have not come as far as `join`."""
    with contextlib.suppress(RuntimeError):  # the store is gone
        return [i for i in range(ranks.count()) if stores and not known(f"member {i}")]
    return []


def end_of_others(patience):
    """The exit code that the end of others gives this one: theirs, where it was not 0, or 1 where
    one is lost, which is said. None where all go on for so many seconds."""
    end = time.monotonic() + patience
    with contextlib.suppress(RuntimeError):  # the store is gone
        while stores:
            if code := next(filter(None, ended()), 0):
                return code
            if say_lost():
                return 1
            if time.monotonic() >= end:
                break
            time.sleep(0.1)
    return None


def say(line):
    """On stderr; of several processes the first that has something to say does."""
    first = True
    with contextlib.suppress(RuntimeError):
        first = not stores or stores[0].add("said", 1) == 1
    if first:
        print(line, file=sys.stderr, flush=True)


def say_lost():
    """Whether any are lost; then it is said which."""
    if gone := lost():
        say(
            f"\nstopped: {named(gone)} has ended without a word (killed, or out of host memory); "
            "the same command goes on where this ended"
        )
    return bool(gone)


def named(some):
    return f"rank {', '.join(map(str, some))} of {ranks.count()}"
