"""The LongCat-Video diffusion transformer (13.6B as released), loadable from the official `dit/`
folder.

Follows meituan-longcat/LongCat-Video 6b3f4b8 (longcat_video/modules/longcat_video_dit.py): the same
class name, constructor, parameter names and forward signature. Tokens are ordered frame, row,
column. The raw output approximates latents - noise; the sign is turned in backbones/longcat.py and
nowhere else. Shape letters as in longcat_layers.py.
"""

import functools
import logging
import math

import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from backbones.blocks import SITES, apply, linear_fp32, run_block, unpatchify
from backbones.longcat_layers import Block, FinalLayer, rotary_table, timestep_sinusoid
from devices import parallel

logger = logging.getLogger(__name__)


class LongCatVideoTransformer3DModel(ModelMixin, ConfigMixin):
    """See the module's docstring. Attention runs through PyTorch's SDPA.

    The configuration's kernel switches (enable_flashattn2 ...), bsa_params and cp_split_hw are
    accepted and change nothing: attention is dense; on several devices devices/parallel.py splits
    the tokens of every frame. Two attributes are set from outside: `sites`, functions that a method
    registers through the backbone, and `recompute_blocks`, how many leading blocks are recomputed
    in backward.
    """

    _no_split_modules = ["Block"]

    @register_to_config
    def __init__(
        self,
        in_channels=16,
        out_channels=16,
        hidden_size=4096,
        depth=48,
        num_heads=32,
        caption_channels=4096,
        mlp_ratio=4,
        adaln_tembed_dim=512,
        frequency_embedding_size=256,
        patch_size=(1, 2, 2),
        enable_flashattn3=False,
        enable_flashattn2=False,
        enable_xformers=False,
        enable_bsa=False,
        bsa_params=None,
        cp_split_hw=None,
        text_tokens_zero_pad=False,
    ):
        super().__init__()
        if enable_bsa:
            logger.warning("enable_bsa: block-sparse attention is not built, dense is used")
        patch = tuple(patch_size)
        if patch[0] != 1:
            raise ValueError(f"patch_size must not merge frames, (1, h, w), got {patch}")
        width, time = hidden_size, adaln_tembed_dim
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv3d(in_channels, width, patch, patch)})
        mlp = nn.Sequential(
            nn.Linear(frequency_embedding_size, time), nn.SiLU(), nn.Linear(time, time)
        )
        self.t_embedder = nn.ModuleDict({"mlp": mlp})
        y_proj = nn.Sequential(
            nn.Linear(caption_channels, width), nn.GELU("tanh"), nn.Linear(width, width)
        )
        self.y_embedder = nn.ModuleDict({"y_proj": y_proj})
        self.blocks = nn.ModuleList(Block(width, num_heads, mlp_ratio, time) for _ in range(depth))
        self.final_layer = FinalLayer(width, math.prod(patch) * out_channels, time)
        self.recompute_blocks = 0
        self.has_weight_hooks = False  # which must see the end of a recomputed block too
        self.sites = {name: [] for name in SITES}

    def forward(
        self,
        hidden_states,
        timestep,
        encoder_hidden_states,
        encoder_attention_mask=None,
        num_cond_latents=0,
        return_kv=False,
        kv_cache_dict=None,
        skip_crs_attn=False,
        noise_only=False,
    ):
        """Raw prediction of latents - noise, float32, shaped like hidden_states.

        hidden_states (B, C, T, H, W); timestep (B,) or (B, T) in 0..1000; encoder_hidden_states (B,
        1, L, text width); encoder_attention_mask (B, L). The first num_cond_latents frames are
        clean context. With return_kv also {block: (k, v)}, each (B, heads, N, D), to be given as
        kv_cache_dict to calls that hold the other frames only. With noise_only (ours, not the
        official code's) the context is left out of the result, and of most of the last block.
        """
        grid = self._grid(hidden_states)
        if timestep.ndim == 1:
            timestep = timestep[:, None].expand(-1, grid[0])
        sigma, e = timestep.float() / 1000, self._embed_timestep(timestep)
        # contiguous, as what leaves a block: a compiled block meets one layout
        x = self.x_embedder.proj(hidden_states.to(self.weight_dtype))
        x = self._site("block_input", 0, x.flatten(2).transpose(1, 2).contiguous())
        x = parallel.own(x, grid[0], 1)
        text = mask = None
        if not skip_crs_attn:
            text, mask = self._embed_text(encoder_hidden_states, encoder_attention_mask)
        clean = 0 if kv_cache_dict else num_cond_latents * (x.shape[1] // grid[0])
        rotary = self._rotary(grid, num_cond_latents if kv_cache_dict else 0, x.device)
        run = functools.partial(
            self._run_block, e=e, sigma=sigma, text=text, text_mask=mask, rotary=rotary, clean=clean
        )
        caches, depth = {}, len(self.blocks)
        for i in range(depth):
            left_out = noise_only and i == depth - 1
            x, fresh = run(i, x, cache=(kv_cache_dict or {}).get(i), noise_only=left_out)
            if return_kv:
                caches[i] = tuple(c.contiguous() for c in fresh)
        e = self._site("timestep_embedding", depth, e, sigma)
        if noise_only:
            e, grid = e[:, num_cond_latents:], (grid[0] - num_cond_latents, *grid[1:])
        out = self.head(parallel.whole(x, grid[0], 1).unflatten(1, (grid[0], -1)), e, grid)
        return (out, caches) if return_kv else out

    def _grid(self, x):  # (B, C, T, H, W) -> numbers of tokens (T, H', W')
        _, ph, pw = self.config.patch_size
        if x.shape[3] % ph or x.shape[4] % pw:
            raise ValueError(
                f"latent height and width must be multiples of {ph, pw}, got {x.shape[3:]}"
            )
        return x.shape[2], x.shape[3] // ph, x.shape[4] // pw

    def _rotary(self, grid, cached_frames, device):  # the tables of queries and of keys
        head = self.config.hidden_size // self.config.num_heads
        frames = grid[0] + cached_frames
        keys = rotary_table((frames, *grid[1:]), head, device)
        keys = tuple(parallel.own(part, frames, 0) for part in keys)
        return tuple(part[-grid[0] * (len(part) // frames) :] for part in keys), keys

    @property
    def weight_dtype(self):
        """The type the forward computes in; a parameter's own may be that of a float32 master."""
        return self.x_embedder.proj.weight.dtype

    def head(self, x, e, grid):
        """Raw prediction (B, C, T, H, W) of tokens x (B, T, S, C) that leave the last block, with
        the final layer's timestep embedding e (B, T, width); grid counts the tokens (T, H, W)."""
        return unpatchify(self.final_layer(x, e), grid, self.config.patch_size)

    def _run_block(self, i, x, *, e, sigma, **more):
        """Block i with its sites; the first recompute_blocks blocks are recomputed in backward."""
        e = self._site("timestep_embedding", i, e, sigma)
        x, fresh = run_block(self, i, x, e, **more)
        return self._site("block_output", i, x), fresh

    def _site(self, name, i, value, *more):
        return apply(tuple(self.sites[name]), i, value, *more)

    def _embed_timestep(self, timestep):  # (B, T) -> (B, T, width) float32
        # the cast rounds as the official code does: in bf16, multiples of 4 above 512
        sinusoid = timestep_sinusoid(
            timestep.to(self.weight_dtype).flatten(), self.config.frequency_embedding_size
        )
        mlp = self.t_embedder.mlp
        return linear_fp32(mlp[2], F.silu(linear_fp32(mlp[0], sinusoid))).view(*timestep.shape, -1)

    def _embed_text(
        self, text, mask
    ):  # (B, 1, L, width), (B, L) -> (B, L, C), (B, 1, 1, L) or None
        text = self.y_embedder.y_proj(text.to(self.weight_dtype)).squeeze(1)
        if mask is None:
            return text, None
        if self.config.text_tokens_zero_pad:  # padding rows count, as zeros
            return text * mask[..., None].to(text.dtype), None
        return text, mask[:, None, None, :].bool()
