"""What backbones share: loading a part of a checkpoint, registering a function at a site."""

import contextlib

from diffusers import AutoencoderKLWan
from diffusers.models.modeling_utils import ModelMixin

from backbones import CheckpointError
from backbones.configs import read_config
from backbones.linear_autoencoder import LinearVideoAutoencoder

AUTOENCODERS = {cls.__name__: cls for cls in (AutoencoderKLWan, LinearVideoAutoencoder)}


@contextlib.contextmanager
def registered(functions, function):
    functions.append(function)
    try:
        yield
    finally:
        functions.remove(function)


def load_part(cls, folder, **options):
    """cls.from_pretrained(folder), from disk alone; whatever goes wrong becomes one line."""
    try:
        return cls.from_pretrained(folder, local_files_only=True, **options)
    except Exception as error:  # of any kind: three libraries read what others wrote
        words = one_line(str(error)) or type(error).__name__
        raise CheckpointError(f"{folder} cannot be loaded: {words}") from error


def one_line(text, longest=300):
    words = "".join(c if c.isprintable() else " " for c in text).split()
    line = " ".join(words)
    return line if len(line) <= longest else f"{line[: longest - 3]}..."


def load_weights(cls, folder, dtype, **more):
    """A model whose safetensors files hold every one of its weights, and no others."""
    kind = "torch_dtype" if issubclass(cls, ModelMixin) else "dtype"
    options = {kind: dtype, "use_safetensors": True, "output_loading_info": True}
    model, info = load_part(cls, folder, **options, **more)
    for words, names in (("lacks", info["missing_keys"]), ("has", info["unexpected_keys"])):
        if names := sorted(names):
            rest = "" if words == "lacks" else ", which its config.json has no place for"
            line = one_line(f"{words} {len(names)} weights, such as {names[0]}{rest}")
            raise CheckpointError(f"{folder} {line}")
    return model


def autoencoder_class(folder):
    return AUTOENCODERS[read_config(folder / "vae" / "config.json")["_class_name"]]
