"""Checks and geometry of an Open-Sora v2.0 folder before any weight is read.

The release is two safetensors files, none of which states its network, and two folders as
transformers saves them. Numbers are those of its recipe (configs/diffusion/inference/256px.py) and
the defaults of diffusers' AutoencoderKLHunyuanVideo. Open_Sora_v2.json and hunyuan_vae.json beside
the weights, which no release has, may say what differs in a smaller network; model_index.json what
it may say of any model.
"""

from backbones import CheckpointError
from backbones.configs import (
    check,
    check_buckets,
    check_values,
    check_weights,
    native_values,
    optional_file,
    refuse,
)
from backbones.frames import EveryK
from backbones.opensora2_sampling import SIZE_MULTIPLE, frame_size
from backbones.ranges import (
    ABSENT,
    SWITCH,
    TEXT,
    number,
    one_of,
    optional,
    several,
    whole,
)

NAME, DIT, VAE = "MMDiT", "Open_Sora_v2.safetensors", "hunyuan_vae.safetensors"
T5, CLIP = "google/t5-v1_1-xxl", "openai/clip-vit-large-patch14"
DIT_CONFIG, VAE_CONFIG = "Open_Sora_v2.json", "hunyuan_vae.json"
CLIP_TOKENS, GUIDANCE_IMG = 77, 3.0
SIZE, FPS = frame_size("256px", "16:9"), 24.0
# 65 frames in all. Adaptation shows one latent, which the release was trained with (i2v_head);
# generation continues nine, as the draft does (v2v_head)
WINDOW = {
    "anchor": 33, "cond_frames": 33, "tta_frames": 33, "context_latents": 1, "gen_frames": 32
}  # fmt: skip
CONTEXTS = (0, 1, 9, 17)  # t2v, i2v_head, v2v_head, v2v_head_easy of a causal autoencoder
OPTIONS = {
    "guidance_img": GUIDANCE_IMG, "oscillation": True, "temporal_scaling": True, "bf16_time": False
}  # fmt: skip
RANGES = {"guidance_img": (0.0, 100.0)}
RELEASED = {
    "in_channels": 64, "vec_in_dim": 768, "context_in_dim": 4096, "hidden_size": 3072,
    "mlp_ratio": 4.0, "num_heads": 24, "depth": 19, "depth_single_blocks": 38,
    "axes_dim": [16, 56, 56], "theta": 10_000, "qkv_bias": True, "patch_size": 2,
    "guidance_embed": False, "cond_embed": True, "fused_qkv": False, "use_liger_rope": True,
}  # fmt: skip
TRANSFORMER = {
    **dict.fromkeys(("in_channels", "num_heads", "depth", "depth_single_blocks"), whole(1, 1024)),
    **dict.fromkeys(("vec_in_dim", "context_in_dim", "hidden_size"), whole(1, 16384)),
    "mlp_ratio": number(0.1, 16),
    "axes_dim": several(whole(2, 1024), 3, 3),
    "theta": number(1, 1e9),
    "patch_size": one_of(2),
    "guidance_embed": one_of(False),  # of distilled networks
    "cond_embed": one_of(True),  # else it sees no context
    **dict.fromkeys(("qkv_bias", "fused_qkv", "use_liger_rope"), SWITCH),
}
AUTOENCODER = {
    "latent_channels": whole(1, 256),
    "block_out_channels": several(whole(1, 4096), 4, 4),
    "layers_per_block": whole(1, 16),
    "norm_num_groups": whole(1, 256),
    "scaling_factor": number(0.001, 1000),
}
RELEASED_VAE = {
    "latent_channels": 16, "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
    "norm_num_groups": 32, "scaling_factor": 0.476986,
}  # fmt: skip
T5_RULES = TEXT | {"model_type": one_of("t5")}
SAFE = {key: rule for key, rule in TEXT.items() if rule is ABSENT}
CLIP_RULES = {"model_type": one_of("clip", "clip_text_model"), **SAFE}
CLIP_TEXT = {
    "hidden_size": whole(1, 16384),
    "vocab_size": optional(whole(1, 1_000_000)),
    "max_position_embeddings": optional(whole(CLIP_TOKENS, 65536)),
    **SAFE,
}


