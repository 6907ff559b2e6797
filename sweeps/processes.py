"""Processes of scripts, that end when this one is told to."""

import contextlib
import importlib
import os
import signal
import sys
from pathlib import Path

import torch

import runs
from runs.identity import ROOT
from runs.start import SIGNALS

APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND


@contextlib.contextmanager
def processes():
    """Gives {pid: name} of what `launch` has begun and `wait` not seen end; a signal, or a defect,
    ends these as well, and they keep what they have."""
    running = {}
    try:
        yield running
    finally:
        for pid in running:
            with contextlib.suppress(ProcessLookupError):  # seen to end as the signal came
                os.kill(pid, signal.SIGTERM)
        for pid in running:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def launch(running, name, script, flags, log=None):
    """Begins a script in a process of its own: a fork, which has everything imported, where forks
    are safe. log: the file for what it says; it then is one of several, and has one thread."""
    sys.stdout.flush()
    if sys.platform != "linux":
        running[spawned(script, flags, log)] = name
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until it is known here
    pid = os.fork()
    if pid:
        running[pid] = name
    else:
        running.clear()  # they are not the child's
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    if pid == 0:
        if log:
            write_to(log)
            torch.set_num_threads(1)
        sys.argv = [script, *flags]
        runs.run_script(importlib.import_module(Path(script).stem).main)


def write_to(log):
    file = os.open(log, APPEND, 0o666)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(file, stream.fileno())
        stream.reconfigure(line_buffering=True)


def spawned(script, flags, log):
    """The pid of a new Python that runs the script."""
    words, environment, actions = [sys.executable, str(ROOT / script), *flags], os.environ, []
    if log:
        environment = environment | {"OMP_NUM_THREADS": "1"}
        actions = [(os.POSIX_SPAWN_OPEN, 1, log, APPEND, 0o666), (os.POSIX_SPAWN_DUP2, 1, 2)]
    return os.posix_spawn(sys.executable, words, environment, file_actions=actions)


def wait(running):
    """(name, exit code) of the next one that ends."""
    while (found := os.waitpid(-1, 0))[0] not in running:
        pass
    pid, status = found
    return running.pop(pid), os.waitstatus_to_exitcode(status)
