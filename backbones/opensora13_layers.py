"""Layers of the Open-Sora v1.3 transformer, under the official parameter names.

Follows the description of hpcaitech/Open-Sora v1.3 (opensora/models/layers/blocks.py, stdit/
stdit3.py). Norms, rotary embedding, modulation, gating and the final layer are computed in float32
whatever the weights are, so that what a method adds to the embedding is not rounded away. Shape
letters: B batch, T latent frames, H and W rows and columns of tokens in one, S = H * W, N = T * S,
C hidden size, D head size, L text tokens; M windows of K tokens.
"""

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from backbones.blocks import MODULATION, add_gated, linear_fp32, modulate
from backbones.longcat_layers import RMSNorm, attend, rotate, timestep_sinusoid

FREQUENCIES = 256  # width of the sinusoids of time and frame rate
# what a pair's modulation gives: six of the spatial block, then six of the temporal one
PAIR_MODULATION = tuple(f"{of}_{part}" for of in ("spatial", "temporal") for part in MODULATION)
STAYS = "scale_shift_table"  # of a block: read outside its forward
# in each block of a pair, for methods that tune or extend them
LINEARS = {
    "attention": (
        "attn.qkv", "attn.proj", "cross_attn.q_linear", "cross_attn.kv_linear", "cross_attn.proj"
    ),
    "ffn": ("mlp.fc1", "mlp.fc2"),
}  # fmt: skip
NORMS = {"qk": ("attn.q_norm", "attn.k_norm")}


# Positions


@functools.lru_cache(maxsize=16)
def position_table(rows, columns, width, scale, device):
    """Fixed embedding (S, width), float32, of a frame's tokens: the first half of the channels of
    the column, the second of the row, each its sines and then its cosines. A position is an index
    that runs over the root of S, whatever the sides are, divided by `scale`."""
    half, base = width // 2, round((rows * columns) ** 0.5)
    steps = torch.arange(0, half, 2, dtype=torch.float32, device=device)
    frequencies = 10000 ** (-steps / half)
    halves = []
    for size in (columns, rows):
        positions = torch.arange(size, dtype=torch.float32, device=device) / scale * base / size
        angles = positions[:, None] * frequencies
        halves.append(torch.cat([angles.sin(), angles.cos()], dim=-1))
    column, row = halves[0][None], halves[1][:, None]
    both = column.expand(rows, -1, -1), row.expand(-1, columns, -1)
    return torch.cat(both, dim=-1).flatten(0, 1)


def rotary_table(window, frequencies, scale, axes=3):
    """Cosines, sines, and both as complex numbers (K, D / 2), float32, of the angles in a window
    (frames, rows, columns): a third of the channels for each axis, or all for the frame with
    axes=1. Positions are counted in the window; those of rows and columns are divided by scale."""
    angles = []
    for axis, (size, unit) in enumerate(zip(window, (1, scale, scale), strict=True)):
        positions = torch.arange(size, dtype=torch.float32, device=frequencies.device) / unit
        shape = [1, 1, 1, -1]
        shape[axis] = size
        angle = positions[:, None] * frequencies.float()
        angles.append(angle.view(shape).expand(*window, -1))
    angles = torch.cat(angles[:axes], dim=-1).flatten(0, 2)
    return angles.cos(), angles.sin(), torch.polar(torch.ones_like(angles), angles)


# Windows


def split_windows(x, window):
    """x (B, T, H, W, C) -> (B * M, K, C), zeros where a window reaches beyond the grid."""
    missing = [-size % w for size, w in zip(x.shape[1:4], window, strict=True)]
    x = F.pad(x, (0, 0, 0, missing[2], 0, missing[1], 0, missing[0]))
    for axis, size in zip((3, 2, 1), reversed(window), strict=True):
        x = x.unflatten(axis, (-1, size))  # from the last axis on: those before keep their places
    x = x.permute(0, 1, 3, 5, 2, 4, 6, 7)  # (B, T', H', W', frames, rows, columns, C)
    return x.flatten(4, 6).flatten(0, 3)


