"""One adaptation step: ours against the plain wrapper, which recomputes every block and computes
norms, modulation and rotary embedding as their formulas are written (benchmarks.layers); and
Delta-C, which has no graph through the DiT, against AdaSteer.

    python -m benchmarks.adapt_step
"""

import argparse

import torch

import runs
from adasteer import AdaSteer
from benchmarks.layers import plain_layers
from benchmarks.timing import add_size, in_turns, model_of, random_problem
from common.adaptation import Steps, take_steps
from common.loss import Draw, draw_noise
from common.stopping import EarlyStopping
from delta_c import DeltaC

AS_PLACED = "as placed"


def steps_of(cls, model, problem, flags=(), draws=1):
    """A function that takes one step of the method, on the same draws each time. It is given how
    many blocks are recomputed, None for all; AS_PLACED where the model's placement says so."""
    args = runs.parse_args(None, cls, ["--steps", "1", *flags])
    method = cls(model, problem, args)
    sigma = torch.linspace(0.1, 0.9, draws, device=model.device)
    noise = draw_noise(torch.Generator().manual_seed(0), problem.target, draws)
    draw, stopping = Draw(problem, sigma, noise), EarlyStopping([])

    def step(recomputed=0):
        if recomputed != AS_PLACED:
            model.recompute(recomputed)
        with method.attached():
            take_steps(model, method, [draw], stopping, Steps(), lambda *_: None)

    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    add_size(parser, side=24)
    args = parser.parse_args()
    model = model_of(args)
    problem = random_problem(model, side=(args.side, args.side))
    adasteer, delta_c = (steps_of(cls, model, problem) for cls in (AdaSteer, DeltaC))

    def plain():
        with plain_layers():
            adasteer(None)

    ways = {
        "AdaSteer": adasteer,
        "AdaSteer, every block recomputed": lambda: adasteer(None),
        "AdaSteer, plain": plain,
        "Delta-C": delta_c,
    }
    times = in_turns(ways, model.device, args.repeats)
    for name, time in times.items():
        print(f"{name}: {time:.3f} s")
    ours, recomputed, plain, output = times.values()
    print(f"AdaSteer step, ours / every block recomputed: ratio {ours / recomputed:.2f}")
    print(f"AdaSteer step, ours / plain: ratio {ours / plain:.2f}")
    print(f"Delta-C step / AdaSteer step: ratio {output / ours:.2f}")


if __name__ == "__main__":
    main()
