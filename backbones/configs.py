"""Checks the files of a checkpoint before any weight is read: their values, by backbones/ranges.py,
and that they fit together."""

import json
import math
from collections.abc import Callable
from typing import NamedTuple

from backbones import CheckpointError
from backbones.frames import EveryK
from backbones.ranges import CONTEXT_NOISE, DIT, EULER, NATIVE, TEXT, VAE

DIFFUSERS, TRANSFORMERS = "diffusion_pytorch_model", "model"  # names of weight files
SIZE, FPS = (480, 832), 15.0  # of LongCat's release
WINDOW = {
    "anchor": 32, "cond_frames": 13, "tta_frames": 29, "context_latents": 4, "gen_frames": 14
}  # fmt: skip
WIDTHS = {"depth": 48, "adaln_tembed_dim": 512, "hidden_size": 4096}


class Layout(NamedTuple):
    """What a checkpoint folder of one model holds."""

    transformer: str  # the folder of its transformer
    rules: dict  # of that one's configuration
    closed: bool  # whether it may have no other keys
    schedulers: dict  # rules by class
    check: Callable  # (path, configuration, z_dim, d_model): that the transformer's parts fit


def longcat_geometry(folder):
    """The Geometry of a folder, whose files are checked as they are before the weights are read."""
    return geometry(*check_checkpoint(folder))


def geometry(stated, size_multiple, dit=WIDTHS):
    """Of what model_index.json and dit/config.json state; both autoencoders make a latent of four
    frames."""
    size = stated.get("height", SIZE[0]), stated.get("width", SIZE[1])
    name, options = "LongCatVideoTransformer3DModel", {"enhance_hf": True, "context_noise": 0.0}
    options["distilled"] = False
    more = {
        "stacks": one_stack(dit["depth"]),
        "embedding_width": dit["adaln_tembed_dim"],
        "hidden_width": dit["hidden_size"],
        "sampling_ranges": {"context_noise": CONTEXT_NOISE},
    }
    return EveryK(name, 4, size, size_multiple, FPS, WINDOW, options, **more)


def one_stack(depth):
    """Paths of the blocks of a transformer whose blocks are all of one kind."""
    return (tuple(f"blocks.{i}" for i in range(depth)),)


def check_checkpoint(folder, layout=None):
    """Checks every configuration of a folder, LongCat's where no other layout is given, and which
    files hold the weights; gives what model_index.json says, of what frames' sides are multiples,
    and the transformer's configuration. Raises CheckpointError."""
    layout = layout or LONGCAT
    check_files(folder, layout.transformer)
    dit_path = folder / layout.transformer / "config.json"
    dit = check(dit_path, layout.rules, layout.closed)
    vae = check_autoencoder(folder / "vae" / "config.json")
    text = check(folder / "text_encoder" / "config.json", TEXT)
    check_by_class(folder / "scheduler" / "scheduler_config.json", layout.schedulers)
    optional_file(folder / "tokenizer" / "tokenizer_config.json", {})
    layout.check(dit_path, dit, vae["z_dim"], text["d_model"])
    check_buckets(folder / "text_encoder" / "config.json", text)
    multiple = vae.get("scale_factor_spatial", 8) * dit["patch_size"][1]
    return native_values(folder, multiple), multiple, dit


def native_values(folder, multiple):
    """What model_index.json says that differs from the release; sides of frames are multiples."""
    native = optional_file(folder / "model_index.json", NATIVE)
    for name in ("height", "width"):
        if native.get(name, 0) % multiple:
            refuse(folder / "model_index.json", name, native[name], f"a multiple of {multiple}")
    return {name: native[name] for name in NATIVE if name in native}


def refuse(path, key, value, right):
    shown = json.dumps(value, ensure_ascii=True)
    shown = shown if len(shown) < 60 else f"{shown[:57]}..."
    raise CheckpointError(f"{path}: {key} is {shown}; it must be {right}")


