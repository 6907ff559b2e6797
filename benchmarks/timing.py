"""Random models of the size that is asked for, and times of two ways taken in turns."""

import time
from statistics import median
from types import SimpleNamespace

import torch

from backbones.longcat import LongCat
from backbones.longcat_dit import LongCatVideoTransformer3DModel

MID_SIZE = {"hidden_size": 512, "depth": 12, "num_heads": 8, "caption_channels": 256}
TEXT_TOKENS = 64


def add_size(parser, side):
    """Flags that model_of and random_problem take."""
    parser.add_argument("--hidden", type=int, default=MID_SIZE["hidden_size"])
    parser.add_argument("--depth", type=int, default=MID_SIZE["depth"])
    parser.add_argument("--side", type=int, default=side, help="height and width in latents")
    parser.add_argument("--device", default="cpu")


def model_of(args, dtype=None):
    size = {"hidden_size": args.hidden, "depth": args.depth}
    return random_model(args.device, dtype, **(MID_SIZE | size))


def random_model(device="cpu", dtype=None, on_host=False, **config):
    """Speed and memory do not depend on which random values the weights have. on_host: they wait in
    host memory, as those of a checkpoint that was just loaded."""
    dtype = dtype or (torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32)
    torch.manual_seed(0)
    with torch.device("meta"):
        dit = LongCatVideoTransformer3DModel(**config)
    dit = dit.to(dtype).to_empty(device="cpu" if on_host else device)
    with torch.no_grad():
        for weight in dit.parameters():
            weight.copy_(torch.randn_like(weight, device=device).mul_(0.02))
    return LongCat(dit, device=device)


def random_problem(model, context=4, target=3, side=(24, 24), tokens=TEXT_TOKENS):
    """Latents (1, C, T, h, w) and one prompt, as methods see them in a clip."""
    shape = (1, model.latent_channels, context + target, *side)
    latents = torch.randn(shape, device=model.device)
    embeds = torch.randn(1, 1, tokens, model.dit.config.caption_channels, device=model.device)
    mask = torch.ones(1, tokens, device=model.device, dtype=torch.long)
    text = {"embeds": embeds, "mask": mask}
    return SimpleNamespace(
        context=latents[:, :, :context], target=latents[:, :, context:], text=text, seed=0,
        video=SimpleNamespace(id="random"),
    )  # fmt: skip


def now(device):
    """Seconds, when the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds(work, device):
    started = now(device)
    work()
    return now(device) - started


def in_turns(ways, device, repeats):
    """{name: median seconds} of {name: function}, one after the other and over again, so that what
    else the machine does meets all of them; the first round does not count, unless it is the only
    one (0 repeats)."""
    times = {name: [] for name in ways}
    for i in range(repeats + 1):
        for name, work in ways.items():
            found = seconds(work, device)
            if i or not repeats:
                times[name].append(found)
    return {name: median(found) for name, found in times.items()}
