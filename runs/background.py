"""Work that need not hold up the model: the next clip is decoded and the last one scored and
written while this one is adapted to."""

import os
import sys
from concurrent.futures import Executor, Future, ThreadPoolExecutor

import torch


class Inline(Executor):
    """Does at once what a thread would do: where torch computes on every core, a thread beside it
    makes both several times slower."""

    def submit(self, function, *args):
        future = Future()
        try:
            future.set_result(function(*args))
        except Exception as error:  # noqa: BLE001 - kept for result(), as a thread's would be
            future.set_exception(error)
        return future


def one_thread(device):
    """A thread where the model leaves a core to it."""
    if device.type == "cpu" and torch.get_num_threads() >= cores():
        return Inline()
    return ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))


def cores():
    if hasattr(os, "sched_getaffinity"):  # what Slurm grants; not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


class Ahead:
    """Calls function(item) in the background for the item that will probably be asked for next."""

    def __init__(self, function, device):
        self.function, self.pool, self.futures = function, one_thread(device), {}

    def stop(self):
        self.pool.shutdown(cancel_futures=True)

    def begin(self, item):
        """Where there is no thread it can wait until it is asked for."""
        if not isinstance(self.pool, Inline):
            self.futures[item.id] = self.pool.submit(self.function, item)

    def take(self, item):
        """The function's result, or its error; waits for it where it has begun."""
        future = self.futures.pop(item.id, None) or self.pool.submit(self.function, item)
        for other in self.futures.values():  # guessed wrong: another worker has that one
            other.cancel()
        self.futures.clear()
        return future.result()


class Behind:
    """Finishes one piece of work at a time in the background; the next waits for the last."""

    def __init__(self, device):
        self.pool, self.last = one_thread(device), None

    def __enter__(self):
        return self

    def __exit__(self, error, *_):
        try:
            self.finish()
        except Exception as problem:
            if error is None:
                raise
            print(f"{type(problem).__name__}: {problem}", file=sys.stderr)
        except BaseException:  # a signal, which no second one follows
            self.finish()
            raise
        finally:
            self.pool.shutdown()

    def begin(self, work):
        self.finish()
        self.last = self.pool.submit(work)

    def finish(self):
        """Waits for what has begun; raises what it raised."""
        last = self.last
        try:
            if last:
                last.result()
        finally:  # kept where a signal ends the wait: what follows the signal waits for it again
            if last and last.done():
                self.last = None
