"""Checks and geometry of an Open-Sora v1.3 folder before any weight is read.

The release is in several repositories of the hub; a checkpoint folder holds them side by side, each
as published:

    OpenSora-STDiT-v4/    config.json and model.safetensors of one of the three transformers
                          (hpcai-tech/OpenSora-STDiT-v4, ...-360p, ...-i2v)
    OpenSora-VAE-v1.3/    config.json and model.safetensors of hpcai-tech/OpenSora-VAE-v1.3
    google/t5-v1_1-xxl/   encoder and tokenizer as transformers saves them, safetensors, as in
                          hpcai-tech/Open-Sora-v2

model_index.json, which no release has, may say what differs: height, width, guidance_scale. Keys of
the transformer's configuration are those of its source (tag v1.3, opensora/models/stdit/stdit3.py).

The size is 640x480 (width x height). The draft asked the recipe for "4:3", which there is height to
width: it made portraits of 555x740, and stretched them to compare.
"""

from backbones import CheckpointError
from backbones.configs import (
    check,
    check_buckets,
    check_values,
    check_weights,
    check_width,
    native_values,
    optional_file,
    refuse,
)
from backbones.frames import EveryK
from backbones.opensora13_autoencoder_layers import NORM_GROUPS
from backbones.opensora13_sampling import CHUNK, of_chunk
from backbones.ranges import (
    ABSENT,
    ANY,
    NO,
    PATCH,
    SWITCH,
    TEXT,
    Rule,
    number,
    one_of,
    optional,
    or_null,
    several,
    whole,
)

