"""The processes that make clips. Signals are for the program that started them; they end with it,
however that ends."""

import contextlib
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process, resource_tracker

from runs.start import SIGNALS

QUIET = "ignore::UserWarning:multiprocessing.resource_tracker"


@contextlib.contextmanager
def start_workers():
    """A pool with a process for each processor. After an error or a signal nothing is waited
    for."""
    start_tracker()
    pool = ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), end_with_parent)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown(cancel_futures=True)


def start_tracker():
    """Python's process that removes semaphores which a killed program leaves: without a word. Now,
    since its start would let signals in where `submit` blocks them."""
    before = os.environ.get("PYTHONWARNINGS", "")
    os.environ["PYTHONWARNINGS"] = f"{before},{QUIET}".strip(",")
    try:
        resource_tracker.ensure_running()
    finally:
        os.environ["PYTHONWARNINGS"] = before


def end_with_parent():
    def watch():
        parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def submit(pool, *job):
    """pool.submit; a process that it starts inherits that signals are blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        return pool.submit(*job)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
