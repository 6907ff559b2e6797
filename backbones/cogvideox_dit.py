"""The transformer of CogVideoX with diffusers' layers, names and weights.

Its forward is ours: methods act between the parts, and modulation is computed in float32. Text and
video tokens go through the same blocks, each with its own modulation of the one timestep embedding
(B, 1, width); what a method is shown and may change is the video's. What it approximates is the v
of vprediction.py. Shape letters: B batch, N video tokens, L text tokens, C width.
"""

import functools
import math

import diffusers
import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock
from torch import nn

from backbones.blocks import SITES, apply, linear_fp32, run_block

OFS = 2.0  # which the pipeline of 1.5 image-to-video always gives

# in a block, for methods that tune or extend them
LINEARS = {
    "attention": ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"),
    "ffn": ("ff.net.0.proj", "ff.net.2"),
}
NORMS = {"qk": ("attn1.norm_q", "attn1.norm_k")}


class CogVideoXTransformer3DModel(diffusers.CogVideoXTransformer3DModel):
    """Two attributes are set from outside, as in LongCat's: `sites`, functions that a method
    registers through the backbone, and `recompute_blocks`."""

    @functools.wraps(diffusers.CogVideoXTransformer3DModel.__init__)  # its keys are the config's
    def __init__(self, *args, **config):
        super().__init__(*args, **config)
        for block in self.transformer_blocks:
            block.__class__ = Block
            block.attn1.norm_q.__class__ = block.attn1.norm_k.__class__ = LayerNorm32
        self.recompute_blocks = 0
        self.has_weight_hooks = False  # which must see the end of a recomputed block too
        self.sites = {name: [] for name in SITES}

    @property
    def blocks(self):
        """By the name that all transformers here have."""
        return self.transformer_blocks

    def forward(self, latents, timestep, sigma, text):
        """v (B, C, T, h, w), float32, of latents (B, C or 2C, T, h, w): those of x_t, and in an
        image-to-video model after them as many channels of what it is shown.

        timestep (B,) in 0..999, sigma (B,) the same for the sites; text (B, L, width).
        """
        grid, sigma = self._grid(latents), sigma.float()[:, None]
        e = self._embed_timestep(timestep)
        x, text = self._embed(latents.to(self.weight_dtype), text.to(self.weight_dtype), grid)
        rotary = (
            self._rotary(grid, x.device) if self.config.use_rotary_positional_embeddings else None
        )
        x = self._site("block_input", 0, x)
        for i in range(len(self.blocks)):
            steered = self._site("timestep_embedding", i, e, sigma)
            x, text = run_block(self, i, x, steered, e=steered, text=text, rotary=rotary)
            x = self._site("block_output", i, x)
        e = self._site("timestep_embedding", len(self.blocks), e, sigma)
        return self.head(x, e, grid)

    @property
    def weight_dtype(self):
        """The type the forward computes in; a parameter's own may be that of a float32 master."""
        return self.patch_embed.text_proj.weight.dtype

    @property
    def patch(self):
        """(time, height, width) of a token, in latents."""
        return self.config.patch_size_t or 1, self.config.patch_size, self.config.patch_size

    def _grid(self, latents):  # (B, C, T, h, w) -> numbers of tokens (T', H', W')
        counts = latents.shape[2:]
        if any(count % size for count, size in zip(counts, self.patch, strict=True)):
            raise ValueError(
                f"latents (T, h, w) must be multiples of {self.patch}, got {(*counts,)}"
            )
        return tuple(count // size for count, size in zip(counts, self.patch, strict=True))

    def _site(self, name, i, value, *more):
        return apply(tuple(self.sites[name]), i, value, *more)

    def _embed_timestep(self, timestep):  # (B,) -> (B, 1, width) float32
        e = mlp(self.time_embedding, self.time_proj(timestep))
        if self.ofs_embedding is not None:
            e = e + mlp(self.ofs_embedding, self.ofs_proj(timestep.new_full((1,), OFS)))
        return e[:, None]

    def _embed(self, latents, text, grid):  # -> video tokens (B, N, C), text tokens (B, L, C)
        embed = self.patch_embed
        if self.config.patch_size_t is None:
            x = embed.proj(latents.transpose(1, 2).flatten(0, 1))  # (B * T, C, H', W')
            x = x.unflatten(0, (len(latents), -1)).flatten(3).transpose(2, 3).flatten(1, 2)
        else:
            x = embed.proj(patchify(latents, self.patch))
        x, text = x.contiguous(), embed.text_proj(text)  # one layout for a compiled block
        if not hasattr(embed, "pos_embedding"):
            return x, text
        table, known = self._positions(grid).to(x), self.config.max_text_seq_length
        return x + table[:, known:], text + table[:, : text.shape[1]]

    def _positions(self, grid):
        """(1, L + N, C): of the text, then of the video. A shorter video has the first ones, as in
        the authors' code (THUDM/CogVideo 0c6dc7b, sat/dit_video_concat.py); diffusers would put
        sines in the place of learned ones there."""
        embed, (_, height, width) = self.patch_embed, self.patch
        frames = (embed.sample_frames - 1) // embed.temporal_compression_ratio + 1
        own = frames, embed.sample_height // height, embed.sample_width // width
        if grid[1:] == own[1:] and grid[0] <= own[0]:
            return embed.pos_embedding[:, : self.config.max_text_seq_length + math.prod(grid)]
        if embed.use_learned_positional_embeddings:
            raise ValueError(
                f"positions are learned for {own} tokens (T, h, w) or a smaller T, got {grid}"
            )
        frames = (grid[0] - 1) * embed.temporal_compression_ratio + 1
        size = grid[1] * height, grid[2] * width
        return embed._get_positional_embeddings(*size, frames, device=embed.pos_embedding.device)

    def _rotary(self, grid, device):  # cosines and sines, (N, D) each, as its pipelines make them
        config, (_, height, width) = self.config, self.patch
        own = config.sample_height // height, config.sample_width // width
        more = {"crops_coords": crop(grid[1:], own)}
        if config.patch_size_t is not None:
            more = {"crops_coords": None, "grid_type": "slice", "max_size": own}
        return get_3d_rotary_pos_embed(
            config.attention_head_dim,
            grid_size=grid[1:],
            temporal_size=grid[0],
            device=device,
            **more,
        )

    def head(self, x, e, grid):
        """v (B, C, T, h, w) of tokens x (B, N, C) that leave the last block, with the final layer's
        timestep embedding e (B, 1, width); grid counts the tokens (T', H', W')."""
        shift, scale = linear_fp32(self.norm_out.linear, F.silu(e)).chunk(2, dim=-1)
        x = layer_norm32(self.norm_final, x).to(x.dtype)
        x = modulated_norm(self.norm_out.norm, x, shift, scale).to(self.proj_out.weight.dtype)
        return unpatchify(self.proj_out(x), grid, self.patch).float()


class Block(CogVideoXBlock):
    """diffusers' block with another forward."""

    def modulation(self, e):
        """Of the video: (B, 1, width) -> (B, 1, 6C), float32."""
        return self._projected(e, 0)

    def _projected(self, e, half):  # each layer's first half is the video's, its second the text's
        e, rows = F.silu(e), 3 * self.norm1.norm.weight.shape[0]
        rows = slice(half * rows, (half + 1) * rows)
        return torch.cat([linear_fp32(n.linear, e, rows) for n in (self.norm1, self.norm2)], dim=-1)

    def forward(self, x, m, e, text, rotary):
        """x (B, N, C), text (B, L, C) -> both after the block. m (B, 1, 6C): what `modulation` gave
        of e (B, 1, width), which modulates the text as it is."""
        video, words = m.chunk(6, dim=-1), self._projected(e, 1).chunk(6, dim=-1)
        h = modulated_norm(self.norm1.norm, x, *video[:2])
        h_text = modulated_norm(self.norm1.norm, text, *words[:2])
        h, h_text = self.attn1(h, h_text, image_rotary_emb=rotary)
        x, text = gated(x, video[2], h), gated(text, words[2], h_text)
        h = modulated_norm(self.norm2.norm, x, *video[3:5])
        h_text = modulated_norm(self.norm2.norm, text, *words[3:5])
        h_text, h = self.ff(torch.cat([h_text, h], dim=1)).split([text.shape[1], x.shape[1]], dim=1)
        return gated(x, video[5], h), gated(text, words[5], h_text)


class LayerNorm32(nn.LayerNorm):
    def forward(self, x):
        return layer_norm32(self, x).to(x.dtype)


def layer_norm32(norm, x):
    weights = norm.weight.float(), norm.bias.float()
    return F.layer_norm(x.float(), norm.normalized_shape, *weights, norm.eps)


def modulated_norm(norm, x, shift, scale):  # x (B, N, C); shift, scale (B, 1, C) float32
    return torch.addcmul(shift, layer_norm32(norm, x), 1 + scale).to(x.dtype)


def gated(x, gate, h):
    return torch.addcmul(x, gate, h).to(x.dtype)


def mlp(embedding, x):
    return linear_fp32(embedding.linear_2, F.silu(linear_fp32(embedding.linear_1, x)))


def patchify(x, patch):  # (B, C, T, h, w) -> (B, N, C * pt * ph * pw)
    for dim, size in zip((2, 4, 6), patch, strict=True):
        x = x.unflatten(dim, (-1, size))  # at last (B, C, T', pt, H', ph, W', pw)
    return x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)


def unpatchify(x, grid, patch):  # (B, N, C * pt * ph * pw) -> (B, C, T, h, w)
    x = x.unflatten(2, (-1, *patch)).unflatten(1, grid)
    return x.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def crop(grid, own):
    """Where tokens of `grid` (H', W') lie on positions of `own`: scaled to fit, in the middle, as
    ((top, left), (bottom, right))."""
    (height, width), (most_high, most_wide) = grid, own
    scale = most_high / height if height * most_wide > most_high * width else most_wide / width
    size = round(height * scale), round(width * scale)
    start = [round((most - side) / 2) for most, side in zip(own, size, strict=True)]
    return tuple(start), tuple(a + b for a, b in zip(start, size, strict=True))
