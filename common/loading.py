"""Loading the model that the command line names."""

import torch

import backbones
from common.errors import UsageError


def load_model(args):
    """The backbone of args.checkpoint on args.device; its `frame_size` is args.size or its own."""
    device = pick_device(args.device)
    if args.attention == "flash" and device.type != "cuda":
        raise UsageError(f"--attention flash: works on a GPU only, not on {device}; use sdpa")
    try:
        model = backbones.load(args.checkpoint, device)
    except backbones.CheckpointError as error:
        raise UsageError(f"--checkpoint: {error}") from error
    if args.attention == "flash":
        use_flash_attention(model)
    model.recompute(args.checkpointing)
    size = args.size or (model.native["height"], model.native["width"])
    if any(side % model.size_multiple or side <= 0 for side in size):
        raise UsageError(
            f"--size {size[1]}x{size[0]}: this checkpoint needs multiples of {model.size_multiple}"
        )
    model.frame_size = size
    return model


def use_flash_attention(model):
    try:
        model.dit.use_flash_attention()
    except ImportError as error:
        raise UsageError(f"--attention flash: {error}; install flash-attn or use sdpa") from error


def pick_device(name):
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device {name}: not usable here ({reason}); try cpu") from error
    return device
