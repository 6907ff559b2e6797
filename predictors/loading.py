"""Loading a predictor: a folder of config.json and weights.safetensors, or what training left.

A `.pt` or `.ckpt` file is read by torch with weights_only=True, which runs no code of the file.
`python -m predictors.convert FILE FOLDER` makes such a folder of it.
"""

import inspect
import re
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from backbones import CheckpointError
from backbones.configs import read_config, refuse
from predictors.vjepa2_ac import ActionConditionedPredictor

CONFIG, WEIGHTS = "config.json", "weights.safetensors"
RELEASED = {  # (depth, predictor_embed_dim, embed_dim, action_embed_dim): what shapes do not say
    (24, 1024, 1408, 7): {"num_heads": 16},  # V-JEPA 2-AC
    (24, 384, 1024, 2): {"num_heads": 16},  # the study's
}
# of the study's own training: no part of the network
TRAINING = (
    "num_timesteps", "drop_path_rate", "normalize_reps", "T_teacher", "T_rollout", "context_frames",
    "loss_weight_teacher", "loss_weight_rollout", "loss_exp", "jump_k", "loss_weight_jump",
    "loss_type",
)  # fmt: skip
SIZES = (
    "patch_size", "num_frames", "tubelet_size", "embed_dim", "predictor_embed_dim", "depth",
    "num_heads", "action_embed_dim",
)  # fmt: skip
SWITCHES = (
    "use_extrinsics", "use_silu", "wide_silu", "use_rope", "qkv_bias", "is_frame_causal"
)  # fmt: skip
MARK = "predictor_embed.weight"  # every predictor has it, and action_encoder.weight


def load_predictor(path, device="cpu", config=None):
    """An ActionConditionedPredictor in float32, frozen.

    path: a folder of config.json and weights.safetensors, an official `.pt` or a Lightning `.ckpt`.
    config, or else a config.json beside such a file, adds to what the shapes of its tensors say.
    Raises CheckpointError.
    """
    path = Path(path)
    tensors, config, source = read_predictor(path, config)
    if path.is_file():
        print(
            f"{path}: read by torch, tensors alone; as safetensors it loads faster: "
            f"python -m predictors.convert {path} {path.with_suffix('')}",
            file=sys.stderr,
        )
    return built(tensors, config, source).to(device)


def read_predictor(path, config=None):
    """Tensors by their published names, the configuration and the file that says it."""
    path = Path(path)
    if path.is_dir():
        read = config or read_config(path / CONFIG)
        return read_safetensors(path / WEIGHTS), checked(read, path / CONFIG), path / CONFIG
    if path.suffix not in (".pt", ".pth", ".ckpt") or not path.is_file():
        raise CheckpointError(
            f"{path} is no predictor: expected is a folder with {CONFIG} and {WEIGHTS}, or a .pt "
            "or .ckpt file"
        )
    content, beside = read_pickled(path), path.parent / CONFIG
    tensors = predictor_in(path, content)
    if config is None and beside.is_file():
        config = read_config(beside)
    stated = hyper_parameters(content) | (config or {})
    return tensors, checked(inferred(path, tensors, stated), path), path


def read_safetensors(path):
    try:
        return load_file(path)
    except Exception as error:  # of any kind: the disk's, the format's
        raise CheckpointError(f"{path} cannot be read: {line_of(error)}") from error


def read_pickled(path):
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # of any kind: the disk's, the format's, other objects than tensors
        reason, other = line_of(error), re.search(r"GLOBAL (\S+)", str(error))
        if other:
            reason = f"it holds {other[1]}; where it was trained, save its state_dict alone"
        elif "zipfile" in reason:
            reason = "it is no file of torch.save, or one from before torch 1.6"
        raise CheckpointError(
            f"{path} cannot be read by torch with weights_only=True: {reason}"
        ) from error


def line_of(error):
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) < 200 else f"{text[:197]}..."


def predictor_in(path, content):
    """The predictor's tensors of what a training saved, by their published names.

    They may lie in nested tables ("predictor", "state_dict") and behind prefixes ("module.",
    "model."). A running average ("target_predictor") is taken where no other one is there.
    """
    flat = dict(flattened(content))
    starts = [name.removesuffix(MARK) for name in flat if name.endswith(MARK)]
    starts = [start for start in starts if f"{start}action_encoder.weight" in flat]
    starts.sort(key=lambda start: ("target" in start or "ema" in start, len(start)))
    if not starts:
        raise CheckpointError(
            f"{path} holds no action-conditioned predictor: no tensors whose names end with "
            f"{MARK} and action_encoder.weight"
        )
    start = starts[0]
    return {
        name.removeprefix(start): value.float()
        for name, value in flat.items()
        if name.startswith(start)
    }


