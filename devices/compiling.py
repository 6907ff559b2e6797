"""torch.compile of a model's repeated block."""

import sys

import torch

from devices.paths import all_paths


def compiles(model):
    """Compiles the model's blocks when they are first run, where this machine can."""
    try:
        torch.compile(torch.square)(torch.zeros(2, device=model.device))
    except RuntimeError as error:  # no C++ compiler, no triton
        reason = str(error).strip().splitlines()[0]
        print(f"--compile: not possible here, goes on without ({reason})", file=sys.stderr)
        return False
    compile_blocks(model)
    return True


def compile_blocks(model, backend="inductor"):
    """torch.compile of the repeated block, once for every shape it meets; sites stay outside. What
    cannot be compiled runs as it is."""
    torch._dynamo.config.suppress_errors = True
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.utils.counters["frames"].clear()
    for name in all_paths(model.stacks):
        model.dit.get_submodule(name).compile(backend=backend, dynamic=False)


def every_graph_compiled():
    """Whether torch.compile has compiled something of the blocks, and left nothing as it is."""
    frames = torch._dynamo.utils.counters["frames"]
    return 0 < frames["ok"] == frames["total"]
