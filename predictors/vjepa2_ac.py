"""The action-conditioned predictor of V-JEPA 2-AC (305M as released), loadable from the official
weights.

Follows the description of facebookresearch/vjepa2 (src/models/ac_predictor.py): the same tensor
names and forward arguments. Letters: B batch, T frames, N = rows * columns patches of a frame, D
width of the encoder's features, A width of an action, S tokens of a frame: its action, its state,
with use_extrinsics its camera's, then the N patches.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

PARTS = ("action_encoder", "state_encoder", "extrinsics_encoder")


class ActionConditionedPredictor(nn.Module):
    """Of frames 0..t, and what was done in each, the features of frame t + 1, for every t at once:
    a frame attends to itself and to earlier ones. The defaults are those of the release.

    num_frames and tubelet_size change nothing. Raises ValueError where the sizes do not fit, and
    for use_rope or is_frame_causal False, which no released weights have.
    """

    def __init__(
        self,
        img_size=(256, 256),  # pixels, height first
        patch_size=16,
        num_frames=64,
        tubelet_size=2,
        embed_dim=1408,  # D
        predictor_embed_dim=1024,
        depth=24,
        num_heads=16,
        action_embed_dim=7,  # A
        use_extrinsics=False,
        use_silu=False,  # a gated MLP in each block
        wide_silu=True,  # with two thirds of its width
        use_rope=True,
        mlp_ratio=4.0,
        qkv_bias=True,
        norm_eps=1e-6,
        is_frame_causal=True,
    ):
        super().__init__()
        refuse(predictor_embed_dim, num_heads, use_rope and is_frame_causal)
        self.grid = tuple(side // patch_size for side in img_size)  # rows, columns
        self.patches, self.use_extrinsics = math.prod(self.grid), use_extrinsics
        self.embed_dim, self.action_embed_dim = embed_dim, action_embed_dim
        self.head_dim, width = predictor_embed_dim // num_heads, predictor_embed_dim
        self.predictor_embed = nn.Linear(embed_dim, width)
        self.action_encoder = nn.Linear(action_embed_dim, width)
        self.state_encoder = nn.Linear(action_embed_dim, width)
        self.extrinsics_encoder = nn.Linear(action_embed_dim - 1, width)  # there, used or not
        blocks = (
            Block(
                Attention(width, num_heads, qkv_bias),
                mlp_of(width, mlp_ratio, use_silu, wide_silu),
                width,
                norm_eps,
            )
            for _ in range(depth)
        )
        self.predictor_blocks = nn.ModuleList(blocks)
        self.predictor_norm = nn.LayerNorm(width, eps=norm_eps)
        self.predictor_proj = nn.Linear(width, embed_dim)
        self._initialise()

    @torch.no_grad()
    def _initialise(self):
        """As the original's training starts."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    module.bias.zero_()
        for i, block in enumerate(self.predictor_blocks, 1):
            for last in (block.attn.proj, block.mlp.last):
                last.weight.div_(math.sqrt(2 * i))

    def forward(self, features, actions, states, extrinsics=None, frames=None, cache=None):
        """Features (B, T * N, D) of the frame after each of the T given ones, not normalised.

        features (B, T * N, D), actions (B, T, A), states (B, T, A); with use_extrinsics extrinsics
        (B, T, A - 1). frames (T,) or (B, T): the frames' places in time, else 0, 1, ... A cache, []
        at first, keeps what later frames read of these: the next call gives those alone.
        """
        batch, count = actions.shape[:2]
        self._refuse(features, actions, states, extrinsics)
        given = zip(PARTS, (actions, states, extrinsics), strict=True)
        tokens = [getattr(self, name)(x)[:, :, None] for name, x in given if self._reads(name)]
        tokens.append(self.predictor_embed(features).unflatten(1, (count, self.patches)))
        x, conditions = torch.cat(tokens, dim=2).flatten(1, 2), len(tokens) - 1
        size = conditions + self.patches  # S
        cache = [] if cache is None else cache
        cache += [None] * (len(self.predictor_blocks) - len(cache))
        known = 0 if cache[0] is None else cache[0][0].shape[2] // size
        if frames is None:
            frames = torch.arange(known, known + count, device=x.device)
        rotary = self.rotary_table(frames, conditions)
        mask = frame_causal_mask(count, size, known, x.device) if count > 1 else None
        for i, block in enumerate(self.predictor_blocks):
            x, cache[i] = block(x, rotary, mask, cache[i])
        x = x.unflatten(1, (count, size))[:, :, conditions:].flatten(1, 2)
        return self.predictor_proj(self.predictor_norm(x))

    def _reads(self, name):
        return self.use_extrinsics or name != "extrinsics_encoder"

    def _refuse(self, features, actions, states, extrinsics):
        (batch, count), width = actions.shape[:2], self.action_embed_dim
        wanted = {"features": (batch, count * self.patches, self.embed_dim)}
        wanted |= dict.fromkeys(("actions", "states"), (batch, count, width))
        given = {"features": features, "actions": actions, "states": states}
        if self.use_extrinsics:
            wanted["extrinsics"], given["extrinsics"] = (batch, count, width - 1), extrinsics
        for name, shape in wanted.items():
            found = None if given[name] is None else tuple(given[name].shape)
            if found != shape:
                raise ValueError(f"{name}: shape must be {shape}, got {found}")

    def rotary_table(self, frames, conditions):
        """Cosines and sines (B or 1, 1, T * S, 3 * width of an axis), float32.

        An even third of a head's width for each of frame, row, column; columns are scaled as if the
        grid were square. The `conditions` tokens of a frame have its place in time alone. As in the
        published weights the half-length table of angles is repeated as a whole, although
        neighbours are rotated together: the two of a pair differ in their angle.
        """
        rows, columns = self.grid
        rotated = 2 * (self.head_dim // 3 // 2)  # of each axis
        device = frames.device
        frames = frames.float().reshape(-1, frames.shape[-1], 1)
        row = torch.arange(rows, device=device).float().repeat_interleave(columns)
        column = torch.arange(columns, device=device).float().repeat(rows) * (rows / columns)
        places = torch.zeros(*frames.shape[:2], conditions + self.patches, 3, device=device)
        places[..., 0] = frames
        places[..., conditions:, 1] = row
        places[..., conditions:, 2] = column
        half = torch.arange(rotated // 2, device=device).float() / (rotated / 2)
        angles = places[..., None] * (1 / 10000**half)
        angles = torch.cat([angles, angles], dim=-1).flatten(-2).flatten(1, 2)[:, None]
        return angles.cos(), angles.sin()


def refuse(width, heads, is_published):
    if width % heads:
        raise ValueError(f"predictor_embed_dim {width} is no multiple of num_heads {heads}")
    if not is_published:
        raise ValueError("use_rope and is_frame_causal must be true")


class Block(nn.Module):
    def __init__(self, attention, mlp, width, eps):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, eps=eps), attention
        self.norm2, self.mlp = nn.LayerNorm(width, eps=eps), mlp

    def forward(self, x, rotary, mask, earlier):
        """x (B, tokens, width), and what later frames read of it and the earlier."""
        attended, known = self.attn(self.norm1(x), rotary, mask, earlier)
        x = x + attended
        return x + self.mlp(self.norm2(x)), known


class Attention(nn.Module):
    def __init__(self, width, heads, bias):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=bias), nn.Linear(width, width)

    def forward(self, x, rotary, mask, earlier):
        """earlier: keys and values (B, heads, tokens, head_dim) of frames before, or None."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, *rotary), rotate(k, *rotary)
        if earlier is not None:
            k, v = torch.cat([earlier[0], k], dim=2), torch.cat([earlier[1], v], dim=2)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(out.transpose(1, 2).flatten(2)), (k, v)


def rotate(x, cos, sin):
    """Turns neighbours of the first components of x (..., head_dim), as many as the table has."""
    turned, rest = x.split([cos.shape[-1], x.shape[-1] - cos.shape[-1]], dim=-1)
    even, odd = turned.unflatten(-1, (-1, 2)).unbind(-1)
    beside = torch.stack([-odd, even], dim=-1).flatten(-2)
    return torch.cat([(turned * cos + beside * sin).to(x.dtype), rest], dim=-1)


class MLP(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    @property
    def last(self):
        return self.fc2

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class GatedMLP(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.fc3 = nn.Linear(hidden, width)

    @property
    def last(self):
        return self.fc3

    def forward(self, x):
        return self.fc3(F.silu(self.fc1(x)) * self.fc2(x))


def mlp_of(width, ratio, gated, narrow):
    """A gated one is narrower by a third, up to a multiple of 8, with the key `wide_silu`."""
    hidden = int(width * ratio)
    if not gated:
        return MLP(width, hidden)
    return GatedMLP(width, -(-(2 * hidden // 3) // 8) * 8 if narrow else hidden)


def frame_causal_mask(count, size, known=0, device=None):
    """(count * size, (known + count) * size), True where a token of one of `count` frames, after
    `known` earlier ones, may attend to a token: of its frame and of all before."""
    frame = torch.arange(known + count, device=device).repeat_interleave(size)
    return frame[known * size :, None] >= frame[None]
