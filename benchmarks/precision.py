"""What bfloat16 costs against float32 on the same random model and draws: the loss, what five steps
of AdaSteer learn, and the latents that are generated with it.

    python -m benchmarks.precision     # --device cuda
"""

import argparse
import copy

import torch

import common
import runs
from adasteer import AdaSteer
from backbones.longcat import LongCat
from benchmarks.timing import add_size, model_of, random_problem


def outcome(model, problem, sampling_steps):
    """Losses of five steps, delta after them, and latents generated without and with it."""
    args = runs.parse_args(None, AdaSteer, ["--steps", "5"])
    noise = torch.randn(problem.target.shape, generator=torch.Generator().manual_seed(1))

    def generated():
        given = problem.context, problem.text, problem.text, noise
        return model.generate(*given, sampling_steps)

    method, plain = AdaSteer(model, problem, args), generated()
    with method.attached():
        losses = common.adapt(model, method, problem, args)["losses"]
        (delta,) = method.named_parameters().values()
        return {
            "loss before adapting": torch.tensor(losses[0]),
            "losses of 5 steps": torch.tensor(losses),
            "delta after 5 steps": delta.detach(),
            "generated latents": plain,
            "generated latents, adapted": generated(),
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    add_size(parser, side=24)
    parser.add_argument("--sampling-steps", type=int, default=10)
    args = parser.parse_args()
    exact = model_of(args, torch.float32)
    rounded = LongCat(copy.deepcopy(exact.dit).to(torch.bfloat16))
    problem = random_problem(exact, target=4, side=(args.side, args.side))
    theirs, ours = (outcome(m, problem, args.sampling_steps) for m in (exact, rounded))
    print("relative difference of bfloat16 to float32")
    for name, value in theirs.items():
        print(f"{name}: {((ours[name] - value).norm() / value.norm()).item():.1e}")


if __name__ == "__main__":
    main()
