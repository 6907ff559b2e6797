"""SkyReels, Wan and LTX-Video as their releases configure them, with random weights and no text
encoder, which is gone before a clip is read."""

import torch
from diffusers import AutoencoderKLLTXVideo, AutoencoderKLWan, UniPCMultistepScheduler

from backbones import ltx_configs, skyreels_configs, wan_configs
from backbones.frames import EveryK
from backbones.ltx import LTX
from backbones.ltx_dit import LTXVideoTransformer3DModel
from backbones.skyreels import SkyReels
from backbones.skyreels_dit import SkyReelsV2Transformer3DModel
from backbones.wan import Wan
from backbones.wan_dit import WanTransformer3DModel

SMALL = {"num_attention_heads": 2, "attention_head_dim": 24, "text_dim": 32, "num_layers": 4}
SMALL_VAE = {"base_dim": 8, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
SKYREELS = {
    "num_attention_heads": 12, "attention_head_dim": 128, "text_dim": 4096, "freq_dim": 256,
    "ffn_dim": 8960, "num_layers": 30, "inject_sample_info": True,
}  # fmt: skip
WAN = {
    "num_attention_heads": 24, "attention_head_dim": 128, "text_dim": 4096, "freq_dim": 256,
    "ffn_dim": 14336, "num_layers": 30, "in_channels": 48, "out_channels": 48,
}  # fmt: skip
WAN_VAE = {
    "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True,
    "patch_size": 2, "in_channels": 12, "out_channels": 12, "scale_factor_spatial": 16,
    "latents_mean": [0.0] * 48, "latents_std": [1.0] * 48,
}  # fmt: skip
LTX_0_9_5 = {
    "num_attention_heads": 32, "attention_head_dim": 64, "cross_attention_dim": 2048,
    "num_layers": 28, "caption_channels": 4096,
}  # fmt: skip
SMALL_LTX = {
    "num_attention_heads": 2, "attention_head_dim": 24, "cross_attention_dim": 48,
    "num_layers": 4, "caption_channels": 32,
}  # fmt: skip
LTX_VAE = {
    "block_out_channels": [128, 256, 512, 1024, 2048], "layers_per_block": [4, 6, 6, 2, 2],
    "down_block_types": ["LTXVideo095DownBlock3D"] * 4, "spatio_temporal_scaling": [True] * 4,
    "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
    "decoder_block_out_channels": [256, 512, 1024], "decoder_layers_per_block": [5] * 4,
    "decoder_spatio_temporal_scaling": [True] * 3, "decoder_inject_noise": [False] * 4,
    "upsample_residual": [True] * 3, "upsample_factor": [2] * 3, "timestep_conditioning": True,
    "spatial_compression_ratio": 32, "temporal_compression_ratio": 8,
}  # fmt: skip
SMALL_LTX_VAE = LTX_VAE | {
    "block_out_channels": [8, 16, 16, 16, 16], "layers_per_block": [1] * 5,
    "decoder_block_out_channels": [8, 16, 32], "decoder_layers_per_block": [1] * 4,
}  # fmt: skip


def skyreels(device, size, small=False):
    config = SKYREELS | (SMALL if small else {})
    with torch.device("meta"):
        dit = SkyReelsV2Transformer3DModel(**config)
        vae = AutoencoderKLWan(**(SMALL_VAE if small else {}))
    return of_wans_kind(
        SkyReels, skyreels_configs, 16, skyreels_configs.FPS, dit, vae, device, size
    )


def wan(device, size, small=False):
    config = WAN | (SMALL if small else {})
    with torch.device("meta"):
        dit = WanTransformer3DModel(**config)
        vae = AutoencoderKLWan(**WAN_VAE | (SMALL_VAE | {"decoder_base_dim": 8} if small else {}))
    return of_wans_kind(Wan, wan_configs, 32, wan_configs.TI2V[1], dit, vae, device, size)


def of_wans_kind(cls, configs, multiple, fps, dit, vae, device, size):
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    widths = wan_configs.widths(dit.config)
    geometry = EveryK(configs.NAME, 4, size, multiple, fps, configs.WINDOW, **widths)
    fill(dit, device, torch.bfloat16)
    dit.rope = type(dit.rope)(dit.config.attention_head_dim, (1, 2, 2), 1024).to(device)
    return placed(cls(dit, fill(vae, device), None, scheduler, device, geometry))


def ltx(device, size, small=False):
    """Without a scheduler, whose sigmas no stage needs."""
    config = SMALL_LTX if small else LTX_0_9_5
    with torch.device("meta"):
        dit = LTXVideoTransformer3DModel(**config)
        vae = AutoencoderKLLTXVideo(**SMALL_LTX_VAE if small else LTX_VAE)
        # as its other weights: a number's tensor is never without content
        vae.decoder.timestep_scale_multiplier = torch.nn.Parameter(torch.empty(()))
    stated = dict(zip(("height", "width"), size, strict=True))
    geometry = ltx_configs.geometry(stated, 32, config, None)
    fill(dit, device, torch.bfloat16)
    return placed(LTX(dit, fill(vae, device), None, None, device, geometry))


def fill(module, device, dtype=torch.float32):
    """Random weights, of that type but for what the class keeps in float32."""
    kept = {*(getattr(module, "_keep_in_fp32_modules", None) or ())}
    weights = {}
    for name, w in module.state_dict().items():
        own = torch.float32 if kept & {*name.split(".")} else dtype
        weights[name] = torch.randn(w.shape, dtype=own, device=device).mul_(0.02)
    module.load_state_dict(weights, assign=True)
    return module


def placed(model):
    model.placed = "none"
    return model
