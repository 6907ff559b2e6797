"""The released 13.6B configuration with random weights on one GPU: seconds, peak memory and the
share of the GPU's own matrix peak, of every method's step and of the continuation.

Each case is written when it is measured, and what is there is not measured again, so that the same
command goes on after a limit. Without a GPU, --small runs all of it on a tiny model.

    python -m benchmarks.longcat_h200 --out results/h200
"""

import argparse
import functools
import json
import platform
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from adasteer import AdaSteer
from benchmarks.adapt_step import steps_of
from benchmarks.generate import plain
from benchmarks.timing import in_turns, random_model, random_problem
from common.loading import compile_blocks
from common.placement import release
from common.results import read_json, write_json
from delta_c import DeltaC
from film_tta import FiLM
from full_tta import FullTTA
from lora_tta import LoRA
from norm_tta import NormTTA

PEAK = "matrix peak"
SMALL = {"hidden_size": 64, "depth": 4, "num_heads": 2, "caption_channels": 32}
FIRST_ATTEMPT = {"step": 4.2, "generation": 80.0}  # seconds on an H200, as it reported them
OTHERS = {
    "LoRA r=1": (LoRA, ()), "norm": (NormTTA, ()), "FiLM": (FiLM, ()), "Delta-C": (DeltaC, ()),
    "full, SGD": (FullTTA, ("--optimizer", "sgd")),
}  # fmt: skip


class Table:
    """{case: {"seconds", "peak_gb", ...}} in a file."""

    def __init__(self, path, device, repeats):
        self.path, self.device, self.repeats = path, device, repeats
        self.rows = read_json(path) or {}

    def add(self, case, make, flops=None, repeats=None):
        """Measures what make() returns unless that was done; running out of memory is a result."""
        if case not in self.rows:
            try:
                self.rows[case] = self._measured(make(), flops, repeats or self.repeats)
            except torch.OutOfMemoryError:
                self.rows[case] = {"seconds": None, "out_of_memory": True}
            release(self.device)
            write_json(self.path, self.rows)
        print(f"{case}: {json.dumps(self.rows[case])}", flush=True)

    def _measured(self, work, flops, repeats):
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        row = {"seconds": in_turns({"work": work}, self.device, repeats)["work"]}
        if self.device.type == "cuda":
            row["peak_gb"] = torch.cuda.max_memory_allocated(self.device) / 1e9
        if flops:
            row["tflops"] = flops / row["seconds"] / 1e12
            row["of_peak"] = row["tflops"] / self.rows.get(PEAK, row)["tflops"]
        return row

    def ratio(self, name, ours, theirs):
        pair = [self.rows.get(case, {}).get("seconds") for case in (ours, theirs)]
        if all(pair):
            print(f"{name}: ratio {pair[0] / pair[1]:.2f}")


def matrix_peak(table, size, times=10):
    dtype = torch.bfloat16 if table.device.type == "cuda" else torch.float32
    a, b = (torch.randn(size, size, device=table.device, dtype=dtype) for _ in range(2))
    table.add(PEAK, lambda: lambda: [a @ b for _ in range(times)], times * 2 * size**3)


def counted(work):
    """Floating-point operations of work(): products of matrices and attention."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def adaptation(table, model, problem, compiled):
    step = steps_of(AdaSteer, model, problem)
    useful = counted(step)  # nothing recomputed: what counts as useful
    for blocks in (0, model.depth // 2, model.depth):
        case = f"AdaSteer step, {blocks} recomputed{compiled}"
        table.add(case, lambda b=blocks: functools.partial(step, b), useful)
    if not compiled:
        for name, (cls, flags) in OTHERS.items():
            table.add(f"{name} step", functools.partial(steps_of, cls, model, problem, flags))


def first_attempt(table, model, problem, text_encoder_bytes):
    """Its step: every block recomputed; and what it moved for every video, from plain memory."""
    step = steps_of(AdaSteer, model, problem)
    table.add("plain: every block recomputed", lambda: functools.partial(step, None))

    def moving():
        encoder = torch.empty(text_encoder_bytes, dtype=torch.uint8)
        return lambda: encoder.to(model.device).cpu()

    table.add("plain: text encoder there and back", moving, repeats=1)


def continuation(table, model, problem, compiled, few, steps):
    """With few steps of the schedule (and its last ten) for the ratio, with all of them once."""
    given = problem.context, problem.text, problem.text, torch.randn_like(problem.target)
    ours = functools.partial(model.generate, *given)
    cases = {f"generation, {n} steps{compiled}": functools.partial(ours, n) for n in (few, steps)}
    if not compiled:
        cases[f"plain: generation, {few} steps"] = functools.partial(plain, model, *given, few)
    for case, work in cases.items():
        table.add(case, lambda w=work: w, repeats=1)


def summary(table, depth, few, steps):
    ours, generation = "AdaSteer step, 0 recomputed", f"generation, {few} steps"
    table.ratio("step, compiled / eager", f"{ours}, compiled", ours)
    table.ratio("step, ours / plain", ours, "plain: every block recomputed")
    table.ratio("generation, compiled / eager", f"{generation}, compiled", generation)
    table.ratio("generation, ours / plain", generation, f"plain: {generation}")
    cases = ours, f"generation, {steps} steps"
    step, whole = (table.rows.get(case, {}).get("seconds") for case in cases)
    if step and whole and depth == 48:
        then = 5 * FIRST_ATTEMPT["step"] + FIRST_ATTEMPT["generation"]
        print(
            f"5 steps and generation, ours / first attempt's: ratio {(5 * step + whole) / then:.2f}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="a tiny model, small latents")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory-gb", type=float, help="cap on the allocator, as a smaller GPU")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    device = torch.device(args.device)
    if args.memory_gb:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(args.memory_gb * 1e9 / total, device)
    table = Table(args.out / "longcat.json", device, args.repeats)
    side, few, steps = ((8, 8), 1, 2) if args.small else ((60, 104), 4, 50)
    matrix_peak(table, 256 if args.small else 8192)
    model = random_model(device, **(SMALL if args.small else {}))
    adapting, following = (random_problem(model, 4, n, side) for n in (3, 4))
    for compiled in ("", ", compiled"):
        if compiled:
            compile_blocks(model)
        adaptation(table, model, adapting, compiled)
        if not compiled:
            first_attempt(table, model, adapting, 1 << 20 if args.small else int(11.4e9))
        model.recompute(0)
        continuation(table, model, following, compiled, few, steps)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    print(f"{where}, torch {torch.__version__}")
    summary(table, model.depth, few, steps)


if __name__ == "__main__":
    main()
