"""Two programs on one machine: how much slower is each than alone?

    python -m benchmarks.side_by_side

Runs full_tta.py over the demo clips, alone and twice at once, with threads that sleep while they
wait for each other (OMP_WAIT_POLICY=PASSIVE, which the scripts set) and with threads that spin.
Prints the median seconds a clip; the first clip of a program, which finds caches cold, is left out.
Two that share the cores fairly take twice the time.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from common.values import at_least
from runs.identity import ROOT
from runs.results import read_record


def seconds_per_clip(programs, policy, steps):
    """Of so many programs that begin together, each with a folder of its own."""
    environment = os.environ | {"OMP_WAIT_POLICY": policy}
    with tempfile.TemporaryDirectory() as folder:
        outs = [Path(folder) / str(number) for number in range(programs)]
        started = [
            subprocess.Popen(
                [sys.executable, ROOT / "full_tta.py", "--steps", str(steps), "--out", out],
                env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
            for out in outs
        ]  # fmt: skip
        if any(program.wait() for program in started):
            raise SystemExit("full_tta.py failed; run it by hand")
        found = [
            [read_record(path)["total_seconds"] for path in sorted(out.glob("videos/*.json"))]
            for out in outs
        ]
    return median(seconds for each in found for seconds in each[1:])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=at_least(1), default=10)
    parser.add_argument("--rounds", type=at_least(1), default=3)
    args = parser.parse_args()
    for policy in ("PASSIVE", "ACTIVE"):
        alone, beside = [], []
        for _ in range(args.rounds):
            alone.append(seconds_per_clip(1, policy, args.steps))
            beside.append(seconds_per_clip(2, policy, args.steps))
        one, two = median(alone), median(beside)
        print(
            f"{policy}: alone {one:.2f} s a clip ({min(alone):.2f} to {max(alone):.2f}), beside "
            f"another {two:.2f} s ({min(beside):.2f} to {max(beside):.2f}): {two / one:.2f} times"
        )


if __name__ == "__main__":
    main()
