"""From the command to the end of the first step on nano, imports included, with the prompts in the
cache; and the peak of host memory of a whole run over that of importing torch.

    python -m benchmarks.start
"""

import os
import subprocess
import sys
import tempfile
import time
from statistics import median

from runs.identity import ROOT

FIRST_STEP = """
import os, sys, time
import adasteer

from common.adaptation import Steps

def first(*given):  # called when a step is done
    print(time.time(), flush=True)
    os._exit(0)

Steps.add = first
adasteer.main()
"""
PEAK = """
import resource
{}
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, flush=True)
"""


def last_line(code, *flags):
    """Of what a new interpreter prints that runs the code, as a number."""
    done = subprocess.run(
        [sys.executable, "-c", code, *flags], cwd=ROOT, check=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ,
    )  # fmt: skip
    return float(done.stdout.splitlines()[-1])


def main():
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--groups", "1", "--steps", "5", "--out"]
        run = PEAK.format("import adasteer; adasteer.main()")
        peak = last_line(run, *flags, f"{folder}/whole")  # and the prompts are cached now
        torch_alone = last_line(PEAK.format("import torch"))
        times = []
        for i in range(5):
            began = time.time()
            times.append(last_line(FIRST_STEP, *flags, f"{folder}/{i}") - began)
    print(f"to the end of the first step: {median(times):.1f} s (largest {max(times):.1f} s)")
    print(f"peak host memory {peak:.2f} GB, importing torch {torch_alone:.2f} GB: "
          f"{peak - torch_alone:.2f} GB more")  # fmt: skip


if __name__ == "__main__":
    main()
