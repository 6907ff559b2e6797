"""What must be done before torch is loaded, so the first import of the package and of every script.

Two programs on one machine, each with as many threads as it has cores, wait for each other's
threads: spinning, they take the cores from those they wait for (benchmarks/side_by_side.py). And a
signal may come while torch is being loaded, which takes seconds.
"""

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
STOPPED = 75  # exit code after one of these: the same command goes on


def stop_at_once(number, frame):
    name, (mine, alive, all_here) = Path(sys.argv[0]).name, ranks_here()
    if mine == min(alive):  # of torchrun's processes one says so
        gone = ", ".join(map(str, sorted(all_here - alive)))
        also = f"; rank {gone} of {len(all_here)} has ended" if gone else ""
        print(
            f"{name}: stopped by {signal.Signals(number).name} before it began{also}",
            file=sys.stderr,
        )
    if len(alive) > 1:
        time.sleep(1)  # in which they see that this one says it
    os._exit(STOPPED)


def ranks_here():
    """Rank of this process, of those that live, and of all that torchrun has started here."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 0, {0}, {0}
    mine, place, count = (int(os.environ[x]) for x in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    parent, alive = os.getppid(), {mine}
    children = Path(f"/proc/{parent}/task/{parent}/children")
    for process in children.read_text().split() if children.exists() else ():
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
            alive |= {int(word[5:]) for word in words if word.startswith(b"RANK=")}
    return mine, alive, {*range(mine - place, mine - place + count)}


os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
program, root = Path(sys.argv[0]), Path(__file__).resolve().parents[1]
ours = [root / room for room in ("", "prepare", "report", "litevsr")]
if program.is_file() and program.resolve().parent in ours:
    for each in SIGNALS:  # until run_script has its own
        signal.signal(each, stop_at_once)
