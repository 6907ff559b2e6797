"""The parts of the nano checkpoint: what is trained is new, what is fitted comes fitted."""

import torch
from scipy.optimize import linear_sum_assignment
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from backbones.linear_autoencoder import GROUP, LinearVideoAutoencoder, patches
from backbones.longcat_dit import LongCatVideoTransformer3DModel

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


def new_dit():
    dit = LongCatVideoTransformer3DModel(**DIT)
    for block in dit.blocks:  # adaLN-Zero: every block starts as identity (DiT, models.py:207-216)
        torch.nn.init.zeros_(block.adaLN_modulation[1].weight)
        torch.nn.init.zeros_(block.adaLN_modulation[1].bias)
    torch.nn.init.zeros_(dit.final_layer.linear.weight)
    torch.nn.init.zeros_(dit.final_layer.linear.bias)
    return dit


def principal_axes(x, count):
    """x (M, size) float64 -> mean (size,) and the `count` leading axes (count, size)."""
    mean = x.mean(0)
    values, vectors = torch.linalg.eigh((x - mean).T @ (x - mean))
    axes = vectors[:, values.argsort(descending=True)[:count]].T
    return mean, axes * axes.sum(1, keepdim=True).sign()


def in_the_order_of(axes, others):
    """axes, permuted and turned so that each lies as close to the other of its row as can be."""
    products = axes @ others.T
    rows, columns = linear_sum_assignment(-products.abs().numpy())
    order = torch.from_numpy(rows[columns.argsort()])
    return axes[order] * products[order].diagonal()[:, None].sign()


def fit_autoencoder(clips, channels=16, temper=0.5):
    """clips (M, 3, 1 + 4k, H, W) in -1..1 -> the autoencoder.

    Channels are divided by their standard deviation to the power `temper`: at 1 the many weak ones,
    which hold what cannot be predicted, would weigh as much as the picture. The mean variance is 1.
    """
    vae = LinearVideoAutoencoder(z_dim=channels)
    for kind, part in (("first", clips[:, :, :1]), ("group", clips[:, :, 1:])):
        x = patches(part).flatten(0, 3).double()
        mean, axes = principal_axes(x[torch.randperm(len(x))[:200_000]], channels)
        getattr(vae, f"{kind}_mean").data.copy_(mean)
        getattr(vae, f"{kind}_axes").data.copy_(axes)
    group = vae.group_axes.data.unflatten(1, (3, GROUP, -1)).mean(2).flatten(1)
    vae.first_axes.data.copy_(in_the_order_of(vae.first_axes.data, group))
    with torch.no_grad():
        z = vae.encode(clips).latent_dist.mode()
    std = z.std((0, 2, 3, 4))
    scale = std**temper * (std ** (1 - temper)).square().mean().sqrt()
    vae.register_to_config(latents_mean=z.mean((0, 2, 3, 4)).tolist(), latents_std=scale.tolist())
    return vae
