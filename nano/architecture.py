"""The trained parts of the nano checkpoint as they are before training: tokenizer, text encoder,
DiT."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from backbones.longcat_dit import LongCatVideoTransformer3DModel

HEAD = 32  # channels of a head
DIT = {
    "hidden_size": 128,
    "depth": 12,
    "num_heads": 4,
    "mlp_ratio": 3,
    "caption_channels": 64,
    "adaln_tembed_dim": 64,
    "text_tokens_zero_pad": True,
}


def train_tokenizer(captions):
    """Byte-level BPE: any caption in any language has tokens, none is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        captions,
        trainers.BpeTrainer(
            vocab_size=1024,
            special_tokens=["<pad>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", model_max_length=512
    )


def new_text_encoder(vocabulary):
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=vocabulary, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4,
            dropout_rate=0.0, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
        )
    )  # fmt: skip


def new_dit(width=DIT["hidden_size"], depth=DIT["depth"], patch=2, channels=16):
    dit = LongCatVideoTransformer3DModel(
        **DIT | {
            "hidden_size": width, "depth": depth, "num_heads": width // HEAD,
            "patch_size": (1, patch, patch), "in_channels": channels, "out_channels": channels,
        }
    )  # fmt: skip
    for block in dit.blocks:  # adaLN-Zero: every block starts as identity (DiT, models.py:207-216)
        torch.nn.init.zeros_(block.adaLN_modulation[1].weight)
        torch.nn.init.zeros_(block.adaLN_modulation[1].bias)
    torch.nn.init.zeros_(dit.final_layer.linear.weight)
    torch.nn.init.zeros_(dit.final_layer.linear.bias)
    return dit