def opensora2_geometry(folder):
    """The Geometry of a folder, whose files are checked as they are before the weights are read."""
    stated, dit, _ = check_opensora2(folder)
    return geometry(stated, dit)


def geometry(stated, dit):
    """Of what model_index.json and the transformer's configuration say."""
    size = stated.get("height", SIZE[0]), stated.get("width", SIZE[1])
    width = dit["hidden_size"]
    return EveryK(
        NAME, 4, size, SIZE_MULTIPLE, FPS, WINDOW, OPTIONS, CONTEXTS, RANGES,
        context_alone=True,  # the autoencoder's norms see all frames at once
        stacks=stacks(dit), embedding_width=width, hidden_width=width,
    )  # fmt: skip


def stacks(dit):
    """Paths of the blocks of both kinds."""
    counts = {"double_blocks": dit["depth"], "single_blocks": dit["depth_single_blocks"]}
    return tuple(tuple(f"{kind}.{i}" for i in range(n)) for kind, n in counts.items())


def check_opensora2(folder):
    """What model_index.json says, and the configurations of transformer and autoencoder. Raises
    CheckpointError."""
    check_files(folder)
    dit = stated(folder / DIT_CONFIG, TRANSFORMER, RELEASED)
    vae = stated(folder / VAE_CONFIG, AUTOENCODER, RELEASED_VAE)
    check_transformer(folder / DIT_CONFIG, dit, vae["latent_channels"])
    for channels in vae["block_out_channels"]:
        if channels % vae["norm_num_groups"]:
            right = f"multiples of norm_num_groups = {vae['norm_num_groups']}"
            refuse(folder / VAE_CONFIG, "block_out_channels", vae["block_out_channels"], right)
    check_encoders(folder, dit)
    return native_values(folder, SIZE_MULTIPLE), dit, vae


def check_files(folder):
    """That a checkpoint has its parts, the weights as safetensors. Raises CheckpointError."""
    for name in (DIT, VAE):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} has no {name}; the release of Open-Sora v2.0 has one")
    for name in (T5, CLIP):
        if not (folder / name).is_dir():
            raise CheckpointError(f"{folder} has no folder {name}/; the official layout has one")
        check_weights(folder / name, "model")


def stated(path, rules, released):
    """What a network was released with, and what the file says in its place."""
    rules = {key: optional(rule) for key, rule in rules.items()}
    return released | (check(path, rules, closed=True) if path.exists() else {})


def check_transformer(path, dit, channels):
    """That its parts fit together, and the autoencoder's channels."""
    size = dit["hidden_size"] / dit["num_heads"]
    if sum(dit["axes_dim"]) != size or any(width % 2 for width in dit["axes_dim"]):
        right = f"three even numbers that add up to hidden_size / num_heads = {size:g}"
        refuse(path, "axes_dim", dit["axes_dim"], right)
    packed = channels * dit["patch_size"] ** 2
    if dit["in_channels"] != packed:
        refuse(path, "in_channels", dit["in_channels"], f"{packed}, four for each of the vae's")


def check_encoders(folder, dit):
    """That the text encoders are of the kinds and widths that the transformer takes."""
    path = folder / T5 / "config.json"
    t5 = check(path, T5_RULES)
    check_buckets(path, t5)
    if t5["d_model"] != dit["context_in_dim"]:
        refuse(path, "d_model", t5["d_model"], f"{dit['context_in_dim']}, of T5 v1.1-XXL here")
    path = folder / CLIP / "config.json"
    clip = check_clip(path)
    if clip["hidden_size"] != dit["vec_in_dim"]:
        refuse(path, "hidden_size", clip["hidden_size"], f"{dit['vec_in_dim']} of its text part")
    for name in (T5, CLIP):
        optional_file(folder / name / "tokenizer_config.json", {})


def check_clip(path):
    """The configuration of CLIP's text part, alone or in that of both parts."""
    content = check(path, CLIP_RULES)
    if content["model_type"] == "clip":
        content = content.get("text_config")
        if not isinstance(content, dict):
            refuse(path, "text_config", content, "an object of keys and values")
    return check_values(path, content, CLIP_TEXT)
