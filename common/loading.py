"""Loading the model that the command line names."""

import torch

import backbones
from common.errors import UsageError
from devices.compiling import compiles
from devices.placement import Placement


def geometry_of(args):
    """The geometry of args.checkpoint, of which no weight is read. Raises UsageError."""
    if not args.checkpoint.is_dir():
        raise UsageError(f"--checkpoint {args.checkpoint}: no such folder")
    try:
        return backbones.geometry(args.checkpoint)
    except backbones.CheckpointError as error:
        raise UsageError(f"--checkpoint: {error}") from error


def load_model(args):
    """The backbone of args.checkpoint on args.device; its `frame_size` is args.size or its own."""
    device = pick_device(args.device)
    for flag, value in (("--weights", "fp8"), ("--offload", "blocks")):
        if args.compile and value in (args.weights, args.offload):  # a graph keeps what they swap
            raise UsageError(f"--compile: not together with {flag} {value}")
    try:
        model = backbones.load(args.checkpoint, device, place=None, float8=args.weights == "fp8")
    except backbones.CheckpointError as error:
        raise UsageError(f"--checkpoint: {error}") from error
    size, multiple = args.size or model.geometry.size, model.geometry.size_multiple
    if any(side % multiple or side <= 0 for side in size):
        raise UsageError(
            f"--size {size[1]}x{size[0]}: this checkpoint needs multiples of {multiple}"
        )
    model.compiled = args.compile and compiles(model)
    model.frame_size = size
    model.placement = Placement(model, args)
    return model


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
