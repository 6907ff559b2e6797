"""Full tuning by AdamW with weights shared out over processes (devices/sharding.py): seconds of a
step, and of every process the bytes of copies, gradients and moments, which must fall as 1 / N, and
those that it receives; and what LongCat's 13.6B need on GPUs of 80 GB, predicted.

    python -m benchmarks.sharded                                  # gloo: the processes share cores
    python -m benchmarks.sharded --device cuda --processes 1 2 4 8 --hidden 2048 --depth 24

Every process computes the same, so that time falls only where memory was short. It receives, in a
step, the others' part of all weights twice, for forward and backward, in the type that is computed
in, and of the gradients once, in float32.
"""

import argparse
import json
import subprocess
import sys

import torch

import runs
from backbones.longcat import LongCat
from backbones.longcat_dit import LongCatVideoTransformer3DModel
from benchmarks.timing import MID_SIZE, add_size, in_turns, model_of, random_problem
from common.adaptation import Steps, take_steps
from common.loading import pick_device
from common.loss import Draw, draw_noise
from common.stopping import EarlyStopping
from devices import ranks
from devices.placement import BLOCK_TENSORS
from devices.shards import local
from full_tta import FullTTA
from runs.identity import ROOT

TOKENS = 8 * 30 * 52  # of LongCat's 29 frames at 832x480
ADAMW = {"weights": 2, "copies": 4, "gradients": 4, "moments": 8, "start": 4}  # bytes each
SGD = {"weights": 2, "copies": 2, "gradients": 2, "start": 2}
PER_PARAMETER = {"adamw": ADAMW, "sgd": SGD}
GPU, SHARE = 85.0, 0.92  # GB that a card of "80 GB" has, and what of it is counted on


def held(tensors):
    """Bytes that this process holds of them."""
    return sum(local(x).numel() * x.element_size() for x in tensors)


def measure(args):
    """Of this process: seconds of a step and the bytes of its state."""
    device = pick_device(args.device)
    ranks.start(device)
    args.device = str(device)
    model, found = model_of(args), {}
    problem = random_problem(model, side=(args.side, args.side))
    if ranks.count() > 1:
        from devices.sharding import Shards

        model.shards = Shards(model, True, torch.float32)
        model.shards.place(model.stays)
    method = FullTTA(model, problem, runs.parse_args(None, FullTTA, ["--steps", "1"]))
    model.recompute(None)
    optimizer, schedule = method.optimizer()
    method.optimizer = lambda: (optimizer, schedule)
    weights = method.weights.values()
    optimizer.register_step_pre_hook(
        lambda *_: found.update(gradients=held(w.grad for w in weights if w.grad is not None))
    )
    noise = draw_noise(torch.Generator().manual_seed(0), problem.target, 1)
    draw = Draw(problem, torch.tensor([0.5], device=device), noise)

    def step():
        take_steps(model, method, [draw], EarlyStopping([]), Steps(), lambda *_: None)

    with method.attached():
        times = in_turns({"step": step}, device, args.repeats)
        found["copies"] = held(weights)
    found["weights"] = held(method.copies.originals.values())
    states = (s for state in optimizer.state.values() for s in state.values())
    found["moments"] = held(s for s in states if s.ndim)
    if device.type == "cuda":
        found["peak"] = torch.cuda.max_memory_allocated(device)
    return found | {"seconds": times["step"]}


def shapes(config):
    """Parameters that are shared out, those of them outside of blocks' forwards, in the largest
    block, and those that every process has whole."""
    with torch.device("meta"):
        dit = LongCatVideoTransformer3DModel(**config)
    blocks = {f"blocks.{i}." for i in range(dit.config.depth)}
    inside = [0] * len(blocks)
    shared = whole = 0
    for name, p in dit.named_parameters():
        if p.ndim < 2:
            whole += p.numel()
            continue
        shared += p.numel()
        if name.startswith(tuple(blocks)) and f".{LongCat.stays}" not in name:
            inside[int(name.split(".")[1])] += p.numel()
    return shared, shared - sum(inside), max(inside), whole


def predicted(config, optimizer, count):
    """Bytes of a process of `count` on GPUs by what they are for."""
    shared, outside, block, whole = shapes(config)
    each = {key: n * (shared / count + whole) for key, n in PER_PARAMETER[optimizer].items()}
    if count > 1:
        del each["start"]  # the weights themselves
        # the block that computes and the next, what is outside, and the gradients of one of these
        each["gathered"] = 2 * (2 * block + outside) + 6 * max(block, outside)
    width, depth = config.get("hidden_size", 4096), config.get("depth", 48)
    return each | {"activations": 2 * TOKENS * width * (depth + BLOCK_TENSORS)}


def received(config, count, item=4):
    """Bytes that a process receives in a step; item: of the type that is computed in."""
    return shapes(config)[0] * (count - 1) / count * (2 * item + 4)


def table():
    """What LongCat's 13.6B need on each of so many GPUs, all blocks recomputed."""
    print(
        f"LongCat, 13.6B, GB on each GPU, which has {GPU:.0f}, predicted (nothing of it measured):"
    )
    for optimizer in PER_PARAMETER:
        for count in (1, 2, 4, 8):
            parts = {k: v / 1e9 for k, v in predicted({}, optimizer, count).items()}
            total = sum(parts.values())
            said = ", ".join(f"{key} {value:.1f}" for key, value in parts.items())
            fits = "fits" if total < SHARE * GPU else "does not fit"
            exchanged = f"{received({}, count, item=2) / 1e9:.0f} GB received in a step"
            print(f"  {optimizer} on {count}: {total:.0f} GB, {fits} ({said}); {exchanged}")


def start(count, flags):
    """What torchrun's processes measure, the first's."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    command += [str(count), "-m", "benchmarks.sharded", "--measure", *flags]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", action="store_true", help="in torchrun's processes")
    add_size(parser, side=16)
    args = parser.parse_args()
    if args.measure:
        found = measure(args)
        if ranks.rank() == 0:
            print(json.dumps(found))
        return
    flags = [
        f"--{name}={getattr(args, name)}" for name in "repeats hidden depth side device".split()
    ]
    config = MID_SIZE | {"hidden_size": args.hidden, "depth": args.depth}
    item = 2 if args.device == "cuda" else 4  # bytes of a weight
    shared, _, _, whole = shapes(config)
    for count in args.processes:
        found = start(count, flags)
        state = sum(found[key] for key in ("gradients", "copies", "moments"))
        plan = 16 * (shared / count + whole)
        print(
            f"{count} processes: step {found['seconds']:.3f} s, state {state / 1e6:.1f} MB each, "
            f"of the predicted ratio {state / plan:.3f}; "
            f"{received(config, count, item) / 1e6:.1f} MB received in a step, computed"
            + (f"; peak {found['peak'] / 1e9:.2f} GB" if "peak" in found else "")
        )
    table()


if __name__ == "__main__":
    main()
