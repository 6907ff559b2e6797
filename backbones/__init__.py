"""One video model a file, behind the contract of backbones/contract.py. `load(checkpoint)` picks
the file by the class that the checkpoint names."""

import importlib
import json
from pathlib import Path

# by the class of the transformer; imported when it is needed
BACKBONES = {
    "LongCatVideoTransformer3DModel": "backbones.longcat:LongCat",
    "SkyReelsV2Transformer3DModel": "backbones.skyreels:SkyReels",
    "MMDiT": "backbones.opensora2:OpenSora2",
    "STDiT3": "backbones.opensora13:OpenSora13",
    "WanTransformer3DModel": "backbones.wan:Wan",
    "LTXVideoTransformer3DModel": "backbones.ltx:LTX",
    "CogVideoXTransformer3DModel": "backbones.cogvideox:CogVideoX",
}
# of the same, what reads the configurations alone: no import of weights' libraries
GEOMETRIES = {
    "LongCatVideoTransformer3DModel": "backbones.configs:longcat_geometry",
    "SkyReelsV2Transformer3DModel": "backbones.skyreels_configs:skyreels_geometry",
    "MMDiT": "backbones.opensora2_configs:opensora2_geometry",
    "STDiT3": "backbones.opensora13_configs:opensora13_geometry",
    "WanTransformer3DModel": "backbones.wan_configs:wan_geometry",
    "LTXVideoTransformer3DModel": "backbones.ltx_configs:ltx_geometry",
    "CogVideoXTransformer3DModel": "backbones.cogvideox_configs:cogvideox_geometry",
}
TRANSFORMERS = ("dit", "transformer")  # folders that hold it
LORA = {"LongCatVideoTransformer3DModel"}  # classes that take a file of backbones/lora.py
SPLIT = {"LongCatVideoTransformer3DModel"}  # that sample with their tokens on several processes
# files that hold it where no file names a class
NAMELESS = {"Open_Sora_v2.safetensors": "MMDiT", "OpenSora-STDiT-v4/config.json": "STDiT3"}


class CheckpointError(ValueError):
    """A checkpoint folder lacks a part, or names a model that no backbone is written for."""


class LoRAError(CheckpointError):
    """A file of low-rank updates that does not fit the model; the words do not name the file."""


def load(
    checkpoint,
    device="cpu",
    dtype=None,
    network_sign=None,
    place="none",
    float8=False,
    lora=None,
):
    """Loads a checkpoint folder (safetensors weights) as a backbone.

    dtype is that of the DiT and the text encoder; by default bfloat16 on a GPU, float32 on a CPU.
    network_sign overrides the sign that turns the network's output into a velocity: for parity with
    code that had it wrong, never for results. place says what is offloaded, see Backbone.place;
    with None all stays on the CPU until that is called. float8 stores the DiT's linear layers so.
    lora, a file that a class of LORA takes, is merged into its weights before. Raises
    CheckpointError.
    """
    folder = Path(checkpoint)
    more = {"lora": lora} if lora else {}
    model = found(BACKBONES, folder).from_folder(folder, device, dtype, float8, **more)
    if network_sign:
        model.network_sign = network_sign
    if place:
        model.place(place)
    return model


def geometry(checkpoint):
    """The Geometry of a checkpoint folder, whose weights are not read. Raises CheckpointError."""
    folder = Path(checkpoint)
    return found(GEOMETRIES, folder)(folder)


def check_lora(checkpoint, path):
    """Raises LoRAError where a file does not fit the transformer of a checkpoint folder, whose
    weights are not read."""
    lora, longcat = (importlib.import_module(f"backbones.{name}") for name in ("lora", "longcat"))
    lora.check(path, longcat.without_weights(Path(checkpoint)))


def found(table, folder):
    """What the table names for the class of a checkpoint's transformer."""
    name, config = class_of(folder)
    if name not in table:
        shown = json.dumps(name)
        shown = shown if len(shown) < 60 else f"{shown[:57]}..."
        raise CheckpointError(
            f"{config}: _class_name is {shown}, which no backbone is written for; known are "
            f"{', '.join(table)}"
        )
    module, _, attribute = table[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def class_of(folder):
    """The class that a checkpoint names, and the file that does."""
    from backbones.configs import read_config  # here: it imports CheckpointError from this file

    for part in TRANSFORMERS:
        config = folder / part / "config.json"
        if config.is_file():
            name = read_config(config).get("_class_name")
            return name if isinstance(name, str) else json.dumps(name), config
    for file, name in NAMELESS.items():
        if (folder / file).is_file():
            return name, folder / file
    files = [*(f"{part}/config.json" for part in TRANSFORMERS), *NAMELESS]
    raise CheckpointError(
        f"{folder} is no checkpoint: it holds no {' or '.join(files)}; expected is a release's "
        f"layout, of the classes {', '.join(BACKBONES)}"
    )
