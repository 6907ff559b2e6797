"""Layers of the LongCat-Video transformer, under the official parameter names.

Norms, rotary embedding, modulation, gating and the final layer are computed in float32 whatever the
weights are, as in meituan-longcat/LongCat-Video 6b3f4b8 (longcat_video/modules/blocks.py,
attention.py). Shape letters: B batch, T latent frames, S tokens per frame, N = T * S, C hidden
size, D head size. `clean` counts the leading tokens of x that are context.
"""

import functools
import math

import torch
import torch.nn.functional as F
from torch import nn

from backbones.blocks import add_gated, linear_fp32, modulate
from devices.parallel import everyones

# in a block, for methods that tune or extend them
LINEARS = {
    "attention": (
        "attn.qkv", "attn.proj", "cross_attn.q_linear", "cross_attn.kv_linear", "cross_attn.proj"
    ),
    "ffn": ("ffn.w1", "ffn.w2", "ffn.w3"),
}  # fmt: skip
NORMS = {
    "cross": ("pre_crs_attn_norm",),
    "qk": ("attn.q_norm", "attn.k_norm", "cross_attn.q_norm", "cross_attn.k_norm"),
}


def timestep_sinusoid(timestep, width):  # (M,) -> (M, width): cosines, then sines
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=timestep.device)
    # multiplied before it is divided, as in the official code: the last digits depend on it
    frequencies = torch.exp(-math.log(10000) * steps / half)
    angles = timestep.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


