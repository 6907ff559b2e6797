"""The transformer of SkyReels-V2-DF with diffusers' layers, names and weights: Wan's
(backbones/wan_dit.py), and the frame rate, which it adds to all blocks' modulation."""

import functools

import diffusers
import torch
from diffusers.models.transformers.transformer_skyreels_v2 import SkyReelsV2TransformerBlock

from backbones import wan_dit

FPS_24 = 1  # of the two frame rates that were trained with; 0 is 16


class Block(SkyReelsV2TransformerBlock):
    """diffusers' block with another forward."""

    modulation, forward = wan_dit.block_modulation, wan_dit.block_forward


class SkyReelsV2Transformer3DModel(diffusers.SkyReelsV2Transformer3DModel):
    """diffusers' class with another forward."""

    @functools.wraps(diffusers.SkyReelsV2Transformer3DModel.__init__)  # its keys are the config's
    def __init__(self, *args, **config):
        super().__init__(*args, **config)
        wan_dit.prepare(self, Block)

    forward, head, weight_dtype = wan_dit.forward, wan_dit.head, property(wan_dit.weight_dtype)

    def embed(self, timestep, text):
        """Of each frame the timestep embedding (B, T, C) and its projection (B, T, 6C), and the
        text as blocks take it (B, L, C)."""
        e, m, text, _ = self.condition_embedder(timestep, text)
        return e, m + self._frame_rate(), text

    def _frame_rate(self):  # (1, 6C) of every block's modulation, whatever the timestep
        if not self.config.inject_sample_info:
            return 0.0
        which = torch.tensor([FPS_24], device=self.fps_embedding.weight.device)
        return self.fps_projection(self.fps_embedding(which))
