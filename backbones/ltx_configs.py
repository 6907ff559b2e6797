"""Checks and geometry of an LTX-Video folder, in which diffusers has saved its pipeline, before any
weight is read; and the numbers of the release that no file of it states."""

import math

from backbones.configs import (
    check,
    check_buckets,
    check_files,
    check_width,
    native_values,
    optional_file,
    refuse,
)
from backbones.frames import EveryK
from backbones.opensora2_configs import T5_RULES
from backbones.ranges import (
    ABSENT,
    SCHEDULER,
    SWITCH,
    number,
    one_of,
    optional,
    or_null,
    several,
    whole,
)

NAME, FPS, FRAMES = "LTXVideoTransformer3DModel", 25.0, 8  # frames of a latent, but of the first
SIZE = (480, 704)  # of its authors' sampler
# as SkyReels' in frames: of 17, which are 3 latents here, 2 more are predicted
WINDOW = {
    "anchor": 33, "cond_frames": 17, "tta_frames": 33, "context_latents": 3, "gen_frames": 16
}  # fmt: skip
FIRST_FRAME = (0, 1)  # contexts in latents of releases before 0.9.5; from then on clips
OPTIONS = {"strength": 1.0, "image_cond_noise_scale": 0.0}
RANGES = dict.fromkeys(OPTIONS, (0.0, 1.0))
ONE = one_of(1, 1.0)
TRANSFORMER = {
    "_class_name": one_of(NAME),
    "in_channels": whole(1, 256),
    "out_channels": whole(1, 256),
    **dict.fromkeys(("patch_size", "patch_size_t"), optional(one_of(1))),
    "num_attention_heads": whole(1, 256),
    "attention_head_dim": whole(6, 1024),
    "cross_attention_dim": whole(1, 65536),
    "num_layers": whole(1, 256),
    "caption_channels": whole(1, 16384),
    "activation_fn": optional(one_of("gelu-approximate")),
    "qk_norm": optional(one_of("rms_norm_across_heads")),
    "norm_elementwise_affine": optional(one_of(False)),
    "norm_eps": optional(one_of(1e-6)),
    **dict.fromkeys(("attention_bias", "attention_out_bias"), optional(SWITCH)),
    "quantization_config": ABSENT,
}
CHANNELS, LAYERS = optional(several(whole(1, 4096), 1, 8)), optional(several(whole(1, 16), 1, 9))
SWITCHES = optional(several(SWITCH, 1, 9))
DOWN = ("LTXVideoDownBlock3D", "LTXVideo095DownBlock3D")
# by how much a block makes (frames, sides) fewer, where it does
FACTORS = {"conv": (2, 2), "spatial": (1, 2), "temporal": (2, 1), "spatiotemporal": (2, 2)}
VAE = {
    "_class_name": one_of("AutoencoderKLLTXVideo"),
    "latent_channels": whole(1, 256),
    **dict.fromkeys(("in_channels", "out_channels"), optional(one_of(3))),
    **dict.fromkeys(("block_out_channels", "decoder_block_out_channels"), CHANNELS),
    **dict.fromkeys(("layers_per_block", "decoder_layers_per_block"), LAYERS),
    **dict.fromkeys(("spatio_temporal_scaling", "decoder_spatio_temporal_scaling"), SWITCHES),
    **dict.fromkeys(("decoder_inject_noise", "upsample_residual"), SWITCHES),
    "upsample_factor": LAYERS,
    "down_block_types": optional(several(one_of(*DOWN), 1, 8)),
    "downsample_type": optional(several(one_of(*FACTORS), 1, 8)),
    "timestep_conditioning": optional(SWITCH),
    "patch_size": optional(whole(1, 16)),
    "patch_size_t": optional(one_of(1)),
    "resnet_norm_eps": optional(number(1e-12, 0.01)),
    "scaling_factor": optional(ONE),
    "encoder_causal": optional(one_of(True)),  # else the context would know what follows it
    "decoder_causal": optional(SWITCH),
    "spatial_compression_ratio": optional(or_null(whole(1, 1024))),
    "temporal_compression_ratio": optional(or_null(whole(1, 1024))),
    "quantization_config": ABSENT,
}
SHIFTS = ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len")
STATIC = SCHEDULER | {"shift": optional(ONE)}
DYNAMIC = STATIC | {
    "use_dynamic_shifting": one_of(True),
    **dict.fromkeys(SHIFTS[:2], number(0, 10)),
    **dict.fromkeys(SHIFTS[2:], whole(1, 1_000_000)),
    "shift_terminal": optional(or_null(number(0.001, 0.9))),
}


