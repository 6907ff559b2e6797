"""Checks and geometry of a Wan folder, in which diffusers has saved its pipeline, before any weight
is read; and the numbers of the releases that no file of them states."""

from backbones.configs import (
    Layout,
    check_channels,
    check_checkpoint,
    check_width,
    one_stack,
    optional_file,
    read_config,
    refuse,
)
from backbones.frames import EveryK
from backbones.ranges import (
    ABSENT,
    EULER,
    EVEN,
    NATIVE,
    NO,
    PATCH,
    SWITCH,
    Rule,
    number,
    one_of,
    optional,
    several,
    whole,
)

NAME = "WanTransformer3DModel"
# (size, frames a second) of those that take a timestep for each token, and of text-to-video
TI2V, T2V = ((704, 1280), 24.0), ((480, 832), 16.0)
# the frames that SkyReels continues from, for results side by side. Of the context that was trained
# with, one latent, there are --cond-frames 1 --context-latents 1
WINDOW = {
    "anchor": 33, "cond_frames": 17, "tta_frames": 33, "context_latents": 5, "gen_frames": 16
}  # fmt: skip
TRAINED = (1,)
SHIFTS = (0.1, 100)
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
    "cross_attn_norm": optional(one_of(True)),
    "qk_norm": optional(one_of("rms_norm_across_heads")),
    "rope_max_seq_len": optional(whole(1024, 65536)),
    # another network: that of images
    **dict.fromkeys(("image_dim", "added_kv_proj_dim", "pos_embed_seq_len"), NULL),
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
INDEX = NATIVE | {
    "expand_timesteps": optional(SWITCH),
    "boundary_ratio": Rule(
        lambda v: v is None,
        "null: a pair of transformers, for high and for low noise (A14B), is not supported",
        needed=False,
    ),
}


def check_transformer(path, config, z_dim, d_model):
    if config["attention_head_dim"] % 2:
        refuse(path, "attention_head_dim", config["attention_head_dim"], "even")
    check_channels(path, config, z_dim)
    check_width(path, config, "text_dim", d_model)


# not closed: what diffusers wrote has changed, and it takes no notice of a key that it has not
SCHEDULERS = {"UniPCMultistepScheduler": UNIPC, **EULER}
WAN = Layout("transformer", TRANSFORMER, False, SCHEDULERS, check_transformer)


def wan_geometry(folder):
    """The Geometry of a folder, whose files are checked as they are before the weights are read."""
    return geometry(folder, *check_checkpoint(folder, WAN))


def geometry(folder, stated, size_multiple, config):
    """Of a checked folder, what its model_index.json states, and its transformer's config."""
    index = optional_file(folder / "model_index.json", INDEX)
    continues = index.get("expand_timesteps", False)
    (height, width), fps = TI2V if continues else T2V
    size = stated.get("height", height), stated.get("width", width)
    options = {"shift": float(stated_shift(folder)), "whole_timesteps": False}
    return EveryK(
        NAME, 4, size, size_multiple, fps, WINDOW, options,
        context_lengths=None if continues else (0,),
        trained_contexts=TRAINED if continues else None,
        sampling_ranges={"shift": SHIFTS},
        **widths(config),
    )  # fmt: skip


def stated_shift(folder):
    """What the scheduler's file says of the shift of its sigmas; 1 where it says nothing."""
    scheduler = read_config(folder / "scheduler" / "scheduler_config.json")
    return scheduler.get("flow_shift", scheduler.get("shift", 1.0))


def widths(config):
    """As a Geometry has them; blocks read an embedding as wide as their tokens."""
    width = config["num_attention_heads"] * config["attention_head_dim"]
    blocks = one_stack(config["num_layers"])
    return {"stacks": blocks, "embedding_width": width, "hidden_width": width}
