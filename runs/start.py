"""What must be done before torch is loaded, so the first import of the package and of every script.

Two programs on one machine, each with as many threads as it has cores, wait for each other's
threads: spinning, they take the cores from those they wait for (benchmarks/side_by_side.py). And a
signal may come while torch is being loaded, which takes seconds.
"""

import os
import signal
import sys
from pathlib import Path

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
STOPPED = 75  # exit code after one of these: the same command goes on


def stop_at_once(number, frame):
    name = Path(sys.argv[0]).name
    print(f"{name}: stopped by {signal.Signals(number).name} before it began", file=sys.stderr)
    os._exit(STOPPED)


os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
program, root = Path(sys.argv[0]), Path(__file__).resolve().parents[1]
if program.is_file() and program.resolve().parent in (root, root / "prepare", root / "report"):
    for each in SIGNALS:  # until run_script has its own
        signal.signal(each, stop_at_once)
