"""Small random models and clips for tests."""

import contextlib
import json
from types import SimpleNamespace

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    LTXVideoTransformer3DModel,
    SkyReelsV2Transformer3DModel,
    UniPCMultistepScheduler,
    WanTransformer3DModel,
)
from oracles import arguments
from safetensors.torch import save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5EncoderModel,
)

from backbones import opensora2_configs, opensora13_configs
from backbones.longcat_dit import LongCatVideoTransformer3DModel
from backbones.opensora2_dit import MMDiT
from backbones.opensora13_autoencoder import OpenSora13Autoencoder
from backbones.opensora13_dit import STDiT3
from common.loss import flow_matching_loss
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

SKYREELS = {
    "num_attention_heads": 2, "attention_head_dim": 24, "text_dim": 32, "freq_dim": 32,
    "ffn_dim": 96, "num_layers": 4, "inject_sample_info": True,
}  # fmt: skip

WAN = {key: value for key, value in SKYREELS.items() if key != "inject_sample_info"} | {
    "in_channels": 12, "out_channels": 12,
}  # fmt: skip
WAN_VAE = {
    "base_dim": 8, "decoder_base_dim": 8, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1,
    "z_dim": 12, "is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12,
    "scale_factor_spatial": 16, "latents_mean": [0.1 * i for i in range(12)],
    "latents_std": [0.5 + 0.1 * i for i in range(12)],
}  # fmt: skip

OPENSORA2 = opensora2_configs.RELEASED | {
    "vec_in_dim": 24, "context_in_dim": 32, "hidden_size": 48, "num_heads": 2, "mlp_ratio": 2.0,
    "depth": 4, "depth_single_blocks": 5, "axes_dim": [8, 8, 8],
}  # fmt: skip
OPENSORA2_VAE = {"block_out_channels": [8, 8, 8, 8], "layers_per_block": 1, "norm_num_groups": 4}
COGVIDEOX = {
    "num_attention_heads": 3, "attention_head_dim": 16, "in_channels": 32, "out_channels": 16,
    "time_embed_dim": 16, "text_embed_dim": 32, "num_layers": 4, "sample_height": 4,
    "sample_width": 6, "sample_frames": 17, "max_text_seq_length": 16,
    "use_rotary_positional_embeddings": True, "use_learned_positional_embeddings": True,
}  # fmt: skip
COGVIDEOX_VAE = {
    "block_out_channels": [8, 8, 8, 8], "layers_per_block": 1, "norm_num_groups": 4,
    "scaling_factor": 0.7,
}  # fmt: skip
COGVIDEOX_SCHEDULE = {
    "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "snr_shift_scale": 1.0,
    "timestep_spacing": "trailing", "clip_sample": False,
}  # fmt: skip

# the keys of the released config.json, with some of what transformers writes beside them
OPENSORA13 = {
    "depth": 4, "hidden_size": 48, "num_heads": 2, "patch_size": [1, 2, 2], "in_channels": 16,
    "mlp_ratio": 2.0, "pred_sigma": True, "caption_channels": 32, "model_max_length": 16,
    "qk_norm": True, "input_sq_size": 512, "kernel_size": [2, 2, -1], "use_spatial_rope": True,
    "class_dropout_prob": 0.1, "drop_path": 0.0, "enable_flash_attn": True,
    "enable_layernorm_kernel": True, "enable_sequence_parallelism": False,
    "freeze_y_embedder": True, "input_size": [None, None, None], "only_train_temporal": False,
    "skip_temporal": False, "skip_y_embedder": False, "architectures": ["STDiT3"],
    "model_type": "STDiT3", "torch_dtype": "float32", "transformers_version": "4.36.2",
}  # fmt: skip
OPENSORA13_VAE = {"ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "z_channels": 16}
LTX = {
    "in_channels": 8, "out_channels": 8, "num_attention_heads": 2, "attention_head_dim": 24,
    "cross_attention_dim": 48, "num_layers": 4, "caption_channels": 32,
}  # fmt: skip
LTX_VAE = {  # of 0.9.5
    "latent_channels": 8, "block_out_channels": [8, 16, 16, 16, 16],
    "down_block_types": ["LTXVideo095DownBlock3D"] * 4, "layers_per_block": [1] * 5,
    "spatio_temporal_scaling": [True] * 4,
    "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
    "decoder_block_out_channels": [8, 16, 32], "decoder_layers_per_block": [1] * 4,
    "decoder_spatio_temporal_scaling": [True] * 3, "decoder_inject_noise": [False] * 4,
    "upsample_residual": [True] * 3, "upsample_factor": [2] * 3, "timestep_conditioning": True,
    "spatial_compression_ratio": 32, "temporal_compression_ratio": 8,
}  # fmt: skip


def drawn(cls, config):
    torch.manual_seed(0)
    dit = cls(**config)
    for p in dit.parameters():
        torch.nn.init.normal_(p, std=0.05)
    return dit


def make_checkpoint(folder):
    dit = drawn(LongCatVideoTransformer3DModel, DIT)
    dit.save_pretrained(folder / "dit", max_shard_size="500KB")
    FlowMatchEulerDiscreteScheduler(shift=12.0).save_pretrained(folder / "scheduler")
    return with_other_parts(folder)


def make_skyreels(folder):
    """As diffusers saves the pipeline of SkyReels-V2-DF-1.3B, its scheduler's shift left at 1. The
    prediction leans towards the noisy latents: better than zero, so that the preflight passes."""
    save_leaning(drawn(SkyReelsV2Transformer3DModel, SKYREELS), folder)
    return with_other_parts(folder)


def save_leaning(dit, folder, **scheduling):
    """Its last weights are the first ones, so that it leans towards the noisy latents."""
    patches = dit.patch_embedding.weight.detach()  # (width, C, 1, 2, 2)
    dit.proj_out.weight.data = patches.permute(2, 3, 4, 1, 0).flatten(0, 3).contiguous()
    dit.save_pretrained(folder / "transformer", max_shard_size="200KB")
    UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, **scheduling
    ).save_pretrained(folder / "scheduler")


