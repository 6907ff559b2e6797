"""adasteer.py on nano, five steps and the continuation of each demo clip: all that it does from the
loaded model to its summary, against the calls of the DiT and of the autoencoder that this needs,
timed alone, and against the same run without the continuation (--no-generate).

    python -m benchmarks.end_to_end
"""

import argparse
import contextlib
import functools
import io
import sys
import tempfile
from statistics import median
from unittest.mock import patch

import torch

import adasteer
import common
import runs
from benchmarks.timing import now, seconds


def whole_run(model, flags):
    """Seconds of the script's own main, from when it has the model on."""
    began = []

    def loaded(args):
        began.append(now(model.device))
        return model

    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
        patch.object(common, "load_model", loaded),
        patch.object(sys, "argv", ["adasteer.py", *flags, "--out", f"{folder}/out"]),
    ):
        adasteer.main()
        return now(model.device) - began[0]


@contextlib.contextmanager
def recorded(module, name, calls):
    """Adds every call of module.name to calls: function, arguments, whether a graph was built."""
    function = getattr(module, name)

    def call(*args, **kwargs):
        calls.append((function, args, kwargs, torch.is_grad_enabled()))
        return function(*args, **kwargs)

    setattr(module, name, call)
    try:
        yield
    finally:
        delattr(module, name)


def replay(model, calls):
    delta = torch.zeros(model.embedding_width, device=model.device, requires_grad=True)
    with model.timestep_embedding(lambda i, e, sigma: e + delta):
        for function, args, kwargs, graph in calls:
            with torch.set_grad_enabled(graph):
                out = function(*args, **kwargs)
            if graph:
                out.square().mean().backward()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--flags", default="--groups 1 --steps 5", help="of adasteer.py")
    given = parser.parse_args()
    flags = given.flags.split()
    model = common.load_model(runs.parse_args(None, adasteer.AdaSteer, flags))
    calls = []
    with contextlib.ExitStack() as stack:
        for module, name in ((model.dit, "forward"), (model.vae, "encode"), (model.vae, "decode")):
            stack.enter_context(recorded(module, name, calls))
        whole_run(model, flags)
    model.recompute(model.placement.recomputed)
    again = functools.partial(replay, model, calls)
    ways = {
        "all stages": lambda: whole_run(model, flags),
        f"its {len(calls)} calls alone": lambda: seconds(again, model.device),
        "with --no-generate": lambda: whole_run(model, [*flags, "--no-generate"]),
    }
    times = [[way() for way in ways.values()] for _ in range(given.repeats)]
    for name, taken in zip(ways, zip(*times, strict=True), strict=True):
        print(f"{name}: {median(taken):.2f} s")
    for i, name in enumerate(ways):
        ratio = median(taken[0] / taken[i] for taken in times)
        if i:
            print(f"all stages / {name}, median of {len(times)}: ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
