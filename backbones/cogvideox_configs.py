"""Checks and geometry of a CogVideoX folder, in which diffusers has saved its pipeline, before any
weight is read; and the numbers of the releases that no file of them states."""

from backbones.configs import (
    check,
    check_buckets,
    check_by_class,
    check_files,
    check_width,
    native_values,
    optional_file,
    refuse,
)
from backbones.frames import EveryK
from backbones.ranges import (
    ABSENT,
    EVEN,
    NO,
    SWITCH,
    TEXT,
    number,
    one_of,
    optional,
    or_null,
    several,
    whole,
)

NAME = "CogVideoXTransformer3DModel"
FPS, FPS_15 = 8.0, 16.0  # of 1.0 and of 1.5, whose tokens span two latents
SIZE_15 = (768, 1360)  # its configuration states the largest positions instead
STEPS = 1000  # of the schedule
NULL = optional(one_of(None))
DEFAULTS = {  # of diffusers, for keys that a file leaves out
    "out_channels": 16, "time_embed_dim": 512, "ofs_embed_dim": None, "patch_size_t": None,
    "sample_height": 60, "sample_width": 90, "sample_frames": 49, "max_text_seq_length": 226,
    "use_rotary_positional_embeddings": False, "use_learned_positional_embeddings": False,
}  # fmt: skip
TRANSFORMER = {
    "_class_name": one_of(NAME),
    "num_attention_heads": whole(1, 256),
    "attention_head_dim": whole(16, 1024),
    "in_channels": whole(1, 512),
    "out_channels": optional(whole(1, 256)),
    "text_embed_dim": whole(1, 16384),
    "num_layers": whole(1, 256),
    "time_embed_dim": optional(whole(1, 16384)),
    "ofs_embed_dim": optional(or_null(EVEN)),
    "patch_size": one_of(1, 2, 4, 8),
    "patch_size_t": optional(or_null(whole(1, 8))),
    # a table of positions is as large as these three
    **dict.fromkeys(("sample_height", "sample_width"), optional(whole(1, 512))),
    "sample_frames": optional(whole(5, 257)),
    "temporal_compression_ratio": optional(one_of(4)),
    "max_text_seq_length": optional(whole(1, 4096)),
    "dropout": optional(number(0, 1)),
    **dict.fromkeys(("attention_bias", "patch_bias", "flip_sin_to_cos"), optional(SWITCH)),
    **dict.fromkeys([key for key in DEFAULTS if key.startswith("use_")], optional(SWITCH)),
    "freq_shift": optional(whole(0, 1)),
    "activation_fn": optional(one_of("gelu-approximate")),
    "timestep_activation_fn": optional(one_of("silu")),
    "norm_elementwise_affine": optional(one_of(True)),
    "norm_eps": optional(number(1e-12, 0.01)),
    "spatial_interpolation_scale": optional(number(0.01, 100)),
    "temporal_interpolation_scale": optional(number(0.01, 100)),
    "quantization_config": ABSENT,
}
AUTOENCODER = {
    "_class_name": one_of("AutoencoderKLCogVideoX"),
    "latent_channels": whole(1, 256),
    "block_out_channels": several(whole(1, 4096), 4, 4),
    "layers_per_block": whole(1, 16),
    "norm_num_groups": whole(1, 256),
    "scaling_factor": number(0.001, 1000),
    "invert_scale_latents": optional(SWITCH),
    "temporal_compression_ratio": optional(one_of(4, 4.0)),
    "in_channels": optional(one_of(3)),
    "out_channels": optional(one_of(3)),
    "norm_eps": optional(number(1e-12, 0.01)),
    "act_fn": optional(one_of("silu")),
    "down_block_types": optional(one_of(["CogVideoXDownBlock3D"] * 4)),
    "up_block_types": optional(one_of(["CogVideoXUpBlock3D"] * 4)),
    **dict.fromkeys(("sample_height", "sample_width"), optional(whole(16, 16384))),
    **dict.fromkeys(("use_quant_conv", "use_post_quant_conv"), NO),
    **dict.fromkeys(("shift_factor", "latents_mean", "latents_std"), NULL),
    "quantization_config": ABSENT,
}
SCHEDULE = {
    "prediction_type": one_of("v_prediction"),
    "rescale_betas_zero_snr": one_of(True),  # else no sigma is 1
    "timestep_spacing": one_of("trailing", "linspace"),  # which begin there
    "num_train_timesteps": optional(one_of(STEPS)),
    "beta_start": optional(number(1e-6, 0.1)),
    "beta_end": optional(number(1e-6, 0.1)),
    "beta_schedule": optional(one_of("scaled_linear")),
    "snr_shift_scale": optional(number(0.01, 100)),
    "set_alpha_to_one": optional(one_of(True)),
    "trained_betas": NULL,
}
DPM = "CogVideoXDPMScheduler"
SCHEDULERS = dict.fromkeys(("CogVideoXDDIMScheduler", DPM))
SCHEDULERS = {name: {"_class_name": one_of(name), **SCHEDULE} for name in SCHEDULERS}
T5 = TEXT | {"model_type": one_of("t5")}


