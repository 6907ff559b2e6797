"""What each key of a checkpoint's configurations may be: its rule, and that in words.

A value outside of these ranges is no model that exists, takes more memory than any machine has, or
makes numbers that look right and are not.
"""

import json
from typing import NamedTuple


class Rule(NamedTuple):
    holds: object  # function of the value
    right: str
    needed: bool = True


def whole(low, high):
    return Rule(
        lambda v: type(v) is int and low <= v <= high, f"a whole number from {low} to {high}"
    )


def number(low, high):
    return Rule(
        lambda v: type(v) in (int, float) and low <= v <= high, f"a number from {low} to {high}"
    )


def one_of(*values):
    right = " or ".join(json.dumps(value) for value in values)
    return Rule(lambda v: any(type(v) is type(x) and v == x for x in values), right)


def several(rule, low=0, high=1024):
    def holds(value):
        return isinstance(value, list) and low <= len(value) <= high and all(map(rule.holds, value))

    return Rule(holds, f"a list of {low} to {high} values, each {rule.right}")


def or_null(rule):
    return Rule(lambda v: v is None or rule.holds(v), f"{rule.right}, or null")


def optional(rule):
    return rule._replace(needed=False)


SWITCH, ANY = one_of(True, False), Rule(lambda v: True, "", needed=False)
NO, ABSENT = optional(one_of(False)), Rule(lambda v: False, "left out", needed=False)
EVEN = Rule(lambda v: type(v) is int and v in range(2, 4097, 2), "an even number from 2 to 4096")
PATCH = Rule(
    lambda v: v in [[1, n, n] for n in (1, 2, 4, 8)] and all(type(n) is int for n in v),
    "[1, n, n] with n 1, 2, 4 or 8",
)

DIT = {
    "_class_name": one_of("LongCatVideoTransformer3DModel"),
    "in_channels": whole(1, 256),
    "out_channels": whole(1, 256),
    "hidden_size": whole(2, 16384),
    "depth": whole(1, 256),
    "num_heads": whole(1, 256),
    "caption_channels": whole(1, 16384),
    "mlp_ratio": number(0.1, 16),
    "adaln_tembed_dim": whole(1, 16384),
    "frequency_embedding_size": EVEN,
    "patch_size": PATCH,
    "text_tokens_zero_pad": optional(SWITCH),
    # kernels and their settings, which change nothing here
    **dict.fromkeys(("enable_flashattn3", "enable_flashattn2", "enable_xformers"), ANY),
    **dict.fromkeys(("enable_bsa", "bsa_params", "cp_split_hw"), ANY),
}
MOMENTS = {
    "z_dim": whole(1, 256),
    "latents_mean": several(number(-1000, 1000), 1, 256),
    "latents_std": several(number(0.001, 1000), 1, 256),
    "quantization_config": ABSENT,
}
LINEAR = {"_class_name": one_of("LinearVideoAutoencoder"), **MOMENTS}
WAN = {
    "_class_name": one_of("AutoencoderKLWan"),
    **MOMENTS,
    "base_dim": optional(whole(1, 1024)),
    "decoder_base_dim": optional(or_null(whole(1, 1024))),
    "dim_mult": optional(several(whole(1, 16), 1, 8)),
    "num_res_blocks": optional(whole(1, 16)),
    "attn_scales": optional(several(number(0, 100), 0, 8)),
    "temperal_downsample": optional(several(SWITCH, 0, 8)),
    "dropout": optional(number(0, 1)),
    "is_residual": optional(SWITCH),
    "in_channels": optional(whole(1, 256)),
    "out_channels": optional(whole(1, 256)),
    "patch_size": optional(or_null(whole(1, 8))),
    "scale_factor_temporal": optional(one_of(4)),
    "scale_factor_spatial": optional(whole(1, 64)),
}
TEXT = {
    "model_type": one_of("umt5"),
    "d_model": whole(1, 16384),
    "d_kv": whole(1, 1024),
    "d_ff": whole(1, 65536),
    "num_layers": whole(1, 256),
    "num_heads": whole(1, 256),
    "vocab_size": whole(1, 1_000_000),
    "relative_attention_num_buckets": optional(whole(4, 1024)),
    "relative_attention_max_distance": optional(whole(2, 1_000_000)),
    "layer_norm_epsilon": optional(number(1e-12, 0.01)),
    "dropout_rate": optional(number(0, 1)),
    "initializer_factor": optional(number(0, 1000)),
    "feed_forward_proj": optional(one_of("gated-gelu", "gated-silu", "gated-relu", "relu")),
    "is_decoder": NO,
    "return_dict": optional(one_of(True)),
    "torchscript": NO,
    # what would load other weights, or other code, than these files'
    **dict.fromkeys(("quantization_config", "transformers_weights"), ABSENT),
    **dict.fromkeys(("attn_implementation", "experts_implementation"), ABSENT),
}
SCHEDULER = {
    "_class_name": one_of("FlowMatchEulerDiscreteScheduler"),
    "shift": number(0.1, 100),
    "num_train_timesteps": optional(one_of(1000)),  # a timestep is 1000 sigma
    # other schedules than that of backbones/sampling.py
    **dict.fromkeys(("use_dynamic_shifting", "invert_sigmas", "stochastic_sampling"), NO),
    **dict.fromkeys(("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"), NO),
    "shift_terminal": optional(one_of(None)),
    "time_shift_type": optional(one_of("exponential", "linear")),
    "base_shift": optional(or_null(number(-100, 100))),
    "max_shift": optional(or_null(number(-100, 100))),
    "base_image_seq_len": optional(whole(1, 1_000_000)),
    "max_image_seq_len": optional(whole(1, 1_000_000)),
}
NATIVE = {
    "height": optional(whole(8, 16384)),
    "width": optional(whole(8, 16384)),
    "max_sequence_length": optional(whole(1, 4096)),
    "guidance_scale": optional(number(0, 100)),
}
EULER = {"FlowMatchEulerDiscreteScheduler": SCHEDULER}
CONTEXT_NOISE = (0.0, 0.9)  # of the sampling option of that name, a sigma
VAE = {"AutoencoderKLWan": WAN, "LinearVideoAutoencoder": LINEAR}
