"""Modulation, gate, RMS norm and rotary embedding: ours against the formulas as they are written,
which pass over memory more often. Both compute in float32.

    python -m benchmarks.layers
"""

import argparse
import contextlib

import torch
import torch.nn.functional as F

from backbones import longcat_layers
from backbones.longcat_layers import RMSNorm, add_gated, modulate, rotary_table, rotate
from benchmarks.timing import in_turns


def plain_modulate(x, shift, scale):
    return (F.layer_norm(x.float(), x.shape[-1:], eps=1e-6) * (1 + scale) + shift).to(x.dtype)


def plain_add_gated(x, gate, h, frames):
    return (x + (gate * h.unflatten(1, frames)).flatten(1, 2)).to(x.dtype)


def plain_rotate(x, table):
    cos, sin, _ = table
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1)
    return turned.flatten(-2).to(x.dtype)


def plain_rms_norm(norm, x):
    x32 = x.float()
    normed = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + 1e-6)
    return (normed.to(x.dtype) * norm.weight).to(x.dtype)


@contextlib.contextmanager
def plain_layers():
    """The transformer with the formulas as they are written."""
    ours = {name: getattr(longcat_layers, name) for name in ("modulate", "add_gated", "rotate")}
    forward = RMSNorm.forward
    try:
        for name, plain in zip(ours, (plain_modulate, plain_add_gated, plain_rotate), strict=True):
            setattr(longcat_layers, name, plain)
        RMSNorm.forward = plain_rms_norm
        yield
    finally:
        for name, function in ours.items():
            setattr(longcat_layers, name, function)
        RMSNorm.forward = forward


def there_and_back(function, *tensors):
    def work():
        out = function(*tensors)
        torch.autograd.grad(out.float().square().mean(), [x for x in tensors if x.requires_grad])

    return work


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--side", type=int, default=16, help="of a latent frame, in tokens")
    args = parser.parse_args()
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    torch.manual_seed(0)
    grid, heads = (7, args.side, args.side), args.hidden // 64
    frames, tokens = (7, -1), 7 * args.side**2

    def random(*shape, kind=dtype):
        return torch.randn(shape, device=device, dtype=kind).requires_grad_()

    x, h = random(1, tokens, args.hidden), random(1, tokens, args.hidden)
    shift, scale, gate = (random(1, 7, 1, args.hidden, kind=torch.float32) for _ in range(3))
    q, table = random(1, heads, tokens, 64), rotary_table(grid, 64, device)
    norm = RMSNorm(64).to(device, dtype).requires_grad_(False)
    cases = {
        "modulation": (modulate, plain_modulate, (x.unflatten(1, frames), shift, scale)),
        "gate": (lambda x, gate, h: add_gated(x, gate, h, frames),
                 lambda x, gate, h: plain_add_gated(x, gate, h, frames), (x, gate, h)),
        "RMS norm": (norm, lambda x: plain_rms_norm(norm, x), (q,)),
        "rotary embedding": (lambda x: rotate(x, table), lambda x: plain_rotate(x, table), (q,)),
    }  # fmt: skip
    for name, (ours, plain, tensors) in cases.items():
        tensors = [t.detach().requires_grad_() for t in tensors]
        error = (ours(*tensors) - plain(*tensors)).abs().max().item()
        ways = {"ours": there_and_back(ours, *tensors), "plain": there_and_back(plain, *tensors)}
        times = in_turns(ways, device, args.repeats)
        print(
            f"{name}, forward and backward: {1e3 * times['ours']:.2f} ms, as written "
            f"{1e3 * times['plain']:.2f} ms, largest difference {error:.0e}: "
            f"ratio {times['ours'] / times['plain']:.2f}"
        )


if __name__ == "__main__":
    main()
