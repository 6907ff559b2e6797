"""How time and memory of an AdaSteer step grow with latents, blocks, groups and draws: tables, and
exponents fitted to them (1: proportional).

    python -m benchmarks.scaling
"""

import argparse

import numpy as np
import torch

from adasteer import AdaSteer
from benchmarks.adapt_step import steps_of
from benchmarks.timing import MID_SIZE, in_turns, random_model, random_problem
from devices.placement import SavedBytes

BASE = {"depth": 6, "side": 16, "groups": 1, "draws": 1, "target": 3}
SWEEPS = {
    "target": (2, 4, 8, 16),
    "side": (8, 16, 24, 32),
    "depth": (3, 6, 12, 24),
    "groups": (1, 2, 3, 6),
    "draws": (1, 2, 4, 8),
}


def measure(repeats, device, hidden, **changed):
    """Median seconds of a step, and megabytes that its graph keeps."""
    size = BASE | changed
    model = random_model(device, **(MID_SIZE | {"hidden_size": hidden, "depth": size["depth"]}))
    problem = random_problem(model, target=size["target"], side=(size["side"],) * 2)
    flags = ["--groups", str(size["groups"]), "--draws", str(size["draws"])]
    step = steps_of(AdaSteer, model, problem, flags, draws=size["draws"])
    time = in_turns({"step": step}, model.device, repeats)["step"]
    with SavedBytes(model.dit) as saved:
        step()
    return time, saved.total / 1e6


def exponent(sizes, values):
    return np.polyfit(np.log(sizes), np.log(values), 1)[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="+", choices=tuple(SWEEPS), default=tuple(SWEEPS))
    args = parser.parse_args()
    torch.manual_seed(0)
    for name in args.only:
        found = []
        for size in SWEEPS[name]:
            found.append(measure(args.repeats, args.device, args.hidden, **{name: size}))
            print(f"{name} {size}: {found[-1][0]:.3f} s, graph {found[-1][1]:.0f} MB")
        sizes = [4 + x for x in SWEEPS[name]] if name == "target" else SWEEPS[name]
        sizes = [x * x for x in sizes] if name == "side" else sizes
        what = {"target": "latents (4 of context and the target)", "side": "tokens of a latent"}
        fits = (exponent(sizes, [f[i] for f in found]) for i in (0, 1))
        print("{}: time ~ n^{:.2f}, memory ~ n^{:.2f}".format(what.get(name, name), *fits))


if __name__ == "__main__":
    main()
