"""One adaptation step of a predictor's rollout: ours, frame by frame with a cache and then one pass
with gradients, against the study's, a pass over all earlier frames for each frame.

    python -m benchmarks.vjepa_step
    python -m benchmarks.vjepa_step --released --device cuda         # 305M, 256 patches a frame
"""

import argparse

import torch

from benchmarks.timing import in_turns
from predictors import ActionConditionedPredictor, modes, rollout
from predictors.clips import LatentClip
from predictors.weights import of_kinds

SMALL = {"img_size": (128, 128), "embed_dim": 192, "predictor_embed_dim": 192, "depth": 6}
SMALL |= {"num_heads": 6}


def random_case(sizes, frames, device):
    """A predictor whose layer norms adapt, and a clip of frames + 1 frames."""
    torch.manual_seed(0)
    with torch.device(device):
        predictor = ActionConditionedPredictor(**sizes).requires_grad_(False)
        for parameter in of_kinds(predictor, "layernorm").values():
            parameter.requires_grad_()
        width = predictor.action_embed_dim
        shapes = (frames + 1, predictor.patches, predictor.embed_dim), *[(frames, width)] * 2
        return predictor, LatentClip("random", "random", "", *map(torch.randn, shapes))


def backward_of(predictor, clip, make):
    """A function that makes the pairs of predicted and true frames, and takes the gradients of
    their mean error."""

    def work():
        predictor.zero_grad(set_to_none=True)
        errors = [rollout.errors(*pair)["l1"] for pair in make(predictor, clip)]
        torch.cat(errors).mean().backward()

    return work


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--frames", type=int, default=7, help="that are predicted")
    parser.add_argument("--released", action="store_true", help="the released configuration")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    predictor, clip = random_case({} if args.released else SMALL, args.frames, device)
    ways = {
        "ours": lambda *case: [modes.predict(*case, "rollout")],
        "a pass for each frame": lambda *case: modes.one_by_one(*case, "sequential"),
    }
    peaks = {}
    for name, make in ways.items():
        ways[name] = backward_of(predictor, clip, make)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            ways[name]()
            peaks[name] = f", peak {torch.cuda.max_memory_allocated(device) / 1e9:.1f} GB"
    times = in_turns(ways, device, args.repeats)
    for name, time in times.items():
        print(f"{name}: {time:.3f} s{peaks.get(name, '')}")
    ours, plain = times.values()
    print(f"rollout step, ours / a pass for each frame: ratio {ours / plain:.2f}")


if __name__ == "__main__":
    main()
