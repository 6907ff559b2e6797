"""The Open-Sora v2.0 transformer (MMDiT, 11.9B as released), loadable from the official
`Open_Sora_v2.safetensors`.

Follows the description of hpcaitech/Open-Sora (opensora/models/mmdit/model.py, v2.0): the same
configuration keys, parameter names and forward arguments. Video tokens are packed patches, ordered
frame, row, column; the text's come before them. The output approximates noise - latents. Shape
letters as in opensora2_layers.py.
"""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from backbones.blocks import SITES, apply, run_block
from backbones.opensora2_layers import (
    FREQUENCIES,
    DoubleBlock,
    Embedder,
    FinalLayer,
    SingleBlock,
    embed_number,
    rotary_table,
)


class MMDiT(ModelMixin, ConfigMixin):
    """See the module's docstring. Attention runs through PyTorch's SDPA.

    The defaults are those of the release. fused_qkv: one matrix where there are else several.
    use_liger_rope: channels are rotated in halves, else in neighbouring pairs; the weights know
    which. Two attributes are set from outside: `sites`, functions that a method registers through
    the backbone (and "head_input", function(x): the video tokens (B, N, C) that the last linear map
    is about to take), and `recompute_blocks`, how many leading blocks are recomputed in backward.
    Block i counts over the double blocks and then the single ones; i = depth is the final layer.
    """

    _no_split_modules = ["DoubleBlock", "SingleBlock"]

    @register_to_config
    def __init__(
        self,
        in_channels=64,
        vec_in_dim=768,
        context_in_dim=4096,
        hidden_size=3072,
        mlp_ratio=4.0,
        num_heads=24,
        depth=19,
        depth_single_blocks=38,
        axes_dim=(16, 56, 56),
        theta=10000,
        qkv_bias=True,
        patch_size=2,
        guidance_embed=False,
        cond_embed=True,
        fused_qkv=False,
        use_liger_rope=True,
    ):
        super().__init__()
        width = hidden_size
        if sum(axes_dim) * num_heads != width:
            raise ValueError(
                f"axes_dim must add up to hidden_size / num_heads = {width / num_heads:g}, "
                f"got {axes_dim}"
            )
        self.img_in = nn.Linear(in_channels, width)
        self.txt_in = nn.Linear(context_in_dim, width)
        self.time_in = Embedder(FREQUENCIES, width)
        self.vector_in = Embedder(vec_in_dim, width)
        if guidance_embed:
            self.guidance_in = Embedder(FREQUENCIES, width)
        if cond_embed:  # of the packed mask and reference
            self.cond_in = nn.Linear(in_channels + patch_size**2, width)
        sizes = width, num_heads, mlp_ratio, qkv_bias, fused_qkv, use_liger_rope
        self.double_blocks = nn.ModuleList(DoubleBlock(*sizes) for _ in range(depth))
        self.single_blocks = nn.ModuleList(SingleBlock(*sizes) for _ in range(depth_single_blocks))
        self.final_layer = FinalLayer(width, in_channels)
        self.recompute_blocks = 0
        self.has_weight_hooks = False  # which must see the end of a recomputed block too
        self.sites = {name: [] for name in (*SITES, "head_input")}

    def forward(self, img, img_ids, txt, txt_ids, timesteps, y_vec, cond=None, guidance=None):
        """Prediction of noise - latents (B, N, in_channels), float32.

        img (B, N, in_channels) packed noisy latents; img_ids (B, N, 3) frame, row and column of
        each token; txt (B, L, text width); txt_ids (B, L, 3) zeros; timesteps (B,) in 0..1, 1 is
        noise; y_vec (B, vec_in_dim) pooled text; cond (B, N, in_channels + patch_size ** 2) packed
        mask and reference, with cond_embed; guidance (B,), with guidance_embed.
        """
        self._refuse_missing(cond_embed=cond, guidance_embed=guidance)
        e = self._embed_conditions(timesteps, y_vec, guidance)[:, None]
        sigma, words = timesteps.float()[:, None], txt.shape[1]
        x = self._embed_tokens(img, txt, cond)
        ids = torch.cat([txt_ids.expand(len(x), -1, -1), img_ids.expand(len(x), -1, -1)], dim=1)
        rotary = rotary_table(ids, self.config.axes_dim, self.config.theta)
        for i in range(len(self.blocks)):
            x = self._run_block(i, x, e, sigma, rotary, words)
        e = self._site("timestep_embedding", len(self.blocks), e, sigma)
        x = self.final_layer.normed(x[:, words:], e)
        for function in self.sites["head_input"]:
            x = function(x)
        return self.final_layer(x)

    @property
    def blocks(self):
        """All blocks in order."""
        return [*self.double_blocks, *self.single_blocks]

    @property
    def weight_dtype(self):
        """The type the forward computes in; a parameter's own may be that of a float32 master."""
        return self.img_in.weight.dtype

    def head(self, x, e):
        """Prediction (B, N, in_channels), float32, of video tokens x (B, N, C) that leave the last
        block, with the final layer's embedding e (B, 1, C). No function at a site acts."""
        return self.final_layer(self.final_layer.normed(x, e))

    def _refuse_missing(self, **given):
        for key, value in given.items():
            if self.config[key] != (value is not None):
                name = {"cond_embed": "cond", "guidance_embed": "guidance"}[key]
                raise ValueError(f"{name} must be given with {key}=true, and only then")

    def _embed_conditions(self, timesteps, y_vec, guidance):  # -> (B, C) float32
        e = embed_number(self.time_in, timesteps)
        if guidance is not None:
            e = e + embed_number(self.guidance_in, guidance)
        return e + self.vector_in(y_vec)

    def _embed_tokens(self, img, txt, cond):  # -> (B, L + N, C)
        video = self.img_in(img.to(self.weight_dtype))
        if cond is not None:
            video = video + self.cond_in(cond.to(self.weight_dtype))
        video = self._site("block_input", 0, video)
        return torch.cat([self.txt_in(txt.to(self.weight_dtype)), video], dim=1)

    def _run_block(self, i, x, e, sigma, rotary, words):
        """Block i with its sites; the first recompute_blocks blocks are recomputed in backward."""
        e = self._site("timestep_embedding", i, e, sigma)
        x = run_block(self, i, x, e, rotary=rotary, words=words)
        if not self.sites["block_output"]:
            return x
        video = self._site("block_output", i, x[:, words:])
        return torch.cat([x[:, :words], video], dim=1)

    def _site(self, name, i, value, *more):
        return apply(tuple(self.sites[name]), i, value, *more)
