"""Loading the model that the command line names."""

import sys

import torch

import backbones
from common.errors import UsageError
from common.placement import Placement


def load_model(args):
    """The backbone of args.checkpoint on args.device; its `frame_size` is args.size or its own."""
    device = pick_device(args.device)
    for flag, value in (("--weights", "fp8"), ("--offload", "blocks")):
        if args.compile and value in (args.weights, args.offload):  # a graph keeps what they swap
            raise UsageError(f"--compile: not together with {flag} {value}")
    if args.attention == "flash" and device.type != "cuda":
        raise UsageError(f"--attention flash: works on a GPU only, not on {device}; use sdpa")
    try:
        model = backbones.load(args.checkpoint, device, place=None, float8=args.weights == "fp8")
    except backbones.CheckpointError as error:
        raise UsageError(f"--checkpoint: {error}") from error
    if args.attention == "flash":
        use_flash_attention(model)
    size = args.size or (model.native["height"], model.native["width"])
    if any(side % model.size_multiple or side <= 0 for side in size):
        raise UsageError(
            f"--size {size[1]}x{size[0]}: this checkpoint needs multiples of {model.size_multiple}"
        )
    model.compiled = args.compile and compiles(model)
    model.frame_size = size
    model.placement = Placement(model, args)
    return model


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
    for name in model.block_names:
        model.dit.get_submodule(name).compile(backend=backend, dynamic=False)


def use_flash_attention(model):
    try:
        model.dit.use_flash_attention()
    except ImportError as error:
        raise UsageError(f"--attention flash: {error}; install flash-attn or use sdpa") from error


def pick_device(name):
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.empty(1, device=name).device  # with its index
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device {name}: not usable here ({reason}); try cpu") from error
    if device.type == "cuda":
        torch.cuda.set_device(device)  # diffusers streams on the current one
    return device
