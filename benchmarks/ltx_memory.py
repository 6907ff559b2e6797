"""Peak memory of each stage of LTX-Video-0.9.5, as benchmarks/skyreels_memory.py has it; both
branches of the guidance are one batch there, of which one row is counted.

python -m benchmarks.ltx_memory
python -m benchmarks.ltx_memory --device cuda
"""

import torch
from diffusers import AutoencoderKLLTXVideo

from backbones.ltx import LTX
from backbones.ltx_configs import SIZE, geometry
from backbones.ltx_dit import LTXVideoTransformer3DModel
from benchmarks import skyreels_memory

RELEASED = {
    "num_attention_heads": 32, "attention_head_dim": 64, "cross_attention_dim": 2048,
    "num_layers": 28, "caption_channels": 4096,
}  # fmt: skip
SMALL = {
    "num_attention_heads": 2, "attention_head_dim": 24, "cross_attention_dim": 48,
    "num_layers": 4, "caption_channels": 32,
}  # fmt: skip
VAE = {
    "block_out_channels": [128, 256, 512, 1024, 2048], "layers_per_block": [4, 6, 6, 2, 2],
    "down_block_types": ["LTXVideo095DownBlock3D"] * 4, "spatio_temporal_scaling": [True] * 4,
    "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
    "decoder_block_out_channels": [256, 512, 1024], "decoder_layers_per_block": [5] * 4,
    "decoder_spatio_temporal_scaling": [True] * 3, "decoder_inject_noise": [False] * 4,
    "upsample_residual": [True] * 3, "upsample_factor": [2] * 3, "timestep_conditioning": True,
    "spatial_compression_ratio": 32, "temporal_compression_ratio": 8,
}  # fmt: skip
SMALL_VAE = VAE | {
    "block_out_channels": [8, 16, 16, 16, 16], "layers_per_block": [1] * 5,
    "decoder_block_out_channels": [8, 16, 32], "decoder_layers_per_block": [1] * 4,
}  # fmt: skip


def random_ltx(device, size, small=False):
    """As random_skyreels; no scheduler, whose sigmas no stage needs."""
    config = SMALL if small else RELEASED
    with torch.device("meta"):
        dit = LTXVideoTransformer3DModel(**config)
        vae = AutoencoderKLLTXVideo(**SMALL_VAE if small else VAE)
    with torch.device("meta"):  # as its other weights: a number's tensor is never without content
        vae.decoder.timestep_scale_multiplier = torch.nn.Parameter(torch.empty(()))
    skyreels_memory.fill(dit, device, lambda name: torch.bfloat16)
    skyreels_memory.fill(vae, device, lambda name: torch.float32)
    stated = dict(zip(("height", "width"), size, strict=True))
    model = LTX(dit, vae, None, None, device, geometry(stated, 32, config, None))
    model.placed = "none"
    return model


def main():
    skyreels_memory.main(random_ltx, __doc__, (SIZE,))


if __name__ == "__main__":
    main()
