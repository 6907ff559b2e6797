"""Layers of the Open-Sora v1.3 autoencoder, under the official tensor names.

Follows the description of hpcaitech/Open-Sora v1.3 (opensora/models/vae_v1_3). Shape letters: B
batch, C channels, T frames of one chunk at some resolution, H and W rows and columns.

Convolutions and attention are causal: nothing sees a later frame, attention not even a later place
of its own frame. Group norms are not: their statistics are over all frames of the chunk.
"""

import torch.nn.functional as F
from torch import nn

NORM_GROUPS = 32


class CausalConv3d(nn.Module):
    """Zeros go before the first frame, none after the last, and round each frame. The stride is
    that of all three axes: T frames become 1 + (T - 1) // stride."""

    def __init__(self, inputs, outputs, kernel=3, stride=1):
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, kernel, stride)
        side = kernel // 2
        self.margins = (side, side, side, side, kernel - 1, 0)

    def forward(self, x):
        return self.conv(F.pad(x, self.margins))


def norm(channels, eps=1e-6):
    return nn.GroupNorm(NORM_GROUPS, channels, eps=eps)


class ResidualBlock(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.norm1, self.conv1 = norm(inputs), CausalConv3d(inputs, outputs)
        self.norm2, self.conv2 = norm(outputs), CausalConv3d(outputs, outputs)
        if inputs != outputs:
            self.nin_shortcut = CausalConv3d(inputs, outputs, kernel=1)

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    """One head over all places of the chunk, each of which sees itself and those before it in the
    order frame, row, column."""

    def __init__(self, channels):
        super().__init__()
        self.norm = norm(channels)
        for name in ("q", "k", "v", "proj_out"):
            setattr(self, name, CausalConv3d(channels, channels, kernel=1))

    def forward(self, x):
        h = self.norm(x)
        q, k, v = (f(h).flatten(2).transpose(1, 2)[:, None] for f in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.proj_out(h[:, 0].transpose(1, 2).unflatten(2, x.shape[2:]))


# Between resolutions: in space alone frame by frame, else in time as well


def of_each_frame(function, x):
    """What function (N, C, H, W) -> (N, ...) makes of the frames of x (B, C, T, H, W)."""
    return function(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(x), -1)).transpose(1, 2)


class Halved(nn.Module):
    """(B, C, T, H, W) -> (B, C, T, H / 2, W / 2)."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x):
        return of_each_frame(lambda frame: self.conv(F.pad(frame, (0, 1, 0, 1))), x)


class HalvedWithTime(nn.Module):
    """(B, C, T, H, W) -> (B, C, 1 + (T - 1) / 2, H / 2, W / 2)."""

    def __init__(self, channels):
        super().__init__()
        self.conv = CausalConv3d(channels, channels, stride=2)

    def forward(self, x):
        return self.conv(x)


class Doubled(nn.Module):
    """(B, C, T, H, W) -> (B, C, T, 2 H, 2 W)."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return of_each_frame(lambda frame: self.conv(F.interpolate(frame, scale_factor=2)), x)


class DoubledWithTime(nn.Module):
    """(B, C, T, H, W) -> (B, C, 2 T, 2 H, 2 W), with what its convolutions add."""

    def __init__(self, channels):
        super().__init__()
        self.conv3d = Refinement(channels)

    def forward(self, x):
        x = F.interpolate(x, scale_factor=2)
        return x + self.conv3d(x)


class Refinement(nn.Module):
    """A residual block whose norms and activations follow its convolutions."""

    def __init__(self, channels):
        super().__init__()
        self.conv1, self.norm1 = CausalConv3d(channels, channels), norm(channels, eps=1e-5)
        self.conv2, self.norm2 = CausalConv3d(channels, channels), norm(channels, eps=1e-5)

    def forward(self, x):
        h = F.silu(self.norm1(self.conv1(x)))
        return F.silu(self.norm2(self.conv2(h)) + x)


# Encoder and decoder of one chunk


class Middle(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.block_1, self.block_2 = (ResidualBlock(channels, channels) for _ in range(2))
        self.attn_1 = Attention(channels)

    def forward(self, x):
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """Residual blocks of one resolution, then, under the given name, what leads to the next."""

    def __init__(self, inputs, outputs, blocks, name=None, kind=None):
        super().__init__()
        widths = [inputs] + [outputs] * blocks
        self.block = nn.ModuleList(map(ResidualBlock, widths, widths[1:]))
        self.last = name
        if name:
            self.add_module(name, kind(outputs))

    def forward(self, x):
        for block in self.block:
            x = block(x)
        return getattr(self, self.last)(x) if self.last else x


class Encoder(nn.Module):
    """Pixels (B, 3, T, H, W) -> mean and logarithm of the variance of latents, (B, 2 * z_channels,
    1 + (T - 1) / 4, H / 8, W / 8)."""

    KINDS = Halved, HalvedWithTime, HalvedWithTime  # from level 0, of full resolution, on

    def __init__(self, ch, ch_mult, num_res_blocks, z_channels):
        super().__init__()
        widths = [ch] + [ch * m for m in ch_mult]
        self.conv_in, self.down = CausalConv3d(3, ch), nn.ModuleList()
        for i, kind in enumerate((*self.KINDS, None)):
            name = "downsample" if kind else None
            self.down.append(Level(widths[i], widths[i + 1], num_res_blocks, name, kind))
        self.mid, self.norm_out = Middle(widths[-1]), norm(widths[-1])
        self.conv_out = CausalConv3d(widths[-1], 2 * z_channels)

    def forward(self, x):
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Latents (B, z_channels, T, h, w) -> pixels (B, 3, 1 + 4 (T - 1), 8 h, 8 w): each latent
    becomes four frames, and the first three of all are left out."""

    KINDS = None, Doubled, DoubledWithTime, DoubledWithTime  # of level 0, of full resolution, to 3

    def __init__(self, ch, ch_mult, num_res_blocks, z_channels):
        super().__init__()
        widths = [ch * m for m in ch_mult]
        self.conv_in, self.mid = CausalConv3d(z_channels, widths[-1]), Middle(widths[-1])
        self.up = nn.ModuleList()
        for width, before, kind in zip(widths, [*widths[1:], widths[-1]], self.KINDS, strict=True):
            name = "upsample" if kind else None
            self.up.append(Level(before, width, num_res_blocks + 1, name, kind))
        self.norm_out, self.conv_out = norm(widths[0]), nn.Conv3d(widths[0], 3, 3)

    def forward(self, z):
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        x = F.pad(F.silu(self.norm_out(x)), (1, 1, 1, 1, 2, 0))
        return self.conv_out(x)[:, :, 3:]
