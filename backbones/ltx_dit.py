"""The transformer of LTX-Video with diffusers' layers, names and weights.

The forward is ours, for the reasons of wan_dit.py, and what it approximates is noise - latents. A
latent's place is a token. Blocks normalise by the root mean square, cross-attention takes tokens as
they are, and places are told in seconds and pixels. Shape letters: B batch, T latent frames, S
tokens per frame, N = T * S, C width.
"""

import functools

import diffusers
import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_ltx import LTXVideoTransformerBlock

from backbones.blocks import add_gated, unpatchify
from backbones.per_frame import through_blocks
from backbones.wan_dit import ATTENTION, prepare

# in a block, for methods that tune or extend them; no affine norm lies between its layers
LINEARS = {
    "attention": (*ATTENTION, "attn1.to_out.0", "attn2.to_out.0"),
    "ffn": ("ff.net.0.proj", "ff.net.2"),
}
NORMS = {"qk": ("attn1.norm_q", "attn1.norm_k", "attn2.norm_q", "attn2.norm_k")}
MASKED = -10000.0  # added to the scores of tokens that a prompt has not


class Block(LTXVideoTransformerBlock):
    """diffusers' block with another forward."""

    def modulation(self, m):  # (B, T, 6C) of all blocks -> its own, float32
        return m.float() + self.scale_shift_table.flatten().float()

    def forward(self, x, m, text, mask, rotary):
        """x (B, N, C), m (B, T, 6C): what `modulation` gave -> x after the block."""
        frames, m = (m.shape[1], -1), m.unsqueeze(2).chunk(6, dim=-1)  # (B, T, 1, C) each
        shift_attn, scale_attn, gate_attn, shift_ffn, scale_ffn, gate_ffn = m
        h = modulate(x.unflatten(1, frames), shift_attn, scale_attn).flatten(1, 2)
        x = add_gated(x, gate_attn, self.attn1(h, None, None, rotary), frames)
        x = x + self.attn2(x, text, mask, None)
        h = modulate(x.unflatten(1, frames), shift_ffn, scale_ffn).flatten(1, 2)
        return add_gated(x, gate_ffn, self.ff(h), frames)


def modulate(x, shift, scale):  # x (B, T, S, C); shift, scale (B, T, 1, C) float32
    normed = F.rms_norm(x.float(), x.shape[-1:], eps=1e-6)
    return torch.addcmul(shift, normed, 1 + scale).to(x.dtype)


class LTXVideoTransformer3DModel(diffusers.LTXVideoTransformer3DModel):
    """diffusers' class with another forward. `places` is set from outside beside what `prepare`
    sets: frames and pixels of a latent's place, frames a second, and whether the first latent
    counts as one frame."""

    @functools.wraps(diffusers.LTXVideoTransformer3DModel.__init__)  # its keys are the config's
    def __init__(self, *args, **config):
        super().__init__(*args, **config)
        prepare(self, Block)
        self.places = (8, 32, 25.0, True)

    @property
    def blocks(self):
        return self.transformer_blocks

    @property
    def weight_dtype(self):
        """The type the forward computes in; a parameter's own may be that of a float32 master."""
        return self.proj_in.weight.dtype

    def forward(self, latents, timestep, text, context=0):
        """noise - latents (B, C, T', h, w), float32, of all frames but the first `context`.

        latents (B, C, T, h, w); timestep (B, T) in 0..1000, of each frame; text: embeddings (B, L,
        width) and their mask (B, L).
        """
        grid, sigma = latents.shape[2:], timestep.float() / 1000
        x = self.proj_in(latents.to(self.weight_dtype).flatten(2).transpose(1, 2))
        m, e = self.time_embed(timestep.flatten(), hidden_dtype=x.dtype)
        m, e = (each.unflatten(0, timestep.shape) for each in (m, e.float()))
        words, mask = text
        more = {
            "text": self.caption_projection(words.to(x.dtype)),
            "mask": ((1 - mask.to(x.dtype)) * MASKED)[:, None],
            "rotary": self.rope(x, video_coords=coordinates(grid, *self.places, x.device)),
        }
        projection = self.time_embed.linear.weight.float()  # once: graphs keep it
        x, e = through_blocks(self, x, e, m, sigma, projection, **more)
        x = x.unflatten(1, (grid[0], -1))[:, context:]
        return self.head(x, e[:, context:], (grid[0] - context, *grid[1:]))

    def head(self, x, e, grid):
        """Prediction (B, C, T, h, w) of tokens x (B, T, S, C) that leave the last block, with the
        final layer's timestep embedding e (B, T, width); grid counts the tokens (T, h, w)."""
        shift, scale = (self.scale_shift_table + e[:, :, None]).chunk(2, dim=2)
        x = (self.norm_out(x.float()) * (1 + scale) + shift).to(self.proj_out.weight.dtype)
        return unpatchify(self.proj_out(x), grid, (1, 1, 1)).float()


def coordinates(grid, frames, pixels, fps, first_alone, device):
    """(1, 3, N): second, row and column in pixels of each place of a grid (T, h, w). Where the
    first latent is one frame alone the second begins a frame later, as LTXConditionPipeline counts;
    otherwise `frames` later, as LTXPipeline and LTXImageToVideoPipeline do."""
    t, rows, columns = (torch.arange(n, device=device) for n in grid)
    begin = (frames * t + 1 - frames).clamp(min=0) if first_alone else frames * t
    seconds = begin.float() * (1.0 / fps)
    axes = torch.meshgrid(seconds, pixels * rows.float(), pixels * columns.float(), indexing="ij")
    return torch.stack([axis.flatten() for axis in axes])[None]