NAME, DIT, VAE, T5 = "STDiT3", "OpenSora-STDiT-v4", "OpenSora-VAE-v1.3", "google/t5-v1_1-xxl"
SIZE, FPS = (480, 640), 24.0
WEIGHTS, LATENT_CHANNELS = "model.safetensors", 16
# 17 frames are one chunk: the draft's 22 do not fit. Adaptation sees as many context latents (5)
# and predicts as many as generation, half of all as v2v_head in training. 49 frames in all
WINDOW = {
    "anchor": 33, "cond_frames": 17, "tta_frames": 33, "context_latents": 5, "gen_frames": 16
}  # fmt: skip
# of the official command for extending videos (docs/commands.md at v1.3)
OPTIONS = {"guidance_img": 2.0, "oscillation": True, "temporal_scaling": True, "sdedit": True}
RANGES = {"guidance_img": (0.0, 100.0)}
WINDOW_SIDE = Rule(
    lambda v: type(v) is int and (v == -1 or 1 <= v <= 64), "a whole number from 1 to 64 or -1"
)
# what transformers writes about the class and its weights
TRANSFORMERS = ("architectures", "model_type", "torch_dtype", "dtype", "transformers_version")
UNUSED = (
    "input_size", "drop_path", "class_dropout_prob", "enable_flash_attn",
    "enable_layernorm_kernel", "enable_sequence_parallelism", "only_train_temporal",
    "freeze_y_embedder",
)  # fmt: skip
NETWORK = {
    "depth": whole(1, 256),
    "hidden_size": whole(4, 16384),
    "num_heads": whole(1, 256),
    "in_channels": one_of(LATENT_CHANNELS),
    "patch_size": PATCH,
    "mlp_ratio": number(0.1, 16),
    "caption_channels": whole(1, 16384),
    "model_max_length": whole(1, 4096),
    "input_sq_size": whole(1, 16384),
    "kernel_size": or_null(several(WINDOW_SIDE, 3, 3)),  # rows, columns, frames; -1 is all
    **dict.fromkeys(("pred_sigma", "qk_norm", "use_spatial_rope"), SWITCH),
    **dict.fromkeys(("skip_temporal", "skip_y_embedder"), NO),
}
RULES = NETWORK | dict.fromkeys((*TRANSFORMERS, *UNUSED), ANY) | {"quantization_config": ABSENT}
# of the autoencoder's "encoder" and "decoder": what a smaller network may have otherwise
SIZES = {"ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "z_channels": LATENT_CHANNELS}
WIDTHS = range(NORM_GROUPS, 4097, NORM_GROUPS)
PART = {
    "ch": Rule(
        lambda v: type(v) is int and v in WIDTHS, f"a multiple of {NORM_GROUPS} up to {WIDTHS[-1]}"
    ),
    "ch_mult": several(whole(1, 16), 4, 4),
    "num_res_blocks": whole(1, 16),
    "z_channels": one_of(LATENT_CHANNELS),
    "in_channels": optional(one_of(3)),
    "out_ch": optional(one_of(3)),
    "resamp_with_conv": optional(one_of(True)),
}
AUTOENCODER = {
    "encoder": PART
    | {"double_z": optional(one_of(True)), "down_sampling_layer": optional(one_of([1, 2]))},
    "decoder": PART
    | {"temporal_up_layers": optional(one_of([2, 3])), "temporal_downsample": optional(one_of(4))},
}
T5_RULES = TEXT | {"model_type": one_of("t5")}


def opensora13_geometry(folder):
    """The Geometry of a folder, whose files are checked as they are before the weights are read."""
    stated, dit = check_opensora13(folder)
    return geometry(stated, dit)


def geometry(stated, dit):
    """Of what model_index.json and the transformer's configuration state."""
    size = stated.get("height", SIZE[0]), stated.get("width", SIZE[1])
    width = dit["hidden_size"]
    return EveryK(
        NAME, CHUNK - 1, size, 8 * dit["patch_size"][1], FPS, WINDOW, OPTIONS,
        per=of_chunk(CHUNK), first_alone=False, context_alone=True,  # latents know their chunk
        stacks=(tuple(map(pair, range(dit["depth"]))),), embedding_width=width, hidden_width=width,
        sampling_ranges=RANGES,
    )  # fmt: skip


def pair(i):
    return f"spatial_blocks.{i}", f"temporal_blocks.{i}"


def check_opensora13(folder):
    """What model_index.json says, and the keys of the transformer's configuration that make the
    network. Raises CheckpointError."""
    check_files(folder)
    path = folder / DIT / "config.json"
    stated = check(path, RULES, closed=True)
    dit = {key: stated[key] for key in NETWORK if key in stated}
    check_transformer(path, dit)
    check_autoencoder(folder / VAE)
    text = check(folder / T5 / "config.json", T5_RULES)
    check_buckets(folder / T5 / "config.json", text)
    check_width(path, dit, "caption_channels", text["d_model"])
    optional_file(folder / T5 / "tokenizer_config.json", {})
    native = native_values(folder, 8 * dit["patch_size"][1])
    length = native.get("max_sequence_length", dit["model_max_length"])
    if length != dit["model_max_length"]:
        right = f"{dit['model_max_length']}, the model_max_length of {DIT}, or left out"
        refuse(folder / "model_index.json", "max_sequence_length", length, right)
    return native, dit


def check_autoencoder(folder):
    """The keyword arguments of OpenSora13Autoencoder that a folder's config.json states, checked,
    as is that the weights are there. Raises CheckpointError."""
    path = folder / "config.json"
    stated = check(path, {"quantization_config": ABSENT})
    check_weights(folder, "model")
    config = {}
    for name, rules in AUTOENCODER.items():
        part = stated.get(name, SIZES)
        if not isinstance(part, dict):
            refuse(path, name, part, "an object of keys and values")
        config[name] = check_values(f"{path}: {name}", part, rules)
    return config


def check_files(folder):
    """That a checkpoint has its parts, the weights as safetensors. Raises CheckpointError."""
    for name in (DIT, VAE, T5):
        if not (folder / name).is_dir():
            raise CheckpointError(
                f"{folder} has no folder {name}/; of Open-Sora v1.3 it must hold {DIT}/, {VAE}/ "
                f"and {T5}/, each as published"
            )
    for name in (DIT, VAE):
        if not (folder / name / WEIGHTS).is_file():
            raise CheckpointError(f"{folder / name} has no {WEIGHTS}; the release has one")
    check_weights(folder / T5, "model")


def check_transformer(path, dit):
    """That its sizes fit together: heads with an even share of the channels for each axis of the
    rotary embedding, and sines and cosines of rows and columns."""
    axes = 3 if dit["kernel_size"] else 1
    unit = 2 * axes * dit["num_heads"]
    if dit["hidden_size"] % unit or dit["hidden_size"] % 4:
        right = f"a multiple of 4 and of {2 * axes} * num_heads = {unit}"
        refuse(path, "hidden_size", dit["hidden_size"], right)
    if dit["use_spatial_rope"] and not dit["kernel_size"]:
        refuse(path, "use_spatial_rope", True, "false where kernel_size is null")
