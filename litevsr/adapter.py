"""LiteVSR's State-Aware Adapter: what the frozen blocks of a video model are told of a
low-resolution clip.

No code of the paper is public. The two streams, the time-modulated query, the zero-initialised
injections and the blocks that both halves of a batch share are the paper's; the sizes and the rest
follow the specification of this project, which reaches the paper's share of trainable parameters
(178.4 M, 11.17 % of the whole, on Wan 2.1 1.3B). Shape letters: B batch, C latent channels, T
latents in time, h, w their size, N = T * h / p * w / p tokens with p = patch, D width of the model.
"""

import torch
import torch.nn.functional as F
from torch import nn

from backbones.longcat_layers import rotary_table, rotate, timestep_sinusoid

SINUSOID = 256
SCORES = 1 << 26  # of attention that are held at once


class StateAwareAdapter(nn.Module):
    """Tokens for the second half of the batch, and what of that half each block gives to the first.

    Two streams are read: structure, the low-resolution clip's latents, and state, the latest
    estimate of the clean latents. `depth` counts the model's blocks, of which every `every`th gets
    an injection. All that ends in the frozen model starts at zero, so that it starts unchanged.
    """

    def __init__(self, channels, width, depth, heads, patch=2, layers=2, ffn_width=None, every=1):
        super().__init__()
        ffn_width = ffn_width or 35 * width // 6  # Wan's 8,960 at 1,536
        self.config = {
            "channels": channels, "width": width, "depth": depth, "heads": heads, "patch": patch,
            "layers": layers, "ffn_width": ffn_width, "every": every,
        }  # fmt: skip
        kernel = (1, patch, patch)
        self.structure = nn.Conv3d(channels, width, kernel, kernel)
        self.state = nn.Conv3d(channels, width, kernel, kernel)
        self.time = nn.Sequential(
            nn.Linear(SINUSOID, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.query = nn.Parameter(0.02 * torch.randn(width))
        self.kinds = nn.Parameter(torch.zeros(2, width))  # of the streams, added to their tokens
        self.layers = nn.ModuleList(Layer(width, heads, ffn_width) for _ in range(layers))
        self.out = zeroed(nn.Linear(width, width))
        self.injections = nn.ModuleDict(
            {str(i): zeroed(nn.Linear(width, width)) for i in range(0, depth, every)}
        )

    def forward(self, low, state, sigma, masses=None):
        """(B, N, D) to be added to the tokens of `low` in the model's own patch embedding.

        low, state (B, C, T, h, w), sigma (B,). To the list `masses` each layer adds the share of
        its attention that falls on the structure stream, (B,); the rest falls on the state.
        """
        patch = self.config["patch"]
        grid = (low.shape[2], low.shape[3] // patch, low.shape[4] // patch)
        structure, state = (
            F.layer_norm(embed(x).flatten(2).transpose(1, 2), self.query.shape) + kind
            for embed, x, kind in zip(
                (self.structure, self.state), (low, state), self.kinds, strict=True
            )
        )
        time = self.time(timestep_sinusoid(1000 * sigma, SINUSOID))
        x = self.query.expand_as(structure)
        for layer in self.layers:
            x = layer(x, torch.cat([structure, state], dim=1), time, grid, masses)
        return self.out(x)

    def inject(self, i, x):
        """The tokens (2 B, N, D) that leave block i, the first half changed by the second."""
        name = str(i)
        if name not in self.injections:
            return x
        first, second = x.chunk(2)
        layer = self.injections[name]
        given = layer(second.to(layer.weight.dtype)).to(x.dtype)
        return torch.cat([first + given, second])


class Layer(nn.Module):
    """Attention of time-modulated queries to both streams, then a feed-forward layer."""

    def __init__(self, width, heads, ffn_width):
        super().__init__()
        self.heads = heads
        self.modulation = zeroed(nn.Linear(width, 6 * width))
        with torch.no_grad():  # the gates, third and last, start open
            self.modulation.bias.view(6, width)[[2, 5]] = 1.0
        self.q, self.k = nn.Linear(width, width), nn.Linear(width, width)
        self.v, self.o = nn.Linear(width, width), nn.Linear(width, width)
        self.q_norm = nn.RMSNorm(width // heads, eps=1e-6)
        self.k_norm = nn.RMSNorm(width // heads, eps=1e-6)
        self.ffn = nn.Sequential(
            nn.Linear(width, ffn_width), nn.GELU("tanh"), nn.Linear(ffn_width, width)
        )

    def forward(self, x, streams, time, grid, masses=None):
        """x (B, N, D), streams (B, 2 N, D), time (B, D) -> x."""
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = self.modulation(time)[:, None].chunk(
            6, dim=-1
        )
        x = x + gate * self.attend(modulated(x, shift, scale), streams, grid, masses)
        return x + ffn_gate * self.ffn(modulated(x, ffn_shift, ffn_scale))

    def attend(self, x, streams, grid, masses):
        table = rotary_table(grid, x.shape[-1] // self.heads, x.device)
        q = rotate(self.q_norm(self.split(self.q(x))), table)
        k = self.k_norm(self.split(self.k(streams)))
        k = torch.cat([rotate(half, table) for half in k.chunk(2, dim=2)], dim=2)  # same places
        v = self.split(self.v(streams))
        if masses is not None:
            masses.append(mass_on_first_half(q.detach(), k.detach()))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def split(self, x):  # (B, N, D) -> (B, heads, N, D / heads)
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def mass_on_first_half(q, k):
    """Mean over heads and queries of the attention that falls on the first half of the keys, (B,);
    q, k (B, heads, N, D)."""
    keys, shares = k.float().transpose(2, 3), []
    for some in q.float().split(max(1, SCORES // (len(q) * q.shape[1] * k.shape[2])), dim=2):
        scores = some @ keys / q.shape[-1] ** 0.5
        first, all_keys = scores[..., : k.shape[2] // 2].logsumexp(-1), scores.logsumexp(-1)
        shares.append((first - all_keys).exp())
    return torch.cat(shares, dim=2).mean((1, 2))


def modulated(x, shift, scale):
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:]), 1 + scale)


def zeroed(layer):
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