def ltx_geometry(folder):
    """The Geometry of a folder, whose files are checked as they are before the weights are read."""
    return geometry(*check_ltx(folder))


def geometry(stated, size_multiple, config, trained_contexts):
    """Of what check_ltx gives."""
    size = stated.get("height", SIZE[0]), stated.get("width", SIZE[1])
    width = config["num_attention_heads"] * config["attention_head_dim"]
    blocks = tuple(f"transformer_blocks.{i}" for i in range(config["num_layers"]))
    more = {"stacks": (blocks,), "embedding_width": width, "hidden_width": width}
    more |= {"sampling_ranges": RANGES, "trained_contexts": trained_contexts}
    return EveryK(NAME, FRAMES, size, size_multiple, FPS, WINDOW, OPTIONS, **more)


def check_ltx(folder):
    """Checks every configuration of a folder, and which files hold the weights; gives what
    model_index.json says, of what frames' sides are multiples, the transformer's configuration, and
    the numbers of context latents it was trained with. Raises CheckpointError."""
    check_files(folder, "transformer")
    path, text_path = (folder / part / "config.json" for part in ("transformer", "text_encoder"))
    config, text = check(path, TRANSFORMER), check(text_path, T5_RULES)
    vae_path = folder / "vae" / "config.json"
    vae = check(vae_path, VAE)
    shifts = check_scheduler(folder / "scheduler" / "scheduler_config.json")
    optional_file(folder / "tokenizer" / "tokenizer_config.json", {})
    check_transformer(path, config, vae["latent_channels"])
    check_width(path, config, "caption_channels", text["d_model"])
    check_buckets(text_path, text)
    multiple = check_compression(vae_path, vae)
    return native_values(folder, multiple), multiple, config, FIRST_FRAME if shifts else None


def check_transformer(path, config, latent_channels):
    width = config["num_attention_heads"] * config["attention_head_dim"]
    if width % 2:
        refuse(path, "attention_head_dim", config["attention_head_dim"], "even")
    if config["cross_attention_dim"] != width:
        right = f"{width}, as wide as the tokens"
        refuse(path, "cross_attention_dim", config["cross_attention_dim"], right)
    for key in ("in_channels", "out_channels"):
        if config[key] != latent_channels:
            right = f"{latent_channels}, the latent_channels of the vae"
            refuse(path, key, config[key], right)


def check_scheduler(path):
    """Whether it shifts the sigmas, which that of releases before 0.9.5 does."""
    scheduler = check(path, {"_class_name": SCHEDULER["_class_name"]})
    check(path, DYNAMIC if scheduler.get("use_dynamic_shifting") else STATIC)
    first, last = (scheduler.get(name) for name in SHIFTS[2:])
    if scheduler.get("use_dynamic_shifting") and first >= last:
        refuse(path, SHIFTS[3], last, f"more than base_image_seq_len = {first}")
    return bool(scheduler.get("use_dynamic_shifting"))


def check_compression(path, vae):
    """How many pixels of a side are a place of its latents; that encoder and decoder agree in it,
    and make eight frames a latent."""
    scaling = vae.get("spatio_temporal_scaling", [True, True, True, False])
    kinds = vae.get("downsample_type", ["conv"] * 4)
    factors = [FACTORS[kind] for kind, scales in zip(kinds, scaling, strict=False) if scales]
    encoder = tuple(math.prod(each) for each in zip((1, 1), *factors, strict=True))
    decoder = 2 ** sum(vae.get("decoder_spatio_temporal_scaling", [True, True, True, False]))
    if encoder != (FRAMES, decoder) or decoder != FRAMES:
        right = f"such that encoder and decoder, whose blocks double, scale frames by {FRAMES}"
        refuse(path, "spatio_temporal_scaling", scaling, f"{right} and sides by {FRAMES}")
    sides = vae.get("patch_size", 4) * decoder
    stated = {"spatial_compression_ratio": sides, "temporal_compression_ratio": FRAMES}
    for key, value in stated.items():
        if vae.get(key) not in (None, value):
            refuse(path, key, vae[key], f"{value} with these layers, or null")
    return sides
