"""The transformer of Wan with diffusers' layers, names and weights, and what SkyReels-V2, which was
made of it, has in common with it: a block and the forward around it.

The forward is ours: methods act between the parts, a batch may hold several draws, and modulation
stays one vector a frame where diffusers makes one for every token, six times over in float32. What
it approximates is noise - latents. One linear layer makes all blocks' modulation of the timestep
embedding; each block adds its own table to it. Shape letters: B batch, T latent frames, S tokens
per frame, N = T * S, C width.
"""

import functools

import diffusers
from diffusers.models.transformers.transformer_wan import WanTransformerBlock

from backbones.blocks import SITES, add_gated, modulate, unpatchify
from backbones.per_frame import through_blocks

ATTENTION = tuple(f"{a}.{part}" for a in ("attn1", "attn2") for part in ("to_q", "to_k", "to_v"))
# in a block, for methods that tune or extend them
LINEARS = {
    "attention": (*ATTENTION, "attn1.to_out.0", "attn2.to_out.0"),
    "ffn": ("ffn.net.0.proj", "ffn.net.2"),
}
NORMS = {
    "cross": ("norm2",),
    "qk": ("attn1.norm_q", "attn1.norm_k", "attn2.norm_q", "attn2.norm_k"),
}


def prepare(dit, block_class):
    """Two attributes of a new transformer are set from outside, as LongCat's are: `sites`,
    functions that a method registers through the backbone, and `recompute_blocks`."""
    for block in dit.blocks:
        block.__class__ = block_class
    dit.recompute_blocks = 0
    dit.has_weight_hooks = False  # which must see the end of a recomputed block too
    dit.sites = {name: [] for name in SITES}


def forward(self, latents, timestep, text, context=0):
    """noise - latents (B, C, T', h, w), float32, of all frames but the first `context`.

    latents (B, C, T, h, w); timestep (B, T) in 0..1000, of each frame; text (B, L, width).
    """
    _, ph, pw = self.config.patch_size
    grid = latents.shape[2], latents.shape[3] // ph, latents.shape[4] // pw  # tokens (T, H', W')
    sigma, rotary = timestep.float() / 1000, self.rope(latents)
    x = self.patch_embedding(latents.to(self.weight_dtype)).flatten(2).transpose(1, 2)
    e, m, text = self.embed(timestep, text.to(self.weight_dtype))
    projection = self.condition_embedder.time_proj.weight.float()  # once: graphs keep it
    more = {"text": text, "rotary": rotary}
    x, e = through_blocks(self, x, e.float(), m, sigma, projection, **more)
    x = x.unflatten(1, (grid[0], -1))[:, context:]
    return self.head(x, e[:, context:], (grid[0] - context, *grid[1:]))


def head(self, x, e, grid):
    """Prediction (B, C, T, h, w) of tokens x (B, T, S, C) that leave the last block, with the
    final layer's timestep embedding e (B, T, width); grid counts the tokens (T, H', W')."""
    shift, scale = (self.scale_shift_table[:, None] + e[:, :, None]).chunk(2, dim=2)
    x = (self.norm_out(x.float()) * (1 + scale) + shift).to(self.proj_out.weight.dtype)
    return unpatchify(self.proj_out(x), grid, self.config.patch_size).float()


def weight_dtype(self):
    """The type the forward computes in; a parameter's own may be that of a float32 master."""
    return self.patch_embedding.weight.dtype


def block_modulation(self, m):  # (B, T, 6C) of all blocks -> its own, float32
    return m.float() + self.scale_shift_table.flatten(1)


def block_forward(self, x, m, text, rotary):
    """x (B, N, C), m (B, T, 6C): what `modulation` gave -> x after the block."""
    frames, m = (m.shape[1], -1), m.unsqueeze(2).chunk(6, dim=-1)  # (B, T, 1, C) each
    shift_attn, scale_attn, gate_attn, shift_ffn, scale_ffn, gate_ffn = m
    h = modulate(x.unflatten(1, frames), shift_attn, scale_attn).flatten(1, 2)
    x = add_gated(x, gate_attn, self.attn1(h, None, None, rotary), frames)
    x = x + self.attn2(self.norm2(x.float()).to(x.dtype), text, None, None)
    h = modulate(x.unflatten(1, frames), shift_ffn, scale_ffn).flatten(1, 2)
    return add_gated(x, gate_ffn, self.ffn(h), frames)


class Block(WanTransformerBlock):
    """diffusers' block with another forward."""

    modulation, forward = block_modulation, block_forward


class WanTransformer3DModel(diffusers.WanTransformer3DModel):
    """diffusers' class with another forward."""

    @functools.wraps(diffusers.WanTransformer3DModel.__init__)  # its keys are the config's
    def __init__(self, *args, **config):
        super().__init__(*args, **config)
        prepare(self, Block)

    forward, head, weight_dtype = forward, head, property(weight_dtype)

    def embed(self, timestep, text):
        """Of each frame the timestep embedding (B, T, C) and its projection (B, T, 6C), and the
        text as blocks take it (B, L, C)."""
        frames = timestep.shape[1]
        return self.condition_embedder(timestep.flatten(), text, timestep_seq_len=frames)[:3]
