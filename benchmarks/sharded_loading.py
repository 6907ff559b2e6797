"""Host memory that the processes of torchrun take while a checkpoint becomes weights shared out
over them: each reading the whole, or the first alone, which sends the others their parts
(devices/sharding.py); and whether both give the same bits.

    python -m benchmarks.sharded_loading --processes 2 --hidden 1024

The checkpoint is in bfloat16 and computed with in float32: where nothing is converted, processes
that read the same file share its pages.
"""

import argparse
import contextlib
import hashlib
import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import torch

import runs  # noqa: F401 - it says how torch's threads wait
from backbones import parts
from backbones.longcat import LongCat
from backbones.longcat_dit import LongCatVideoTransformer3DModel
from benchmarks.timing import add_size, model_of
from devices import ranks
from devices.agreement import said_by_all
from devices.shards import whole
from runs.identity import ROOT

LOOK = 0.002  # seconds between looks


def own_bytes():
    """Memory that is this process's alone, not of a file."""
    status = Path("/proc/self/status").read_text().partition("RssAnon:")[2]
    return 1024 * int(status.split()[0])


@contextlib.contextmanager
def peak(found):
    """Within it found[0] becomes the most that was taken beside what was before."""
    before, over = own_bytes(), threading.Event()

    def look():
        while not over.wait(LOOK):
            found[0] = max(found[0], own_bytes() - before)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def measure(folder, sent):
    """Of all processes: the peak, and a sum over the bits of all weights."""
    from devices.sharding import Shards, begin_as_first

    ranks.start(torch.device("cpu"))
    unread = sent and ranks.rank()
    found = [0]
    with peak(found):
        with parts.without_weights() if unread else contextlib.nullcontext():
            dit = parts.load_weights(LongCatVideoTransformer3DModel, folder, torch.float32)
        model = LongCat(dit, device="cpu")
        if sent:
            begin_as_first(dit)
        Shards(model, sent=sent).place(model.stays)
    digest = hashlib.sha256()
    for p in dit.parameters():
        digest.update(whole(p.detach()).numpy().tobytes())
    bits = digest.hexdigest()
    return said_by_all([found[0], bits])


def start(count, folder, way):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    command += [str(count), "-m", "benchmarks.sharded_loading", "--measure", str(folder), way]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[2])
    parser.add_argument("--measure", nargs=2, help="in torchrun's processes")
    add_size(parser, side=16)
    args = parser.parse_args()
    if args.measure:
        found = measure(Path(args.measure[0]), args.measure[1] == "first")
        if ranks.rank() == 0:
            print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as folder:
        dit = model_of(args, torch.bfloat16).dit
        dit.save_pretrained(folder)
        size = 4 * sum(p.numel() for p in dit.parameters())
        print(f"weights {size / 1e6:.0f} MB in float32")
        for count in args.processes:
            ways = {way: start(count, folder, way) for way in ("each", "first")}
            for way, found in ways.items():
                shown = ", ".join(f"{taken / 1e6:.0f}" for taken, _ in found)
                print(f"{count} processes, {way} reads: peak {shown} MB of each")
            print("same bits:", len({bits for found in ways.values() for _, bits in found}) == 1)


if __name__ == "__main__":
    main()