def join_windows(x, sizes, window):
    """What was split, of `sizes` (T, H, W)."""
    counts = [-(-size // w) for size, w in zip(sizes, window, strict=True)]
    x = x.unflatten(1, window).unflatten(0, (-1, *counts))
    x = x.permute(0, 1, 4, 2, 5, 3, 6, 7)
    for axis in (1, 2, 3):
        x = x.flatten(axis, axis + 1)
    return x[:, : sizes[0], : sizes[1], : sizes[2]]


class Windows(NamedTuple):
    """Of self-attention: their size (frames, rows, columns), the rotary table of one, or None, and
    of all of a batch which tokens are there, (B * M, 1, 1, K), or None where all are."""

    size: tuple
    rotary: tuple | None
    there: torch.Tensor | None


def windows_over(grid, window, batch, rotary, device):
    """Those of a grid (T, H, W); -1 in `window` is all of an axis. rotary(size) gives the table."""
    size = tuple(n if w < 0 else w for n, w in zip(grid, window, strict=True))
    there = None
    if any(n % w for n, w in zip(grid, size, strict=True)):
        there = split_windows(torch.ones(1, *grid, 1, device=device), size).bool()
        there = there[:, None, None, :, 0].repeat(batch, 1, 1, 1)
    return Windows(size, rotary(size) if rotary else None, there)


# Layers


def linear_of_silu(weight, bias, e):
    return F.linear(F.silu(e), weight, bias)


def key_mask(mask, batch):  # (1 or b, L) -> (B, 1, 1, L), True where there is text
    return mask.repeat(batch // len(mask), 1)[:, None, None].bool()


class Embedder(nn.Module):
    """Of a number: the time in 0..1000, or the frame rate."""

    def __init__(self, width):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, number):  # (B,) -> (B, C) float32
        hidden = linear_fp32(self.mlp[0], timestep_sinusoid(number, FREQUENCIES))
        return linear_fp32(self.mlp[2], F.silu(hidden))


class Mlp(nn.Module):
    def __init__(self, inputs, inner, outputs):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(inputs, inner), nn.Linear(inner, outputs)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class TextEmbedder(nn.Module):
    """y_embedding (L, text width) is the null text, which is not trained."""

    def __init__(self, inputs, width, tokens):
        super().__init__()
        self.y_proj = Mlp(inputs, width, width)
        self.register_buffer("y_embedding", torch.randn(tokens, inputs) / inputs**0.5)

    def forward(self, text):  # (B, 1, L, text width) -> (B, L, C)
        return self.y_proj(text.to(self.y_proj.fc1.weight.dtype)).squeeze(1)


class SelfAttention(nn.Module):
    def __init__(self, width, heads, qk_norm):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        for name in ("q_norm", "k_norm"):
            setattr(self, name, RMSNorm(width // heads) if qk_norm else nn.Identity())

    def forward(self, x, windows):  # x (B, T, H, W, C)
        qkv = self.qkv(split_windows(x, windows.size))
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if windows.rotary is not None:
            q, k = rotate(q, windows.rotary), rotate(k, windows.rotary)
        h = self.proj(attend(q, k, v, windows.there).transpose(1, 2).flatten(2))
        return join_windows(h, x.shape[1:4], windows.size)


class CrossAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.q_linear, self.kv_linear = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x, text, mask):  # x (B, N, C), text (B, L, C), mask (B, 1, 1, L) or None
        q = self.q_linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        kv = self.kv_linear(text).unflatten(-1, (2, self.heads, -1))
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(attend(q, k, v, mask).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A spatial or a temporal block: they differ in the windows of their self-attention."""

    def __init__(self, width, heads, mlp_ratio, qk_norm):
        super().__init__()
        self.attn = SelfAttention(width, heads, qk_norm)
        self.cross_attn = CrossAttention(width, heads)
        self.mlp = Mlp(width, int(width * mlp_ratio), width)
        self.scale_shift_table = nn.Parameter(torch.randn(6, width) / width**0.5)

    def modulation(self, m):  # (B, T or 1, 6C) of all blocks -> six of its own, float32
        return (m + self.scale_shift_table.float().flatten()).chunk(6, dim=-1)

    def forward(self, x, m, grid, windows, text, text_mask, null_text, given):
        """Tokens (B, N, C) after the block, of x of a grid (T, H, W) and m, six of (B, T or 1, C):
        what `modulation` gave. The frames `given` read null_text in place of text."""
        m = [part.unsqueeze(2) for part in m]
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = m
        frames = (gate_attn.shape[1], -1)
        h = modulate(x.unflatten(1, frames), shift_attn, scale_attn).flatten(1, 2)
        h = self.attn(h.unflatten(1, grid), windows).flatten(1, 3)
        x = add_gated(x, gate_attn, h, frames)
        x = x + self._read(x, grid, text, text_mask, null_text, given)
        h = modulate(x.unflatten(1, frames), shift_mlp, scale_mlp).flatten(1, 2)
        return add_gated(x, gate_mlp, self.mlp(h), frames)

    def _read(self, x, grid, text, mask, null_text, given):
        if not given:
            return self.cross_attn(x, text, mask)
        rest = [frame for frame in range(grid[0]) if frame not in given]
        x = x.unflatten(1, (grid[0], -1))
        parts = [
            self.cross_attn(x[:, list(chosen)].flatten(1, 2), words, mask)
            for chosen, words in ((given, null_text), (rest, text))
            if chosen
        ]
        place = {frame: n for n, frame in enumerate([*given, *rest])}
        order = [place[frame] for frame in range(grid[0])]
        return torch.cat(parts, dim=1).unflatten(1, (grid[0], -1))[:, order].flatten(1, 2)


class FinalLayer(nn.Module):
    def __init__(self, width, outputs):
        super().__init__()
        self.linear = nn.Linear(width, outputs)
        self.scale_shift_table = nn.Parameter(torch.randn(2, width) / width**0.5)

    def normed(self, x, e):
        """What the last linear map takes, of x (B, T, S, C) and e (B, T or 1, C)."""
        shift, scale = (self.scale_shift_table.float() + e[:, :, None]).unsqueeze(3).unbind(2)
        return modulate(x, shift, scale)

    def forward(self, x):  # of `normed`'s -> (B, T, S, outputs) float32
        return linear_fp32(self.linear, x)
