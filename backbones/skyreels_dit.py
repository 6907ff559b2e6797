"""The transformer of SkyReels-V2-DF: diffusers' own, run block by block so that methods can act
between its parts, and so that a batch may hold several draws.

Layers, names and weights are diffusers'; what it approximates is noise - latents. Shape letters: B
batch, T latent frames, S tokens per frame, N = T * S, C width. One linear layer makes all blocks'
modulation of the timestep embedding; each block adds its own table to it.
"""

import functools

import diffusers
import torch
import torch.nn.functional as F

from backbones.blocks import SITES, apply, edited, linear_fp32, recomputed, unpatchify

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

    recompute_blocks = 0
    has_weight_hooks = False  # which must see the end of a recomputed block too

    @functools.cached_property
    def sites(self):
        return {name: [] for name in SITES}

    def forward(self, latents, timestep, text, context=0):
        """noise - latents (B, C, T', h, w), float32, of all frames but the first `context`.

        latents (B, C, T, h, w); timestep (B, T) in 0..1000, of each frame; text (B, L, width).
        """
        grid = self._grid(latents)
        sigma, rotary = timestep.float() / 1000, self.rope(latents)
        x = self.patch_embedding(latents.to(self.weight_dtype)).flatten(2).transpose(1, 2)
        e, m, text, _ = self.condition_embedder(timestep, text.to(self.weight_dtype))
        e, m = e.float(), m + self._frame_rate()
        for i in range(len(self.blocks)):
            x = self._run_block(i, x, e, m, sigma, text=text, rotary=rotary)
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

    def _run_block(self, i, x, e, m, sigma, **more):
        """Block i with its sites; the first recompute_blocks blocks are recomputed in backward."""
        steered = self._site("timestep_embedding", i, e, sigma)
        if steered is not e:  # their difference: the frame rate's share of m stays
            projected = [linear_fp32(self._projection, F.silu(x)) for x in (steered, e)]
            m = m + (projected[0] - projected[1])
        # bound now: a recomputed block must meet the functions that its forward met
        edit = functools.partial(edited, tuple(self.sites["modulation"]), i)
        run = functools.partial(_modulated, self.blocks[i], edit, **more)
        return self._site("block_output", i, recomputed(self, i, run, x, m))

    @property
    def _projection(self):  # of a timestep embedding (width) to the blocks' modulation (6C)
        return self.condition_embedder.time_proj

    def _site(self, name, i, value, *more):
        return apply(tuple(self.sites[name]), i, value, *more)

    def head(self, x, e, grid):
        """Prediction (B, C, T, h, w) of tokens x (B, T, S, C) that leave the last block, with the
        final layer's timestep embedding e (B, T, width); grid counts the tokens (T, H', W')."""
        shift, scale = (self.scale_shift_table[:, None] + e[:, :, None]).chunk(2, dim=2)
        x = (self.norm_out(x.float()) * (1 + scale) + shift).to(self.proj_out.weight.dtype)
        return unpatchify(self.proj_out(x), grid, self.config.patch_size).float()


def _modulated(block, edit, x, m, text, rotary):
    """Block of x (B, N, C) with the modulation m (B, T, 6C), to which it adds its own table."""
    table = block.scale_shift_table.float().flatten(1)  # (1, 6C)
    whole = m.float() + table
    m = m + (edit(whole) - whole)  # exactly m where nothing is edited
    each = x.shape[1] // m.shape[1]  # tokens of a frame
    m = m.unflatten(-1, (6, -1)).transpose(1, 2)  # (B, 6, T, C)
    return block(x, text, m.repeat_interleave(each, dim=2), rotary, None)
