"""Runs of several processes for tests: torchrun on the processor, where gloo connects them."""

import json
import os
import re
import subprocess
import sys

from safetensors.torch import load_file
from test_run import ROOT

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def start(count, script, *flags, options=(), environment=None):
    """The started torchrun, with options of its own; 0 is the script without it."""
    command = [*TORCHRUN, str(count), *options] if count else [sys.executable]
    return subprocess.Popen(
        [*command, *map(str, [script, *flags])], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=ENVIRONMENT | (environment or {}),
    )  # fmt: skip


def run(count, script, *flags, code=0, **more):
    """What it said on stdout and on stderr, at its end."""
    process = start(count, script, *flags, **more)
    said, errors = process.communicate(timeout=1200)
    assert process.returncode == code, errors
    return said, errors


def our_lines(errors):
    """What the script says about its end, not torchrun's own report."""
    return [line for line in errors.splitlines() if re.search(r"error: |stopped", line)]


def records(out):
    """What is in the videos' JSONs beside times, memory and where weights were."""
    found = {}
    for path in sorted((out / "videos").glob("*.json")):
        record = json.loads(path.read_text())
        left_out = ("_seconds", "peak_memory_gb", "placement")
        found[path.stem] = {k: v for k, v in record.items() if not k.endswith(left_out)}
    return found


def furthest(one, other):
    """The largest difference of two runs' adapters, of which there is at least one."""
    paths = [*(one / "videos").rglob("*.safetensors")]
    assert paths
    return max(
        float((value - theirs[name]).abs().max())
        for path in paths
        for theirs in [load_file(other / path.relative_to(one))]
        for name, value in load_file(path).items()
    )


def flat(value, path=()):
    """{path: number or text} of what a JSON holds."""
    if not isinstance(value, dict | list):
        return {path: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {key: each for name, part in items for key, each in flat(part, (*path, name)).items()}


def differences(one, other):
    """Of two runs' records: {path: both values}, numbers where they differ by more than 1e-6 of
    themselves (scores of generated frames, and sums over all weights, by more than 1e-5)."""
    one, other = flat(one), flat(other)
    assert one and one.keys() == other.keys()
    both = {path: (value, other[path]) for path, value in one.items() if value != other[path]}
    return {path: pair for path, pair in both.items() if not close(*pair, limit(path))}


def limit(path):
    return (
        1e-5
        if re.search("penalties|norms|distances|psnr|ssim|flow|warping|lpips", str(path))
        else 1e-6
    )


def close(one, other, relative):
    return isinstance(one, float) and abs(one - other) <= relative * max(1e-3, abs(one))
