"""Layers of the Open-Sora v2.0 transformer, under the official parameter names.

Follows the description of hpcaitech/Open-Sora (opensora/models/mmdit/layers.py, v2.0). Norms,
rotary embedding, modulation, gating and the final layer are computed in float32 whatever the
weights are, so that what a method adds to the embedding is not rounded away; officially they are
computed in the type of the weights. Shape letters: B batch, L text tokens, N video tokens, C hidden
size, D head size. Tokens are (B, L + N, C), the text first.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from backbones.longcat_layers import attend, linear_fp32, modulate, timestep_sinusoid

FREQUENCIES = 256  # width of the sinusoids of time and guidance
# what a block's modulation gives, in its order; a single block's norm feeds attention and MLP
PARTS = tuple(f"{of}.{part}" for of in ("attn", "ffn") for part in ("shift", "scale", "gate"))
DOUBLE_MODULATION = (*PARTS, *(f"text_{part}" for part in PARTS))
SINGLE_MODULATION = PARTS[:3]
STAYS = ("img_mod", "txt_mod", "modulation")  # of a block: read outside its forward
STREAMS = ("img", "txt")
NORMS = {
    "qk": tuple(
        f"{of}norm.{part}_norm"
        for of in ("img_attn.", "txt_attn.", "")
        for part in ("query", "key")
    )
}


def linears(fused):
    """Linear layers in a block of either kind, for methods that tune or extend them. What makes q,
    k and v counts as attention, though in a single block it also makes the MLP's input."""
    double = ("qkv", "proj") if fused else ("q_proj", "k_proj", "v_proj", "proj")
    single = ("linear1",) if fused else ("q_proj", "k_proj", "v_mlp")
    mlps = tuple(f"{stream}_mlp.{layer}" for stream in STREAMS for layer in (0, 2))
    return {
        "attention": (*(f"{stream}_attn.{name}" for stream in STREAMS for name in double), *single),
        "ffn": (*mlps, "linear2"),
    }


def rotary_table(ids, axes, theta):
    """Cosines and sines (B, 1, N, D / 2), float32, of the angles at ids (B, N, axes): those of all
    axes side by side, position * theta ** -(2j / width) for j < width / 2."""
    angles = []
    for position, width in zip(ids.double().unbind(-1), axes, strict=True):
        steps = torch.arange(0, width, 2, dtype=torch.float64, device=ids.device)
        angles.append(position[..., None] * theta ** (-steps / width))
    angles = torch.cat(angles, dim=-1)[:, None]
    return angles.cos().float(), angles.sin().float()


def rotate(x, table, halves):
    """Turns the channel pairs of x (B, heads, N, D) by the table's angles, in float32: channel j
    goes with j + D / 2 where `halves`, else 2j with 2j + 1."""
    cos, sin = table
    shape, pair = ((2, -1), -2) if halves else ((-1, 2), -1)
    first, second = x.float().unflatten(-1, shape).unbind(pair)
    turned = first * cos - second * sin, second * cos + first * sin
    return torch.stack(turned, pair).flatten(-2).to(x.dtype)


def add_gated(x, gate, h):  # x + gate * h; x, h (B, M, C); gate (B, 1, C) float32
    return torch.addcmul(x, gate, h).to(x.dtype)


def embed_number(layers, number):  # (B,), of time in 0..1 -> (B, C) float32
    # multiplied in the number's own type: bfloat16 rounds as the official sampler does
    return layers(timestep_sinusoid(1000 * number, FREQUENCIES))


class Embedder(nn.Module):
    def __init__(self, inputs, width):
        super().__init__()
        self.in_layer, self.out_layer = nn.Linear(inputs, width), nn.Linear(width, width)

    def forward(self, x):  # (B, inputs) -> (B, C) float32
        return linear_fp32(self.out_layer, F.silu(linear_fp32(self.in_layer, x)))


class Modulation(nn.Module):
    def __init__(self, width, parts):
        super().__init__()
        self.lin = nn.Linear(width, parts * width)

    def forward(self, e):  # (B, 1, C) -> (B, 1, parts * C) float32
        # a graph keeps the weights as they are and not their float32 copies, 13 GB as released
        weight, bias = (
            p if p.requires_grad else p.detach() for p in (self.lin.weight, self.lin.bias)
        )
        options = {"use_reentrant": False, "preserve_rng_state": False}
        return checkpoint(linear_of_silu, e, weight, bias, **options)


def linear_of_silu(e, weight, bias):
    return F.linear(F.silu(e), weight.float(), bias.float())


class RMSNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x):
        normed = F.rms_norm(x.float(), x.shape[-1:], eps=1e-6)
        return (normed * self.scale).to(x.dtype)


class QKNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.query_norm, self.key_norm = RMSNorm(width), RMSNorm(width)

    def forward(self, q, k):
        return self.query_norm(q), self.key_norm(k)