def make_wan(folder):
    """As diffusers saves the pipeline of Wan2.2-TI2V-5B: its autoencoder packs two by two pixels.
    The prediction leans towards the noisy latents, as that of make_skyreels."""
    save_leaning(drawn(WanTransformer3DModel, WAN), folder, flow_shift=5.0)
    with_other_parts(folder)
    AutoencoderKLWan(**WAN_VAE).save_pretrained(folder / "vae")
    index = {"height": 32, "width": 64, "max_sequence_length": 16}
    index |= {"expand_timesteps": True, "boundary_ratio": None, "transformer_2": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def make_opensora2(folder):
    """The release's files, with both text models whole as they are there; files of other names say
    the sizes. The prediction leans towards the noisy latents, as that of make_skyreels."""
    folder.mkdir(parents=True)
    dit = drawn(MMDiT, OPENSORA2)
    dit.final_layer.linear.weight.data = dit.img_in.weight.detach().T.contiguous()
    vae = AutoencoderKLHunyuanVideo(**OPENSORA2_VAE)
    for module, name in ((dit, "Open_Sora_v2"), (vae, "hunyuan_vae")):
        save_file(module.state_dict(), folder / f"{name}.safetensors")
    (folder / opensora2_configs.DIT_CONFIG).write_text(json.dumps(OPENSORA2))
    (folder / opensora2_configs.VAE_CONFIG).write_text(json.dumps(OPENSORA2_VAE))
    tokenizer = make_t5(folder)
    part = {
        "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "projection_dim": 8,
        "num_attention_heads": 2,
    }  # fmt: skip
    text = part | {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    CLIPModel(CLIPConfig(text_config=text, vision_config=part, projection_dim=8)).save_pretrained(
        folder / opensora2_configs.CLIP
    )
    tokenizer.save_pretrained(folder / opensora2_configs.CLIP)
    size = {"height": 32, "width": 48, "max_sequence_length": 16}
    (folder / "model_index.json").write_text(json.dumps(size))
    return folder


def make_t5(folder):
    """Decoder included, as published; gives its tokenizer."""
    tokenizer, sizes = toy_tokenizer(), {"num_layers": 1, "num_heads": 2}
    T5ForConditionalGeneration(
        T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=32, **sizes)
    ).save_pretrained(folder / opensora2_configs.T5)
    tokenizer.save_pretrained(folder / opensora2_configs.T5)
    return tokenizer


def make_opensora13(folder):
    """The published parts side by side. The prediction leans towards minus the noisy latents, as
    in make_skyreels, since this network predicts minus the velocity."""
    written = opensora13_configs.TRANSFORMERS
    dit = drawn(STDiT3, {key: value for key, value in OPENSORA13.items() if key not in written})
    patches = dit.x_embedder.proj.weight.detach()  # (width, C, 1, 2, 2)
    leaning = -patches.permute(2, 3, 4, 1, 0).flatten(0, 2)  # (places, C, width)
    dit.final_layer.linear.weight.data = torch.cat([leaning, leaning], dim=1).flatten(0, 1)
    vae = OpenSora13Autoencoder(encoder=OPENSORA13_VAE, decoder=OPENSORA13_VAE)
    parts = {"encoder": OPENSORA13_VAE, "decoder": OPENSORA13_VAE}
    for name, module, config in (
        (opensora13_configs.DIT, dit, OPENSORA13), (opensora13_configs.VAE, vae, parts),
    ):  # fmt: skip
        (folder / name).mkdir(parents=True)
        save_file(module.state_dict(), folder / name / "model.safetensors")
        (folder / name / "config.json").write_text(json.dumps(config))
    make_t5(folder)
    (folder / "model_index.json").write_text(json.dumps({"height": 32, "width": 48}))
    return folder


def make_ltx(folder, vae_config=LTX_VAE, **scheduling):
    """As diffusers saves the pipeline of LTX-Video-0.9.5, with moments of latents that are not 0
    and 1. The prediction leans towards the noisy latents, as that of make_skyreels."""
    torch.manual_seed(0)
    dit, vae = LTXVideoTransformer3DModel(**LTX), AutoencoderKLLTXVideo(**vae_config)
    for p in dit.parameters():
        torch.nn.init.normal_(p, std=0.05)
    dit.proj_out.weight.data = dit.proj_in.weight.detach().T.contiguous()
    vae.latents_mean.normal_(0, 0.1)
    vae.latents_std.uniform_(0.5, 2)
    dit.save_pretrained(folder / "transformer", max_shard_size="200KB")
    vae.save_pretrained(folder / "vae")
    FlowMatchEulerDiscreteScheduler(**scheduling).save_pretrained(folder / "scheduler")
    with_t5(folder)
    size = {"height": 64, "width": 96, "max_sequence_length": 16}
    (folder / "model_index.json").write_text(json.dumps(size))
    return folder


def make_cogvideox(folder, scheduler=CogVideoXDDIMScheduler, vae=COGVIDEOX_VAE, **config):
    """As diffusers saves the pipeline of CogVideoX-5b-I2V; `config` is what differs in the
    transformer. The prediction leans towards x_t, as that of make_skyreels to its latents."""
    dit = drawn(CogVideoXTransformer3DModel, COGVIDEOX | config)
    if dit.config.use_learned_positional_embeddings:
        torch.nn.init.normal_(dit.patch_embed.pos_embedding, std=0.05)
    patches = dit.patch_embed.proj.weight.detach().unflatten(1, (dit.config.in_channels, -1))
    dit.proj_out.weight.data = patches[:, :16].flatten(1).T.contiguous()  # (C, p, p) of x_t
    dit.save_pretrained(folder / "transformer", max_shard_size="200KB")
    scheduler(**COGVIDEOX_SCHEDULE).save_pretrained(folder / "scheduler")
    AutoencoderKLCogVideoX(**vae).save_pretrained(folder / "vae")
    with_t5(folder)
    (folder / "model_index.json").write_text(json.dumps({"height": 32, "width": 48}))
    return folder


def with_t5(folder):
    tokenizer = toy_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    T5EncoderModel(T5Config(vocab_size=len(tokenizer), **sizes)).save_pretrained(
        folder / "text_encoder"
    )


def toy_tokenizer():
    return train_tokenizer(["a red ball moves left", "a cat in the background"] * 20)


def with_other_parts(folder):
    """Wan's autoencoder, UMT5 and its tokenizer, as both releases have them."""
    AutoencoderKLWan(base_dim=8, dim_mult=[1, 1, 1, 1], num_res_blocks=1).save_pretrained(
        folder / "vae"
    )
    tokenizer = toy_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2
        )
    ).save_pretrained(folder / "text_encoder")
    size = {"height": 32, "width": 48, "max_sequence_length": 16}
    (folder / "model_index.json").write_text(json.dumps(size))
    return folder


