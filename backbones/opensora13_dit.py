"""The Open-Sora v1.3 transformer (STDiT3, 1.2B as released), loadable from the official weights.

Follows the description of hpcaitech/Open-Sora v1.3 (opensora/models/stdit/stdit3.py): the same
class name, configuration keys, parameter names and forward arguments. Tokens are ordered frame,
row, column. Of its output the first half of the channels approximates latents - noise and the rest
is not used; the sign is turned in opensora13_sampling.py and nowhere else. Shape letters as in
opensora13_layers.py.
"""

import functools
import itertools
import math

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from backbones.blocks import SITES, apply, unpatchify
from backbones.opensora13_layers import (
    PAIR_MODULATION,
    Block,
    Embedder,
    FinalLayer,
    TextEmbedder,
    key_mask,
    linear_of_silu,
    position_table,
    rotary_table,
    windows_over,
)


class STDiT3(ModelMixin, ConfigMixin):
    """See the module's docstring. Attention runs through PyTorch's SDPA.

    The defaults are those of the release. Keys about training or kernels, from input_size on, are
    accepted and change nothing. Set from outside: `sites`, functions that a method registers
    through the backbone (and "head_input", function(x): the tokens (B, T, S, C) that the last
    linear map is about to take), and `recompute_blocks`, how many leading pairs are recomputed in
    backward. Block i of the sites is the pair of spatial and temporal block i; i = depth is the
    final layer.
    """

    _no_split_modules = ["Block"]
    _keep_in_fp32_modules = ["rope"]

    @register_to_config
    def __init__(
        self,
        depth=28,
        hidden_size=1152,
        num_heads=16,
        patch_size=(1, 2, 2),
        in_channels=16,
        mlp_ratio=4.0,
        pred_sigma=True,
        caption_channels=4096,
        model_max_length=300,
        qk_norm=True,
        input_sq_size=512,
        kernel_size=(8, 8, -1),  # rows, columns, frames
        use_spatial_rope=True,
        skip_temporal=False,
        skip_y_embedder=False,
        input_size=(None, None, None),
        drop_path=0.0,
        class_dropout_prob=0.1,
        enable_flash_attn=False,
        enable_layernorm_kernel=False,
        enable_sequence_parallelism=False,
        only_train_temporal=False,
        freeze_y_embedder=False,
    ):
        super().__init__()
        width, patch = hidden_size, tuple(patch_size)
        axes = 3 if kernel_size else 1  # of the rotary embedding
        refuse(patch, width, num_heads, axes, use_spatial_rope, skip_temporal or skip_y_embedder)
        self.out_channels = in_channels * (2 if pred_sigma else 1)
        for name in ("x_embedder", "x_embedder_cond", "x_embedder_cond_mask"):
            proj = nn.Conv3d(in_channels, width, patch, patch)
            setattr(self, name, nn.ModuleDict({"proj": proj}))
        self.t_embedder, self.fps_embedder = Embedder(width), Embedder(width)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.y_embedder = TextEmbedder(caption_channels, width, model_max_length)
        rotated = width // num_heads // axes
        self.rope = nn.Module()  # of one axis, which all share
        steps = torch.arange(0, rotated, 2).float() / rotated
        self.rope.register_buffer("freqs", 10000**-steps)
        sizes = width, num_heads, mlp_ratio, qk_norm
        self.spatial_blocks = nn.ModuleList(Block(*sizes) for _ in range(depth))
        self.temporal_blocks = nn.ModuleList(Block(*sizes) for _ in range(depth))
        self.final_layer = FinalLayer(width, math.prod(patch) * self.out_channels)
        self.recompute_blocks = 0
        self.has_weight_hooks = False  # which must see the end of a recomputed block too
        self.repeats_final_norm = False  # with x_mask, as the official code does: see _normed
        self.sites = {name: [] for name in (*SITES, "head_input")}

    def forward(
        self,
        x,
        timestep,
        y,
        mask=None,
        x_mask=None,
        fps=None,
        height=None,
        width=None,
        cond=None,
        cond_mask=None,
        mask_index=None,
        y_null=None,
    ):
        """Prediction (B, 2 * in_channels, T, h, w), float32; see the module's docstring.

        x (B, in_channels, T, h, w) noisy latents; timestep (B,) in 0..1000, 1000 is noise; y (B, 1,
        L, text width); mask (B or 1, L), 0 where y is padded; fps, height, width (B or 1,) of the
        video. x_mask (B, T): frames marked False are clean, at time 0. With given latents:
        mask_index, their frames; cond, of x's shape, 0 elsewhere; cond_mask, 1 and 0; y_null, of
        y's shape, what the given frames read.
        """
        self._refuse_partial(mask_index, (cond, cond_mask, y_null))
        size, grid = x.shape[3:], self._grid(x.shape[2:])
        scale = math.sqrt(float(height[0]) * float(width[0])) / self.config.input_sq_size
        e, sigma, noisy = self._embed_times(timestep, fps, x_mask)
        x = self._site("block_input", 0, self._embed_latents(x, cond, cond_mask, grid, scale))
        run = functools.partial(
            self._run_pair, windows=self.windows(grid, scale, len(x)), grid=grid,
            text=self.y_embedder(y),
            text_mask=None if mask is None else key_mask(mask, len(y)),
            null_text=None if y_null is None else self.y_embedder(y_null),
            given=tuple(mask_index or ()),
        )  # fmt: skip
        weights = self.t_block[1].weight, self.t_block[1].bias
        shared = functools.partial(linear_of_silu, *(p.float() for p in weights))  # graphs keep it
        m = shared(e)
        for i in range(self.config.depth):
            steered = self._site("timestep_embedding", i, e, sigma)
            x = run(i, x, m if steered is e else shared(steered))
        e = self._site("timestep_embedding", self.config.depth, e, sigma)
        x = self._normed(x.unflatten(1, (grid[0], -1)), e, x_mask, noisy)
        for function in self.sites["head_input"]:
            x = function(x)
        return self._unpatchify(x, grid, size)

    @property
    def blocks(self):
        """All blocks in the order in which they run: spatial 0, temporal 0, spatial 1, ..."""
        pairs = zip(self.spatial_blocks, self.temporal_blocks, strict=True)
        return list(itertools.chain.from_iterable(pairs))

    @property
    def weight_dtype(self):
        """The type the forward computes in; a parameter's own may be that of a float32 master."""
        return self.x_embedder.proj.weight.dtype

    def head(self, x, e, size):
        """Prediction (B, 2 * in_channels, T, h, w), float32, of tokens x (B, T, S, C) that leave
        the last block, with the final layer's embedding e (B, T or 1, C); size is (h, w). No
        function at a site acts."""
        return self._unpatchify(
            self.final_layer.normed(x, e), self._grid((x.shape[1], *size)), size
        )

    def _refuse_partial(self, mask_index, parts):
        if any((part is None) != (mask_index is None) for part in parts):
            raise ValueError("cond, cond_mask and y_null must be given with mask_index, only then")

    def _grid(self, sizes):  # of latents -> numbers of tokens (T, H, W), the last ones padded
        return tuple(-(-n // p) for n, p in zip(sizes, self.config.patch_size, strict=True))

    def _embed_times(self, timestep, fps, x_mask):
        """Embedding (B, T or 1, C), float32, and sigma (B, T or 1); and both of noisy frames."""
        rate, sigma = self.fps_embedder(fps), timestep.float()[:, None] / 1000
        noisy = (self.t_embedder(timestep) + rate)[:, None], sigma
        if x_mask is None:
            return *noisy, noisy
        clean = (self.t_embedder(torch.zeros_like(timestep)) + rate)[:, None]
        e = torch.where(x_mask[..., None], noisy[0], clean)
        return e, torch.where(x_mask, sigma, 0.0), noisy

    def _embed_latents(self, x, cond, cond_mask, grid, scale):  # -> (B, N, C)
        _, ph, pw = self.config.patch_size
        padding = (0, grid[2] * pw - x.shape[4], 0, grid[1] * ph - x.shape[3])
        parts = {"": x, "_cond": cond, "_cond_mask": cond_mask}
        tokens = sum(
            getattr(self, f"x_embedder{end}").proj(F.pad(part.to(self.weight_dtype), padding))
            for end, part in parts.items()
            if part is not None
        )
        places = position_table(*grid[1:], self.config.hidden_size, scale, x.device)
        return (tokens.flatten(3).permute(0, 2, 3, 1) + places.to(tokens.dtype)).flatten(1, 2)

    def windows(self, grid, scale, batch):
        """Those of spatial and of temporal blocks."""
        axes = 3 if self.config.kernel_size else 1
        rows, columns, frames = self.config.kernel_size or (1, 1, -1)
        freqs = self.rope.freqs
        table = functools.partial(rotary_table, frequencies=freqs, scale=scale, axes=axes)
        of_spatial = table if self.config.use_spatial_rope else None
        of_kind = ((1, -1, -1), of_spatial), ((frames, rows, columns), table)
        return tuple(windows_over(grid, w, batch, rotary, freqs.device) for w, rotary in of_kind)

    def _run_pair(self, i, x, m, windows, **more):
        """Pair i with its sites; in backward each of its blocks is recomputed on its own, so that
        they come in the order opposite to the forward's."""
        pair = self.spatial_blocks[i], self.temporal_blocks[i]
        names = PAIR_MODULATION
        parts = itertools.chain(*(block.modulation(m) for block in pair))
        parts = self._site("modulation", i, dict(zip(names, parts, strict=True)))
        for n, block in enumerate(pair):
            run = functools.partial(block, windows=windows[n], **more)
            if i < self.recompute_blocks and torch.is_grad_enabled():
                options = {"use_reentrant": False, "preserve_rng_state": False}
                run = functools.partial(checkpoint, run, **options)
            with set_checkpoint_early_stop(not self.has_weight_hooks):
                x = run(x, [parts[name] for name in names[6 * n : 6 * n + 6]])
        return self._site("block_output", i, x)

    def _normed(self, x, e, x_mask, noisy):
        """What the last linear map takes. With repeats_final_norm clean frames are normalised and
        modulated as noisy ones first, and the site of the final layer is met for both."""
        if x_mask is None or not self.repeats_final_norm:
            return self.final_layer.normed(x, e)
        x = self.final_layer.normed(x, self._site("timestep_embedding", self.config.depth, *noisy))
        return torch.where(x_mask[:, :, None, None], x, self.final_layer.normed(x, e))

    def _unpatchify(self, x, grid, size):
        x = unpatchify(self.final_layer(x), grid, self.config.patch_size)
        return x[..., : size[0], : size[1]]

    def _site(self, name, i, value, *more):
        return apply(tuple(self.sites[name]), i, value, *more)


def refuse(patch, width, heads, axes, use_spatial_rope, skips):
    if patch[0] != 1:
        raise ValueError(f"patch_size must not merge frames, (1, h, w), got {patch}")
    if skips:
        raise ValueError("skip_temporal and skip_y_embedder must be false")
    if use_spatial_rope and axes == 1:
        raise ValueError("use_spatial_rope must be false without a kernel_size")
    if width % (heads * axes * 2):
        raise ValueError(
            f"hidden_size must be a multiple of {2 * axes} * num_heads = {2 * axes * heads}, "
            f"got {width}"
        )