def read_config(path):
    """The content of a JSON file that holds an object of finite numbers."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object of keys and values")
    rest = list(content.items())
    while rest:
        key, value = rest.pop()
        if isinstance(value, float) and not math.isfinite(value):
            refuse(path, key, value, "a finite number")
        if isinstance(value, dict):
            rest += value.items()
        if isinstance(value, list):
            rest += [(key, each) for each in value]
    return content


def optional_file(path, rules):
    return check(path, rules) if path.exists() else {}


def check(path, rules, closed=False):
    """The content of a file whose values follow the rules; a closed one has no other keys."""
    return check_values(path, read_config(path), rules, closed)


def check_values(path, content, rules, closed=False):
    """As check, of what the file or a part of it holds."""
    for key, rule in rules.items():
        if key not in content and rule.needed:
            raise CheckpointError(f"{path} has no {key}; it must be {rule.right}")
        if key in content and not rule.holds(content[key]):
            refuse(path, key, content[key], rule.right)
    for key in content if closed else ():
        if key not in rules and not key.startswith("_"):
            raise CheckpointError(f"{path} has the unknown key {json.dumps(key[:60])}")
    return content


def check_by_class(path, tables):
    """As check, by the rules that `tables` has for the class that the file names."""
    name = read_config(path).get("_class_name")
    if not isinstance(name, str) or name not in tables:
        refuse(path, "_class_name", name, " or ".join(tables))
    return check(path, tables[name])


def check_autoencoder(path):
    vae = check_by_class(path, VAE)
    for key in ("latents_mean", "latents_std"):
        if len(vae[key]) != vae["z_dim"]:
            refuse(path, key, vae[key], f"a list of z_dim = {vae['z_dim']} values")
    if vae["_class_name"] == "AutoencoderKLWan":
        check_wan(path, vae)
    return vae


def check_wan(path, vae):
    """That it compresses by 4 in time and, in space, by what it says."""
    patch = vae.get("patch_size") or 1
    halvings = len(vae.get("dim_mult", [1, 2, 4, 4])) - 1
    in_time = vae.get("temperal_downsample", [False, True, True])
    if len(in_time) != halvings or sum(in_time) != 2:
        right = f"a list of {halvings} values, one less than dim_mult, two of them true"
        refuse(path, "temperal_downsample", in_time, right)
    expected = {"scale_factor_spatial": patch * 2**halvings}
    expected |= dict.fromkeys(("in_channels", "out_channels"), 3 * patch**2)
    for key, default in (("scale_factor_spatial", 8), ("in_channels", 3), ("out_channels", 3)):
        if vae.get(key, default) != expected[key]:
            refuse(path, key, vae.get(key, default), f"{expected[key]} with these layers")


def check_dit(path, dit, z_dim, d_model):
    """That its parts fit together, and it fits the others."""
    if dit["hidden_size"] % (2 * dit["num_heads"]):
        right = f"a multiple of twice num_heads = {dit['num_heads']}"
        refuse(path, "hidden_size", dit["hidden_size"], right)
    check_channels(path, dit, z_dim)
    check_width(path, dit, "caption_channels", d_model)


def check_channels(path, dit, z_dim):
    for key in ("in_channels", "out_channels"):
        if dit[key] != z_dim:
            refuse(path, key, dit[key], f"{z_dim}, the z_dim of the vae")


def check_width(path, dit, key, d_model):
    if dit[key] != d_model:
        refuse(path, key, dit[key], f"{d_model}, the d_model of the text encoder")


def check_buckets(path, text):
    """Half of the buckets are for either direction, half of these for single steps."""
    near = text.get("relative_attention_num_buckets", 32) // 4
    distance = text.get("relative_attention_max_distance", 128)
    if distance <= near:
        refuse(path, "relative_attention_max_distance", distance, f"more than {near}")


def check_files(folder, transformer):
    """That a checkpoint has its folders, and the files of its weights. Raises CheckpointError."""
    for name in (transformer, "vae", "text_encoder", "tokenizer", "scheduler"):
        if not (folder / name).is_dir():
            raise CheckpointError(f"{folder} has no folder {name}/; the official layout has one")
    check_weights(folder / transformer, DIFFUSERS)
    check_weights(folder / "vae", DIFFUSERS)
    check_weights(folder / "text_encoder", TRANSFORMERS)


def check_weights(folder, stem):
    """That the weights are safetensors files of this folder."""
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(f"{folder} holds adapter_config.json; merge the adapter first")
    index = folder / f"{stem}.safetensors.index.json"
    if not index.is_file():
        if not (folder / f"{stem}.safetensors").is_file():
            raise CheckpointError(f"{folder} has neither {stem}.safetensors nor {index.name}")
        return
    files = read_config(index).get("weight_map")
    if not isinstance(files, dict) or not files:
        refuse(index, "weight_map", files, "the file of each weight")
    for weight, name in files.items():
        plain = isinstance(name, str) and not {"/", "\\", "\0"} & set(name)
        if not plain or not name.endswith(".safetensors") or not (folder / name).is_file():
            refuse(index, f"weight_map of {weight}", name, f"a .safetensors file in {folder}")


LONGCAT = Layout("dit", DIT, True, EULER, check_dit)
