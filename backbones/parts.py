"""What backbones share: loading a part of a checkpoint, registering a function at a site."""

import contextlib
import json

from diffusers import AutoencoderKLWan
from diffusers.models.modeling_utils import ModelMixin
from safetensors import SafetensorError

from backbones import CheckpointError
from backbones.linear_autoencoder import LinearVideoAutoencoder

AUTOENCODERS = {cls.__name__: cls for cls in (AutoencoderKLWan, LinearVideoAutoencoder)}


@contextlib.contextmanager
def registered(functions, function):
    functions.append(function)
    try:
        yield
    finally:
        functions.remove(function)


def check_parts(folder, names):
    """Raises CheckpointError before anything large is read."""
    for name in names:
        if not (folder / name).is_dir():
            raise CheckpointError(f"{folder} has no folder {name}/; the official layout has one")


def load_part(cls, folder, **options):
    """cls.from_pretrained(folder), from disk alone; what goes wrong becomes one line."""
    try:
        return cls.from_pretrained(folder, local_files_only=True, **options)
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"{folder} cannot be loaded: {lines[0]}") from error


def load_weights(cls, folder, dtype):
    """A model whose safetensors files hold every one of its weights."""
    kind = "torch_dtype" if issubclass(cls, ModelMixin) else "dtype"
    options = {kind: dtype, "use_safetensors": True, "output_loading_info": True}
    model, info = load_part(cls, folder, **options)
    missing = sorted(info["missing_keys"])
    if missing:
        raise CheckpointError(f"{folder} lacks {len(missing)} weights, such as {missing[0]}")
    return model


def read_config(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def autoencoder_class(folder):
    config = folder / "vae" / "config.json"
    name = read_config(config).get("_class_name")
    if name not in AUTOENCODERS:
        raise CheckpointError(f"{config} names {name}; known are {', '.join(AUTOENCODERS)}")
    return AUTOENCODERS[name]
