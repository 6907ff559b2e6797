"""The released 13.6B configuration with random weights on one GPU: seconds, peak memory and the
share of the GPU's own matrix peak, of every method's step and of the continuation.

Each case is written when it is measured, and what is there is not measured again, so that the same
command goes on after a limit. With --memory-gb only what a run would do by itself on a smaller GPU
is measured, in a table of its own. Without a GPU, --small runs all of it on a tiny model.

    python -m benchmarks.longcat_h200 --out results/h200
    python -m benchmarks.longcat_h200 --out results/h200 --memory-gb 24
"""

import argparse
import functools
import json
import platform
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from torch.utils.flop_counter import FlopCounterMode

import runs
from adasteer import AdaSteer
from backbones.longcat import LongCat
from benchmarks.adapt_step import AS_PLACED, steps_of
from benchmarks.generate import plain
from benchmarks.timing import in_turns, random_model, random_problem
from common.errors import StopRun
from common.loading import pick_device
from common.loss import draw_noise, flow_matching_loss
from delta_c import DeltaC
from devices.compiling import compile_blocks
from devices.placement import Placement, release
from film_tta import FiLM
from full_tta import FullTTA
from lora_tta import LoRA
from norm_tta import NormTTA
from runs.results import read_json, write_json

PEAK = "matrix peak"
SMALL = {"hidden_size": 64, "depth": 4, "num_heads": 2, "caption_channels": 32}
SMALL_VAE = {"base_dim": 8, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
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

    def add(self, case, make, flops=None, repeats=None, more=dict):
        """Measures what make() returns unless that was done; running out of memory is a result.
        more() is added to the row."""
        if case not in self.rows:
            try:
                self.rows[case] = self._measured(make(), flops, repeats) | more()
            except (torch.OutOfMemoryError, StopRun):
                self.rows[case] = {"seconds": None, "out_of_memory": True}
            release(self.device)
            write_json(self.path, self.rows)
        print(f"{case}: {json.dumps(self.rows[case])}", flush=True)

    def _measured(self, work, flops, repeats):
        repeats = self.repeats if repeats is None else repeats
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
    """Floating-point operations of work(): products of matrices and attention. Not of what is to be
    compiled: before July 2026 torch never compiles what it first meets while these are counted."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@torch.no_grad()
def forward(model, problem):
    noise = draw_noise(torch.Generator().manual_seed(0), problem.target)
    flow_matching_loss(model, problem, torch.tensor([0.5], device=model.device), noise)


def useful_flops(model, problem):
    """Of an AdaSteer step, without the second forward of one that fits into any memory."""
    step = steps_of(AdaSteer, model, problem)
    return counted(lambda: step(None)) - counted(lambda: forward(model, problem))


def graphs():
    """How many torch has tried to compile, and how many it did."""
    return {"graphs": dict(torch._dynamo.utils.counters["frames"])}


def adaptation(table, model, problem, compiled, useful):
    step, more = steps_of(AdaSteer, model, problem), graphs if compiled else dict
    for blocks in (0,) if compiled else (0, model.depth // 2, model.depth):
        case = f"AdaSteer step, {blocks} recomputed{compiled}"
        table.add(case, lambda b=blocks: functools.partial(step, b), useful, more=more)
    if not compiled:
        for name, (cls, flags) in OTHERS.items():
            table.add(  # all blocks recomputed: there is room for every method then
                f"{name} step",
                lambda c=cls, f=flags: functools.partial(steps_of(c, model, problem, f), None),
            )


def first_attempt(table, model, problem, text_encoder_bytes):
    """Its step: every block recomputed; and what it moved for every video, from plain memory."""
    step = steps_of(AdaSteer, model, problem)
    table.add("plain: every block recomputed", lambda: functools.partial(step, None))

    def moving():
        encoder = torch.empty(text_encoder_bytes, dtype=torch.uint8)
        return lambda: encoder.to(model.device).cpu()

    table.add("plain: text encoder there and back", moving, repeats=1)


def generation(model, problem, steps, way=LongCat.generate):
    noise = torch.randn_like(problem.target)
    return functools.partial(way, model, problem.context, problem.text, problem.text, noise, steps)


def continuation(table, model, problem, compiled, few, steps):
    """With few steps of the schedule (and its last ten) for the ratio, with all of them once. These
    take long: what was run by then has warmed the GPU."""
    cases = {f"generation, {few} steps{compiled}": (generation(model, problem, few), 1)}
    if not compiled:
        cases[f"generation, {steps} steps"] = generation(model, problem, steps), 0
        cases[f"plain: generation, {few} steps"] = generation(model, problem, few, plain), 0
    for case, (work, repeats) in cases.items():
        table.add(case, lambda w=work: w, repeats=repeats)


def pixels(table, model, side):
    frames = torch.rand(1, 3, 29, 8 * side[0], 8 * side[1])
    latents = torch.randn(1, 16, 8, *side, device=model.device)
    table.add("encode 29 frames", lambda: lambda: model.encode(frames), repeats=1)
    table.add("decode 8 latents", lambda: lambda: model.decode(latents), repeats=1)


def as_placed(table, model, adapting, following, few):
    """With the plan that a run chooses by itself, and its own retreats."""
    model.placement = Placement(model, runs.parse_args(None, AdaSteer, []))
    model.placement.begin(0)
    step = steps_of(AdaSteer, model, adapting)
    generate = generation(model, following, few)
    says = model.placement.describe
    table.add(f"AdaSteer step, {AS_PLACED}", lambda: lambda: step(AS_PLACED), more=says)
    table.add(
        f"generation, {few} steps, {AS_PLACED}",
        lambda: lambda: model.placement.run(generate), repeats=0, more=says,
    )  # fmt: skip
    del model.placement


def everything(table, model, adapting, following, small, few, steps):
    matrix_peak(table, 256 if small else 8192)
    useful = useful_flops(model, adapting)
    for compiled in ("", ", compiled"):
        if compiled:
            compile_blocks(model)
        adaptation(table, model, adapting, compiled, useful)
        if not compiled:
            first_attempt(table, model, adapting, 1 << 20 if small else int(11.4e9))
        model.recompute(0)
        continuation(table, model, following, compiled, few, steps)


def summary(table, depth, few, steps):
    ours, generation = "AdaSteer step, 0 recomputed", f"generation, {few} steps"
    table.ratio("step, compiled / eager", f"{ours}, compiled", ours)
    table.ratio("step, ours / plain", ours, "plain: every block recomputed")
    table.ratio("generation, compiled / eager", f"{generation}, compiled", generation)
    table.ratio("generation, ours / plain", generation, f"plain: {generation}")
    cases = ours, f"generation, {steps} steps", "encode 29 frames", "decode 8 latents"
    found = [table.rows.get(case, {}).get("seconds") for case in cases]
    if all(found) and depth == 48:
        then = 5 * FIRST_ATTEMPT["step"] + FIRST_ATTEMPT["generation"]
        ratio = (4 * found[0] + sum(found)) / then
        print(f"5 steps, generation, encode, decode / first attempt's: ratio {ratio:.2f}")
        print("  the first attempt's number has no encode and decode, neither has metrics")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="a tiny model, small latents")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory-gb", type=float, help="cap on the allocator, as a smaller GPU")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    device, name = pick_device(args.device), "longcat"
    if args.memory_gb:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(args.memory_gb * 1e9 / total, device)
        name += f"_{args.memory_gb:g}gb"
    table = Table(args.out / f"{name}.json", device, args.repeats)
    side, tokens, few, steps = ((8, 8), 64, 1, 2) if args.small else ((60, 104), 512, 4, 50)
    model = random_model(device, on_host=bool(args.memory_gb), **(SMALL if args.small else {}))
    model.vae = AutoencoderKLWan(**(SMALL_VAE if args.small else {})).eval().requires_grad_(False)
    model.frame_size, model.compiled = (8 * side[0], 8 * side[1]), False
    adapting, following = (random_problem(model, 4, n, side, tokens) for n in (3, 4))
    as_placed(table, model, adapting, following, few)
    if not args.memory_gb:
        pixels(table, model, side)
        everything(table, model, adapting, following, args.small, few, steps)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    print(f"{where}, torch {torch.__version__}")
    summary(table, model.depth, few, steps)


if __name__ == "__main__":
    main()
