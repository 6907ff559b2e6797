"""What the transformers here share: modulation, sites around blocks, recomputing, patches."""

import functools

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

# what modulates a block, in the order of the networks
MODULATION = tuple(f"{of}.{part}" for of in ("attn", "ffn") for part in ("shift", "scale", "gate"))
SITES = ("block_input", "timestep_embedding", "modulation", "block_output")


def linear_fp32(layer, x, rows=slice(None)):  # rows: of the layer's outputs, those asked for
    return F.linear(x.float(), layer.weight[rows].float(), layer.bias[rows].float())


def modulate(x, shift, scale):  # x (B, T, S, C); shift, scale (B, T, 1, C) float32
    normed = F.layer_norm(x.float(), x.shape[-1:], eps=1e-6)
    return torch.addcmul(shift, normed, 1 + scale).to(x.dtype)


def add_gated(x, gate, h, frames):  # x + gate * h; x, h (B, N, C); gate (B, T, 1, C) float32
    out = torch.addcmul(x.unflatten(1, frames), gate, h.unflatten(1, frames))
    return out.flatten(1, 2).to(x.dtype)


def apply(functions, i, value, *more):
    for function in functions:
        value = function(i, value, *more)
    return value


def edited(functions, i, names, m):  # m (B, T, parts * C), to the functions by name
    if not functions:
        return m
    parts = dict(zip(names, m.chunk(len(names), dim=-1), strict=True))
    parts = apply(functions, i, parts)
    return torch.cat([parts[name] for name in names], dim=-1)


def run_block(dit, i, x, given, **more):
    """What block i of dit makes of x with the modulation of `given`, edited at that site; once more
    in backward where it is one of the first dit.recompute_blocks. A block whose modulation has
    other parts than MODULATION names them, in their order, as modulation_parts."""
    block = dit.blocks[i]
    names = getattr(block, "modulation_parts", MODULATION)
    # bound now: a recomputed block must meet the functions that its forward met
    edit = functools.partial(edited, tuple(dit.sites["modulation"]), i, names)
    run = functools.partial(modulated, block, edit, **more)
    if i < dit.recompute_blocks and torch.is_grad_enabled():
        run = functools.partial(checkpoint, run, use_reentrant=False, preserve_rng_state=False)
    with set_checkpoint_early_stop(not dit.has_weight_hooks):
        return run(x, given)


def modulated(block, edit, x, given, **more):
    return block(x, edit(block.modulation(given)), **more)


def unpatchify(x, grid, patch):  # (B, T, S, ph * pw * C) -> (B, C, T, H, W); grid (T, H', W')
    _, ph, pw = patch
    x = x.unflatten(-1, (ph, pw, -1)).unflatten(2, grid[1:])  # (B, T, H', W', ph, pw, C)
    return x.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)
