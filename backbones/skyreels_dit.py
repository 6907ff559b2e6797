"""The transformer of SkyReels-V2-DF with diffusers' layers, names and weights.

Its forward is ours: methods act between the parts, a batch may hold several draws, and modulation
stays one vector a frame where diffusers makes one for every token, six times over in float32. What
it approximates is noise - latents. One linear layer makes all blocks' modulation of the timestep
embedding; each block adds its own table to it. Shape letters: B batch, T latent frames, S tokens
per frame, N = T * S, C width.
"""

import functools

import diffusers
import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_skyreels_v2 import SkyReelsV2TransformerBlock

from backbones.blocks import SITES, add_gated, apply, modulate, run_block, unpatchify

FPS_24 = 1  # of the two frame rates that were trained with; 0 is 16

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


class SkyReelsV2Transformer3DModel(diffusers.SkyReelsV2Transformer3DModel):
    """Two attributes are set from outside, as in LongCat's: `sites`, functions that a method
    registers through the backbone, and `recompute_blocks`."""

    @functools.wraps(diffusers.SkyReelsV2Transformer3DModel.__init__)  # its keys are the config's
    def __init__(self, *args, **config):
        super().__init__(*args, **config)
        for block in self.blocks:
            block.__class__ = Block
        self.recompute_blocks = 0
        self.has_weight_hooks = False  # which must see the end of a recomputed block too
        self.sites = {name: [] for name in SITES}

    def forward(self, latents, timestep, text, context=0):
        """noise - latents (B, C, T', h, w), float32, of all frames but the first `context`.

        latents (B, C, T, h, w); timestep (B, T) in 0..1000, of each frame; text (B, L, width).
        """
        grid = self._grid(latents)
        sigma, rotary = timestep.float() / 1000, self.rope(latents)
        x = self.patch_embedding(latents.to(self.weight_dtype)).flatten(2).transpose(1, 2)
        x = self._site("block_input", 0, x)
        e, m, text, _ = self.condition_embedder(timestep, text.to(self.weight_dtype))
        e, m = e.float(), m + self._frame_rate()
        projection = self.condition_embedder.time_proj.weight.float()  # once: graphs keep it
        for i in range(len(self.blocks)):
            steered = self._site("timestep_embedding", i, e, sigma)
            given = m
            if steered is not e:  # the difference alone: the frame rate's share of m stays
                given = m + F.linear(F.silu(steered) - F.silu(e), projection)
            x = run_block(self, i, x, given, text=text, rotary=rotary)
            x = self._site("block_output", i, x)
        e = self._site("timestep_embedding", len(self.blocks), e, sigma)
        x = x.unflatten(1, (grid[0], -1))[:, context:]
        return self.head(x, e[:, context:], (grid[0] - context, *grid[1:]))

    def _grid(self, latents):  # (B, C, T, h, w) -> numbers of tokens (T, H', W')
        _, ph, pw = self.config.patch_size
        return latents.shape[2], latents.shape[3] // ph, latents.shape[4] // pw

    @property
    def weight_dtype(self):
        """The type the forward computes in; a parameter's own may be that of a float32 master."""
        return self.patch_embedding.weight.dtype

    def _frame_rate(self):  # (1, 6C) of every block's modulation, whatever the timestep
        if not self.config.inject_sample_info:
            return 0.0
        which = torch.tensor([FPS_24], device=self.fps_embedding.weight.device)
        return self.fps_projection(self.fps_embedding(which))

    def _site(self, name, i, value, *more):
        return apply(tuple(self.sites[name]), i, value, *more)

    def head(self, x, e, grid):
        """Prediction (B, C, T, h, w) of tokens x (B, T, S, C) that leave the last block, with the
        final layer's timestep embedding e (B, T, width); grid counts the tokens (T, H', W')."""
        shift, scale = (self.scale_shift_table[:, None] + e[:, :, None]).chunk(2, dim=2)
        x = (self.norm_out(x.float()) * (1 + scale) + shift).to(self.proj_out.weight.dtype)
        return unpatchify(self.proj_out(x), grid, self.config.patch_size).float()


class Block(SkyReelsV2TransformerBlock):
    """diffusers' block with another forward."""

    def modulation(self, m):  # (B, T, 6C) of all blocks -> its own, float32
        return m.float() + self.scale_shift_table.flatten(1)

    def forward(self, x, m, text, rotary):
        """x (B, N, C), m (B, T, 6C): what `modulation` gave -> x after the block."""
        frames, m = (m.shape[1], -1), m.unsqueeze(2).chunk(6, dim=-1)  # (B, T, 1, C) each
        shift_attn, scale_attn, gate_attn, shift_ffn, scale_ffn, gate_ffn = m
        h = modulate(x.unflatten(1, frames), shift_attn, scale_attn).flatten(1, 2)
        x = add_gated(x, gate_attn, self.attn1(h, None, None, rotary), frames)
        x = x + self.attn2(self.norm2(x.float()).to(x.dtype), text, None, None)
        h = modulate(x.unflatten(1, frames), shift_ffn, scale_ffn).flatten(1, 2)
        return add_gated(x, gate_ffn, self.ffn(h), frames)