def cogvideox_geometry(folder):
    """The Geometry of a folder, whose files are checked as they are before the weights are read."""
    return geometry(*check_cogvideox(folder))


def check_cogvideox(folder):
    """What model_index.json says, the transformer's configuration and the scheduler's. Raises
    CheckpointError."""
    check_files(folder, "transformer")
    path, vae_path = folder / "transformer" / "config.json", folder / "vae" / "config.json"
    config, vae = DEFAULTS | check(path, TRANSFORMER), check(vae_path, AUTOENCODER)
    text_path = folder / "text_encoder" / "config.json"
    text = check(text_path, T5)
    check_buckets(text_path, text)
    check_width(path, config, "text_embed_dim", text["d_model"])
    scheduler = check_by_class(folder / "scheduler" / "scheduler_config.json", SCHEDULERS)
    optional_file(folder / "tokenizer" / "tokenizer_config.json", {})
    check_transformer(path, config, vae["latent_channels"])
    for channels in vae["block_out_channels"]:
        if channels % vae["norm_num_groups"]:
            right = f"multiples of norm_num_groups = {vae['norm_num_groups']}"
            refuse(vae_path, "block_out_channels", vae["block_out_channels"], right)
    return native_values(folder, 8 * config["patch_size"]), config, scheduler


def check_transformer(path, config, channels):
    """That its parts fit together, and the autoencoder's channels."""
    if config["attention_head_dim"] % 16:  # three axes of pairs
        refuse(path, "attention_head_dim", config["attention_head_dim"], "a multiple of 16")
    if config["out_channels"] != channels:
        right = f"{channels}, the latent_channels of the vae"
        refuse(path, "out_channels", config["out_channels"], right)
    if config["in_channels"] not in (channels, 2 * channels):
        right = f"{channels} (text-to-video) or {2 * channels} (image-to-video)"
        refuse(path, "in_channels", config["in_channels"], right)
    if config["ofs_embed_dim"] not in (None, config["time_embed_dim"]):
        right = f"null or time_embed_dim = {config['time_embed_dim']}"
        refuse(path, "ofs_embed_dim", config["ofs_embed_dim"], right)
    if config["sample_frames"] % 4 != 1:
        refuse(path, "sample_frames", config["sample_frames"], "4k + 1")
    rotary = config["use_rotary_positional_embeddings"]
    if config["use_learned_positional_embeddings"] and not rotary:
        right = "true beside use_learned_positional_embeddings"
        refuse(path, "use_rotary_positional_embeddings", rotary, right)


def geometry(stated, config, scheduler):
    """Of a checked folder: what its model_index.json states, its transformer's and its scheduler's
    configuration."""
    frames, largest = (
        config["sample_frames"],
        (8 * config["sample_height"], 8 * config["sample_width"]),
    )
    newer = config["patch_size_t"] is not None
    height, width = SIZE_15 if newer else largest
    limits, sizes = {"sampling_steps": STEPS}, None
    if config["use_learned_positional_embeddings"]:
        limits |= {"tta_frames": frames, "gen_frames": frames - 1}
        sizes = largest, largest
    elif newer:
        sizes = (0, 0), largest
    # as many frames as it was trained on, of which the first is shown, to adapt and to generate
    window = {
        "anchor": frames, "cond_frames": 1, "tta_frames": frames, "context_latents": 1,
        "gen_frames": frames - 1,
    }  # fmt: skip
    return EveryK(
        NAME, 4, (stated.get("height", height), stated.get("width", width)),
        8 * config["patch_size"], FPS_15 if newer else FPS, window,
        {"dynamic_guidance": False, "dpm": scheduler["_class_name"] == DPM},
        context_lengths=(int(config["in_channels"] > config["out_channels"]),),
        context_alone=True,  # the autoencoder's norms see nine frames at once
        limits=limits, sizes=sizes, **widths(config),
    )  # fmt: skip


def widths(config):
    """As a Geometry has them."""
    return {
        "stacks": (tuple(f"transformer_blocks.{i}" for i in range(config["num_layers"])),),
        "embedding_width": config["time_embed_dim"],
        "hidden_width": config["num_attention_heads"] * config["attention_head_dim"],
    }
