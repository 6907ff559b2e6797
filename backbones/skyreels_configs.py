"""Checks and geometry of a SkyReels-V2-DF folder, in which diffusers has saved its pipeline, before
any weight is read; and the numbers of the release that no file of it states."""

from backbones.configs import (
    Layout,
    check_channels,
    check_checkpoint,
    check_width,
    one_stack,
    read_config,
    refuse,
)
from backbones.frames import EveryK
from backbones.ranges import (
    ABSENT,
    CONTEXT_NOISE,
    EULER,
    EVEN,
    NO,
    PATCH,
    SWITCH,
    number,
    one_of,
    optional,
    several,
    whole,
)

NAME, FPS = "SkyReelsV2Transformer3DModel", 24.0
SIZE = (544, 960)  # of the checkpoints named 540P
# 17 frames are the overlap that its authors continue long videos with; adaptation sees as many
# context latents (5) and predicts as many (4) as generation. Its own sampler makes 97 at once
WINDOW = {
    "anchor": 33, "cond_frames": 17, "tta_frames": 33, "context_latents": 5, "gen_frames": 16
}  # fmt: skip
SHIFT, SHIFTS = 8.0, (0.1, 100)  # what its authors sample with, and what may be asked for
NULL = optional(one_of(None))
TRANSFORMER = {
    "_class_name": one_of(NAME),
    "patch_size": PATCH,
    "num_attention_heads": whole(1, 256),
    "attention_head_dim": whole(6, 1024),
    "in_channels": whole(1, 256),
    "out_channels": whole(1, 256),
    "text_dim": whole(1, 16384),
    "freq_dim": EVEN,
    "ffn_dim": whole(1, 65536),
    "num_layers": whole(1, 256),
    "eps": optional(one_of(1e-6)),
    "inject_sample_info": optional(SWITCH),
    "cross_attn_norm": optional(one_of(True)),
    "qk_norm": optional(one_of("rms_norm_across_heads")),
    "rope_max_seq_len": optional(whole(1024, 65536)),
    # other networks: that of images, and a mask that lets no latent see a later one
    **dict.fromkeys(("image_dim", "added_kv_proj_dim", "pos_embed_seq_len"), NULL),
    "num_frame_per_block": optional(one_of(1)),
    "quantization_config": ABSENT,
}
UNIPC = {
    "_class_name": one_of("UniPCMultistepScheduler"),
    "prediction_type": one_of("flow_prediction"),
    "use_flow_sigmas": one_of(True),
    "flow_shift": optional(number(*SHIFTS)),
    "num_train_timesteps": optional(one_of(1000)),  # a timestep is 1000 sigma
    "solver_order": optional(whole(1, 3)),
    "solver_type": optional(one_of("bh1", "bh2")),
    "disable_corrector": optional(several(whole(0, 10_000), 0, 10_000)),
    **dict.fromkeys(("predict_x0", "lower_order_final"), optional(one_of(True))),
    "final_sigmas_type": optional(one_of("zero")),
    # other schedules than that of flow_shift
    **dict.fromkeys(("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"), NO),
    **dict.fromkeys(("use_dynamic_shifting", "thresholding", "rescale_betas_zero_snr"), NO),
    **dict.fromkeys(("trained_betas", "solver_p", "shift_terminal"), NULL),
    # of the diffusion schedule that flow sigmas take the place of
    "beta_start": optional(number(0, 1)),
    "beta_end": optional(number(0, 1)),
    "beta_schedule": optional(one_of("linear", "scaled_linear", "squaredcos_cap_v2")),
    "timestep_spacing": optional(one_of("linspace", "leading", "trailing")),
    "steps_offset": optional(whole(0, 1000)),
}


def check_transformer(path, config, z_dim, d_model):
    if config["attention_head_dim"] % 2:
        refuse(path, "attention_head_dim", config["attention_head_dim"], "even")
    check_channels(path, config, z_dim)
    check_width(path, config, "text_dim", d_model)


# not closed: what diffusers wrote has changed, and it takes no notice of a key that it has not
SKYREELS = Layout(
    "transformer",
    TRANSFORMER,
    False,
    {"UniPCMultistepScheduler": UNIPC, **EULER},
    check_transformer,
)


def skyreels_geometry(folder):
    """The Geometry of a folder, whose files are checked as they are before the weights are read."""
    return geometry(folder, *check_checkpoint(folder, SKYREELS))


def geometry(folder, stated, size_multiple, config):
    """Of a checked folder, what its model_index.json states, and its transformer's config."""
    scheduler = read_config(folder / "scheduler" / "scheduler_config.json")
    shift = scheduler.get("flow_shift", scheduler.get("shift", 1.0))
    if shift == 1:  # what diffusers writes where nothing was said
        shift = SHIFT
    size = stated.get("height", SIZE[0]), stated.get("width", SIZE[1])
    options = {"shift": float(shift), "context_noise": 0.0}
    ranges = {"shift": SHIFTS, "context_noise": CONTEXT_NOISE}
    more = widths(config) | {"sampling_ranges": ranges}
    return EveryK(NAME, 4, size, size_multiple, FPS, WINDOW, options, **more)


def widths(config):
    """As a Geometry has them; blocks read an embedding as wide as their tokens."""
    width = config["num_attention_heads"] * config["attention_head_dim"]
    blocks = one_stack(config["num_layers"])
    return {"stacks": blocks, "embedding_width": width, "hidden_width": width}
