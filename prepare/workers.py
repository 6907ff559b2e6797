"""The processes that make clips. Signals are for the program that started them; they end with it,
however that ends."""

import contextlib
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process, resource_tracker

from common.start import SIGNALS


@contextlib.contextmanager
def start_workers():
    """A pool with a process for each processor. After an error or a signal nothing is waited
    for."""
    resource_tracker.ensure_running()  # it would let signals in, were it started by `submit`
    pool = ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), end_with_parent)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown(cancel_futures=True)


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
