"""Runs the rows of a sweep on this machine, one after the other, and compares them."""

import importlib
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import runs
from runs.identity import ROOT
from sweeps.status import is_complete


def run_here(rows, compare=None):
    """Runs what is not complete, then compares, if with words. 1 where a row failed, 3 where one
    lacks videos."""
    codes = {}
    for row in rows:  # once, for all the forks
        row.args.kind.import_model(row.args.checkpoint)
    for number, row in enumerate(rows, 1):
        print(f"[{number}/{len(rows)}] {row.name}: {row.script} {shlex.join(row.flags)}")
        codes[row.name] = (
            0 if is_complete(row) else call(row.script, *row.flags, "--out", str(row.out))
        )
        if codes[row.name] == runs.STOPPED:
            return runs.STOPPED
    if compare:
        codes["compare.py"] = call("compare.py", *compare)
    for name, code in codes.items():
        if code not in (0, 3):
            print(f"{name} failed with exit code {code}; its message stands above", file=sys.stderr)
    return 1 if set(codes.values()) - {0, 3} else max(codes.values())


def call(script, *flags):
    """The exit code of a script, in a process of its own: a fork, which has everything imported,
    where forks are safe."""
    if sys.platform != "linux":
        return subprocess.call([sys.executable, str(ROOT / script), *flags])
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        sys.argv = [script, *flags]
        runs.run_script(importlib.import_module(Path(script).stem).main)
    try:
        _, status = os.waitpid(child, 0)
    except BaseException:  # a signal: the row ends as well, and keeps what it has
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)
        raise
    return os.waitstatus_to_exitcode(status)