@functools.lru_cache(maxsize=16)
def rotary_table(grid, head_dim, device):
    """Cosines, sines, and both as complex numbers (N, D / 2) of the rotary angles over the grid (T,
    H, W), float32."""
    spatial = 2 * (head_dim // 6)
    angles = []
    for axis, (size, width) in enumerate(
        zip(grid, (head_dim - 2 * spatial, spatial, spatial), strict=True)
    ):
        frequencies = 10000 ** (-torch.arange(0, width, 2, device=device).float() / width)
        angle = torch.arange(size, device=device).float()[:, None] * frequencies
        shape = [1, 1, 1, width // 2]
        shape[axis] = size
        angles.append(angle.view(shape).expand(*grid, -1))
    angles = torch.cat(angles, dim=-1).flatten(0, 2)
    return angles.cos(), angles.sin(), torch.polar(torch.ones_like(angles), angles)


def rotate(x, table):
    """Turns the channel pairs (0, 1), (2, 3), ... of x (B, heads, N, D) by the table's angles, in
    float32."""
    cos, sin, turn = table
    pairs = x.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # what a compiler fuses, and it knows no complex numbers
        even, odd = pairs.unbind(-1)
        turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1)
    else:
        turned = torch.view_as_real(torch.view_as_complex(pairs) * turn)
    return turned.flatten(-2).to(x.dtype)


def attend(q, k, v, mask=None):
    """Softmax attention, all (B, heads, N, D); mask (B, 1, 1, N_kv) is True where a key counts."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class RMSNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        normed = F.rms_norm(x, x.shape[-1:], eps=1e-6)  # computed in float32
        return (normed * self.weight).to(x.dtype)  # the weight may be float32


class LayerNorm32(nn.LayerNorm):
    def forward(self, x):
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class SelfAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm, self.k_norm = RMSNorm(width // heads), RMSNorm(width // heads)
        self.proj = nn.Linear(width, width)

    def forward(self, x, rotary, clean, cache, noise_only=False):
        """x (B, N, C) -> the same, and (k, v) before the rotary embedding.

        rotary holds the tables of the queries and of the keys. With a cache, x holds the noise
        frames that follow the cached ones; without, its `clean` tokens attend only to each other.
        With noise_only these are left out of the first output. Where tokens are split over
        processes (devices/parallel.py) all of this is of the own ones, but attention is to all.
        """
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        fresh = k, v
        if cache is not None:
            k, v = (
                torch.cat([old.to(new.device).expand(len(new), -1, -1, -1), new], dim=2)
                for old, new in zip(cache, fresh, strict=True)
            )
        q, k = rotate(q, rotary[0]), rotate(k, rotary[1])
        out = attend(q[:, :, clean:], everyones(k, 2), everyones(v, 2))
        if clean and not noise_only:
            k, v = everyones(k[:, :, :clean], 2), everyones(v[:, :, :clean], 2)
            head = attend(q[:, :, :clean], k, v)
            out = torch.cat([head, out], dim=2)
        return self.proj(out.transpose(1, 2).flatten(2)), fresh


class CrossAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.q_linear = nn.Linear(width, width)
        self.kv_linear = nn.Linear(width, 2 * width)
        self.q_norm, self.k_norm = RMSNorm(width // heads), RMSNorm(width // heads)
        self.proj = nn.Linear(width, width)

    def forward(self, x, text, mask):  # x (B, N, C), text (B, L, C), mask (B, 1, 1, L) or None
        q = self.q_linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = (
            self.kv_linear(text).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        )
        out = attend(self.q_norm(q), self.k_norm(k), v, mask)
        return self.proj(out.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        inner = 256 * math.ceil(int(2 * inner / 3) / 256)
        self.w1 = nn.Linear(width, inner, bias=False)
        self.w2 = nn.Linear(inner, width, bias=False)
        self.w3 = nn.Linear(width, inner, bias=False)

    def forward(self, x):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    def __init__(self, width, heads, mlp_ratio, embedding_width):
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(embedding_width, 6 * width))
        self.pre_crs_attn_norm = LayerNorm32(width, eps=1e-6)
        self.attn = SelfAttention(width, heads)
        self.cross_attn = CrossAttention(width, heads)
        self.ffn = FeedForward(width, width * mlp_ratio)

    def modulation(self, e):  # (B, T, width) -> (B, T, 6C) float32
        return linear_fp32(self.adaLN_modulation[1], F.silu(e))

    def forward(self, x, m, text, text_mask, rotary, clean, cache, noise_only=False):
        """x (B, N, C), m (B, T, 6C) float32: what `modulation` gave -> x after the block and its
        self-attention's (k, v). Without text there is no cross-attention. With noise_only x leaves
        without its `clean` tokens."""
        frames = (m.shape[1], -1)
        m = m.unsqueeze(2).chunk(6, dim=-1)
        shift_attn, scale_attn, gate_attn, shift_ffn, scale_ffn, gate_ffn = m

        h = modulate(x.unflatten(1, frames), shift_attn, scale_attn).flatten(1, 2)
        h, fresh = self.attn(h, rotary, clean, cache, noise_only)
        if noise_only:
            context = clean * frames[0] // x.shape[1]
            x, clean, frames = x[:, clean:], 0, (frames[0] - context, -1)
            gate_attn, *later = (
                part[:, context:] for part in (gate_attn, shift_ffn, scale_ffn, gate_ffn)
            )
            shift_ffn, scale_ffn, gate_ffn = later
        x = add_gated(x, gate_attn, h, frames)

        if text is not None:
            h = self.cross_attn(self.pre_crs_attn_norm(x[:, clean:]), text, text_mask)
            x = x + F.pad(h, (0, 0, clean, 0))  # context frames get exactly nothing from the text

        h = self.ffn(modulate(x.unflatten(1, frames), shift_ffn, scale_ffn).flatten(1, 2))
        return add_gated(x, gate_ffn, h, frames), fresh


class FinalLayer(nn.Module):
    def __init__(self, width, outputs, embedding_width):
        super().__init__()
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(embedding_width, 2 * width))

    def forward(self, x, e):  # x (B, T, S, C), e (B, T, width) -> (B, T, S, outputs) float32
        shift, scale = (
            linear_fp32(self.adaLN_modulation[1], F.silu(e)).unsqueeze(2).chunk(2, dim=-1)
        )
        return linear_fp32(self.linear, modulate(x, shift, scale))
