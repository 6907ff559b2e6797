"""Sampling: context in a key/value cache and guidance branches in one batch, against neither.

python -m benchmarks.generate
"""

import argparse
import itertools

import torch

from backbones.sampling import guide, schedule
from benchmarks.timing import add_size, in_turns, model_of, random_problem


@torch.no_grad()
def plain(model, context, text, negative, noise, steps):
    """Every evaluation reads the context again, once for each branch of the guidance."""
    latents = noise
    for sigma, following in itertools.pairwise(schedule(model.scheduler, steps).to(noise.device)):
        branches = [model.velocity(latents, sigma[None], context, t) for t in (negative, text)]
        latents = latents + (following - sigma) * guide(torch.cat(branches), 4.0)
    return latents


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    add_size(parser, side=16)
    parser.add_argument("--steps", type=int, default=4, help="of the schedule, and ten more")
    args = parser.parse_args()
    model = model_of(args)
    problem = random_problem(model, target=4, side=(args.side, args.side))
    context, text, noise = problem.context, problem.text, torch.randn_like(problem.target)
    ways = {
        "cache and one batch": lambda: model.generate(context, text, text, noise, args.steps),
        "plain": lambda: plain(model, context, text, text, noise, args.steps),
    }
    ours, theirs = (way() for way in ways.values())
    error = (ours - theirs).abs().max() / theirs.abs().max()
    times = in_turns(ways, model.device, args.repeats)
    for name, time in times.items():
        print(f"{name}: {time:.2f} s")
    print(f"largest difference of the latents: {error:.1e} of their largest value")
    ours, theirs = times.values()
    print(f"generation, ours / plain: ratio {ours / theirs:.2f}")


if __name__ == "__main__":
    main()