def hyper_parameters(content):
    """Those of a Lightning checkpoint that the network has, too."""
    found = content.get("hyper_parameters", {}) if isinstance(content, dict) else {}
    known = inspect.signature(ActionConditionedPredictor).parameters
    return {k: v for k, v in found.items() if k in known} if isinstance(found, dict) else {}


def flattened(content, start=""):
    """Pairs of name and tensor of nested tables."""
    for key, value in content.items() if isinstance(content, dict) else ():
        if isinstance(value, torch.Tensor):
            yield f"{start}{key}", value
        else:
            yield from flattened(value, f"{start}{key}.")


def inferred(path, tensors, stated):
    """The configuration that the tensors' shapes have, with what is `stated`; of the released
    sizes the rest is known. Raises CheckpointError where the number of heads is not."""
    block = "predictor_blocks.0."
    try:
        width, features = tensors[MARK].shape
        hidden, found = len(tensors[f"{block}mlp.fc1.weight"]), {
            "embed_dim": features,
            "predictor_embed_dim": width,
            "depth": 1 + max(int(n.split(".")[1]) for n in tensors if n.startswith("predictor_b")),
            "action_embed_dim": tensors["action_encoder.weight"].shape[1],
            "use_silu": f"{block}mlp.fc3.weight" in tensors,
            "qkv_bias": f"{block}attn.qkv.bias" in tensors,
        }  # fmt: skip
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path} lacks {line_of(error)}") from error
    if found["use_silu"]:  # else the width says it
        found |= {"mlp_ratio": 4.0, "wide_silu": hidden != 4 * width}
    else:
        found["mlp_ratio"] = hidden / width
    sizes = found["depth"], width, features, found["action_embed_dim"]
    config = found | RELEASED.get(sizes, {}) | stated
    if "num_heads" not in config:
        raise CheckpointError(
            f"{path}: num_heads is not in the shapes of its tensors; put a {CONFIG} beside it, as "
            '{"num_heads": 16, "img_size": [256, 256], "patch_size": 16}'
        )
    return config


def checked(config, path):
    """The network's part of a configuration. Raises CheckpointError for what cannot be."""
    for key in SIZES:
        if key in config and not (type(config[key]) is int and config[key] > 0):
            refuse(path, key, config[key], "a whole number above 0")
    for key in SWITCHES:
        if not isinstance(config.get(key, True), bool):
            refuse(path, key, config[key], "true or false")
    for key in ("mlp_ratio", "norm_eps"):
        if type(config.get(key, 1)) not in (int, float) or not config.get(key, 1) > 0:
            refuse(path, key, config[key], "a number above 0")
    size, patch = config.get("img_size", [256, 256]), config.get("patch_size", 16)
    size = [size, size] if type(size) is int else size
    fits = isinstance(size, list | tuple) and len(size) == 2
    if not fits or not all(type(side) is int and side >= patch for side in size):
        refuse(path, "img_size", size, f"[height, width] in pixels, at least patch_size = {patch}")
    return {k: v for k, v in config.items() if k not in TRAINING} | {"img_size": tuple(size)}


def built(tensors, config, source):
    """The network of that configuration with these tensors, all of them and no others."""
    try:
        with torch.device("meta"):
            predictor = ActionConditionedPredictor(**config)
    except (TypeError, ValueError) as error:  # an unknown key; sizes that do not fit
        raise CheckpointError(f"{source}: {line_of(error)}") from error
    shapes = {name: value.shape for name, value in predictor.state_dict().items()}
    for words, names in (
        ("its weights lack", shapes.keys() - tensors.keys()),
        ("its configuration has no place for", tensors.keys() - shapes.keys()),
        ("its configuration gives another shape to",
         {name for name in shapes.keys() & tensors.keys() if tensors[name].shape != shapes[name]}),
    ):  # fmt: skip
        if names:
            raise CheckpointError(
                f"{source}: {words} {len(names)} tensors, such as {sorted(names)[0]}"
            )
    weights = {name: tensors[name].float() for name in shapes}
    predictor.load_state_dict(weights, assign=True)
    return predictor.requires_grad_(False).eval()