class SelfAttention(nn.Module):
    """The projections of one stream; the streams meet in the block."""

    def __init__(self, width, heads, bias, fused):
        super().__init__()
        self.heads, self.fused = heads, fused
        if fused:
            self.qkv = nn.Linear(width, 3 * width, bias=bias)
        else:
            self.q_proj = nn.Linear(width, width, bias=bias)
            self.k_proj = nn.Linear(width, width, bias=bias)
            self.v_proj = nn.Linear(width, width, bias=bias)
        self.norm = QKNorm(width // heads)
        self.proj = nn.Linear(width, width)

    def forward(self, x):  # (B, M, C) -> q, k, v, each (B, heads, M, D)
        if self.fused:
            parts = self.qkv(x).chunk(3, dim=-1)
        else:
            parts = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        q, k, v = (by_head(part, self.heads) for part in parts)
        return *self.norm(q, k), v


class DoubleBlock(nn.Module):
    """Video and text have weights of their own and meet in the attention."""

    modulation_parts = DOUBLE_MODULATION

    def __init__(self, width, heads, mlp_ratio, bias, fused, halves):
        super().__init__()
        self.halves = halves
        for stream in STREAMS:
            setattr(self, f"{stream}_mod", Modulation(width, 6))
            setattr(self, f"{stream}_attn", SelfAttention(width, heads, bias, fused))
            inner = int(width * mlp_ratio)
            mlp = nn.Linear(width, inner), nn.GELU("tanh"), nn.Linear(inner, width)
            setattr(self, f"{stream}_mlp", nn.Sequential(*mlp))

    def modulation(self, e):  # (B, 1, C) -> (B, 1, 12C): the video's, then the text's
        return torch.cat([self.img_mod(e), self.txt_mod(e)], dim=-1)

    def forward(self, x, m, rotary, words):
        """Tokens after the block, of x (B, L + N, C), m (B, 1, 12C) float32, what `modulation`
        gave, and words = L."""
        text, video = x[:, :words], x[:, words:]
        of_video, of_text = m.unflatten(-1, (2, 6, -1)).unbind(2)
        of_video, of_text = of_video.unbind(2), of_text.unbind(2)
        qkv_text = self.txt_attn(modulate(text, *of_text[:2]))
        qkv_video = self.img_attn(modulate(video, *of_video[:2]))
        q, k, v = (torch.cat(pair, dim=2) for pair in zip(qkv_text, qkv_video, strict=True))
        h = mixed(q, k, v, rotary, self.halves)
        text = add_gated(text, of_text[2], self.txt_attn.proj(h[:, :words]))
        video = add_gated(video, of_video[2], self.img_attn.proj(h[:, words:]))
        text = add_gated(text, of_text[5], self.txt_mlp(modulate(text, *of_text[3:5])))
        video = add_gated(video, of_video[5], self.img_mlp(modulate(video, *of_video[3:5])))
        return torch.cat([text, video], dim=1)


class SingleBlock(nn.Module):
    """Attention and MLP side by side on all tokens."""

    modulation_parts = SINGLE_MODULATION

    def __init__(self, width, heads, mlp_ratio, bias, fused, halves):
        super().__init__()
        self.heads, self.fused, self.halves = heads, fused, halves
        self.inner = int(width * mlp_ratio)
        if fused:
            self.linear1 = nn.Linear(width, 3 * width + self.inner)
        else:
            self.q_proj = nn.Linear(width, width, bias=bias)
            self.k_proj = nn.Linear(width, width, bias=bias)
            self.v_mlp = nn.Linear(width, width + self.inner)
        self.linear2 = nn.Linear(width + self.inner, width)
        self.norm = QKNorm(width // heads)
        self.modulation = Modulation(width, 3)

    def forward(self, x, m, rotary, words):
        """As DoubleBlock's, of m (B, 1, 3C); words is not needed."""
        shift, scale, gate = m.chunk(3, dim=-1)
        h, width = modulate(x, shift, scale), x.shape[-1]
        if self.fused:
            q, k, v, inner = self.linear1(h).split([width, width, width, self.inner], dim=-1)
        else:
            q, k = self.q_proj(h), self.k_proj(h)
            v, inner = self.v_mlp(h).split([width, self.inner], dim=-1)
        q, k, v = (by_head(part, self.heads) for part in (q, k, v))
        h = mixed(*self.norm(q, k), v, rotary, self.halves)
        h = torch.cat([h, F.gelu(inner, approximate="tanh")], dim=-1)
        return add_gated(x, gate, self.linear2(h))


class FinalLayer(nn.Module):
    def __init__(self, width, outputs):
        super().__init__()
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def normed(self, x, e):  # x (B, N, C), e (B, 1, C): what the last linear map takes
        shift, scale = linear_fp32(self.adaLN_modulation[1], F.silu(e)).chunk(2, dim=-1)
        return modulate(x, shift, scale)

    def forward(self, x):  # of `normed`'s -> (B, N, outputs) float32
        return linear_fp32(self.linear, x)


def by_head(x, heads):  # (B, M, C) -> (B, heads, M, D)
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def mixed(q, k, v, rotary, halves):  # each (B, heads, M, D) -> (B, M, C)
    out = attend(rotate(q, rotary, halves), rotate(k, rotary, halves), v)
    return out.transpose(1, 2).flatten(2)
