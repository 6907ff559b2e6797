"""Small random models and clips for tests."""

import json

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from transformers import UMT5Config, UMT5EncoderModel

from backbones.longcat_dit import LongCatVideoTransformer3DModel
from nano.architecture import train_tokenizer

# the keys of the released dit/config.json, at a size for tests
DIT = {
    "in_channels": 16, "out_channels": 16, "hidden_size": 64, "depth": 4, "num_heads": 2,
    "caption_channels": 32, "mlp_ratio": 4, "adaln_tembed_dim": 16, "frequency_embedding_size": 32,
    "patch_size": [1, 2, 2], "enable_flashattn3": False, "enable_flashattn2": True,
    "enable_xformers": False, "enable_bsa": False, "cp_split_hw": [1, 1],
    "bsa_params": {"sparsity": 0.9375, "chunk_3d_shape_q": [4, 4, 4]},
    "text_tokens_zero_pad": True,
}  # fmt: skip


def make_checkpoint(folder):
    torch.manual_seed(0)
    dit = LongCatVideoTransformer3DModel(**DIT)
    for p in dit.parameters():
        torch.nn.init.normal_(p, std=0.05)
    dit.save_pretrained(folder / "dit", max_shard_size="500KB")
    AutoencoderKLWan(base_dim=8, dim_mult=[1, 1, 1, 1], num_res_blocks=1).save_pretrained(
        folder / "vae"
    )
    tokenizer = train_tokenizer(["a red ball moves left", "a cat in the background"] * 20)
    tokenizer.save_pretrained(folder / "tokenizer")
    UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2
        )
    ).save_pretrained(folder / "text_encoder")
    FlowMatchEulerDiscreteScheduler(shift=12.0).save_pretrained(folder / "scheduler")
    size = {"height": 32, "width": 48, "max_sequence_length": 16}
    (folder / "model_index.json").write_text(json.dumps(size))
    return folder