def toy_clip(model):
    """What a method and the loop need of a clip."""
    torch.manual_seed(0)
    text, negative = model.embed_each(["a red ball", ""])
    height, width = model.geometry.size
    shape = height // 8, width // 8
    if model.latent_channels != 16:  # packed
        shape = shape[0] // 2, shape[1] // 2

    def latents(count):
        return torch.randn(1, model.latent_channels, count, *shape)

    lengths, count = model.geometry.context_lengths, model.geometry.latents_covering(2)
    known = 1 if lengths is not None else count
    return SimpleNamespace(
        context=latents(count), target=latents(count), held_out=latents(1),
        cond_latents=latents(known),
        text=text, negative_text=negative, seed=1, video=SimpleNamespace(id="toy"),
    )  # fmt: skip


def windowed(model, clip):
    """The clip, whose continuation is as long as its target."""
    geometry = model.geometry
    known, more = clip.cond_latents.shape[2], clip.target.shape[2]
    cond_frames = geometry.frames_of(known)
    gen_frames = geometry.frames_of(known + more) - cond_frames
    window = SimpleNamespace(new_latents=more, cond_frames=cond_frames, gen_frames=gen_frames)
    return SimpleNamespace(**vars(clip) | {"window": window})


def new(method, flags, model, clip):
    """The method at its start, and three steps' arguments."""
    args = arguments(method, f"--steps 3 {flags}")
    return method(model, clip, args), args


def loss_of(model, clip):
    return flow_matching_loss(model, clip, torch.tensor([0.5]), torch.ones_like(clip.target))


@torch.no_grad()
def sample(model, clip, steps=2, **options):
    noise = torch.linspace(-2, 2, clip.target.numel()).view_as(clip.target)
    return model.generate(
        clip.cond_latents, clip.text, clip.negative_text, noise, steps=steps, **options
    )


@contextlib.contextmanager
def asked_at(model):
    """A list of the sigma of the last latent at every velocity."""
    embedded, found = [], []
    with (
        model.timestep_embedding(lambda i, e, sigma: embedded.append(sigma[0, -1].item()) or e),
        model.predicted_velocity(lambda v: found.append(embedded[-1]) or v),
    ):
        yield found


@torch.no_grad()
def perturb(method):
    for p in method.named_parameters().values():
        p.add_(0.1 * torch.randn(p.shape))


def copies(method):
    return {name: p.detach().clone() for name, p in method.named_parameters().items()}
