"""Peak memory of each stage of Wan2.2-TI2V-5B, as benchmarks/skyreels_memory.py has it.

python -m benchmarks.wan_memory
python -m benchmarks.wan_memory --device cuda
"""

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler

from backbones.frames import EveryK
from backbones.wan import Wan
from backbones.wan_configs import NAME, TI2V, WINDOW, widths
from backbones.wan_dit import WanTransformer3DModel
from benchmarks import skyreels_memory

RELEASED = {
    "num_attention_heads": 24, "attention_head_dim": 128, "text_dim": 4096, "freq_dim": 256,
    "ffn_dim": 14336, "num_layers": 30, "in_channels": 48, "out_channels": 48,
}  # fmt: skip
CHANNELS = 48
VAE = {
    "base_dim": 160, "decoder_base_dim": 256, "z_dim": CHANNELS, "is_residual": True,
    "patch_size": 2, "in_channels": 12, "out_channels": 12, "scale_factor_spatial": 16,
    "latents_mean": [0.0] * CHANNELS, "latents_std": [1.0] * CHANNELS,
}  # fmt: skip
SMALL_VAE = skyreels_memory.SMALL_VAE | {"decoder_base_dim": 8}
SIZE, FPS = TI2V


def random_wan(device, size, small=False):
    """As random_skyreels."""
    config = RELEASED | (skyreels_memory.SMALL if small else {})
    with torch.device("meta"):
        dit = WanTransformer3DModel(**config)
        vae = AutoencoderKLWan(**VAE | (SMALL_VAE if small else {}))
    skyreels_memory.fill_parts(dit, vae, device)
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    geometry = EveryK(NAME, 4, size, 32, FPS, WINDOW, **widths(config))
    model = Wan(dit, vae, None, scheduler, device, geometry)
    model.placed = "none"
    return model


def main():
    skyreels_memory.main(random_wan, __doc__, (SIZE,))


if __name__ == "__main__":
    main()
