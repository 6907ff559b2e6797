"""What backbones share: loading a part of a checkpoint, what a model has of its parts, registering
a function at a site."""

import contextlib

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLWan
from diffusers.models.modeling_utils import ModelMixin
from safetensors.torch import load_file

from backbones import BACKBONES, CheckpointError
from backbones.configs import read_config
from backbones.linear_autoencoder import LinearVideoAutoencoder

AUTOENCODERS = {cls.__name__: cls for cls in (AutoencoderKLWan, LinearVideoAutoencoder)}


unread = []  # something while transformers are loaded without their weights


@contextlib.contextmanager
def registered(functions, function):
    functions.append(function)
    try:
        yield
    finally:
        functions.remove(function)


def without_weights():
    """Within it transformers have parameters on the meta device, and their files are not read."""
    return registered(unread, True)


def is_unread(cls):
    return bool(unread) and cls.__name__ in BACKBONES


def on_meta(cls, config):
    """Parameters without memory; buffers, which its class computes, are there."""
    with init_empty_weights(include_buffers=False):
        return cls.from_config(config)


def load_part(cls, folder, **options):
    """cls.from_pretrained(folder), from disk alone; whatever goes wrong becomes one line."""
    try:
        return cls.from_pretrained(folder, local_files_only=True, **options)
    except Exception as error:  # of any kind: three libraries read what others wrote
        if "allocate memory" in str(error):
            raise  # no fault of the checkpoint's
        words = one_line(str(error)) or type(error).__name__
        raise CheckpointError(f"{folder} cannot be loaded: {words}") from error


def one_line(text, longest=300):
    words = "".join(c if c.isprintable() else " " for c in text).split()
    line = " ".join(words)
    return line if len(line) <= longest else f"{line[: longest - 3]}..."


def load_weights(cls, folder, dtype, others=(), **more):
    """A model whose safetensors files hold every one of its weights, and no others but those of
    parts that are not used, whose names begin with `others`."""
    if is_unread(cls):
        return on_meta(cls, cls.load_config(folder))
    kind = "torch_dtype" if issubclass(cls, ModelMixin) else "dtype"
    options = {kind: dtype, "use_safetensors": True, "output_loading_info": True}
    model, info = load_part(cls, folder, **options, **more)
    # what an index lists and its files lack is not among the missing ones, but was given no memory
    empty = {name for name, weight in model.state_dict().items() if weight.is_meta}
    refuse_weights(folder, "lacks", {*info["missing_keys"]} | empty)
    unknown = [name for name in info["unexpected_keys"] if not name.startswith(tuple(others))]
    refuse_weights(folder, "has no place in its config.json for", unknown)
    refuse_weights(folder, "has other shapes in its config.json for", info["mismatched_keys"])
    return model


def load_single(cls, config, path, dtype):
    """A model of that configuration; one safetensors file holds its weights, and no others."""
    if is_unread(cls):
        return on_meta(cls, config)
    try:
        with torch.device("meta"):
            model = cls(**config)
        tensors = load_file(path)
    except Exception as error:  # of any kind, as in load_part
        if "allocate memory" in str(error):
            raise
        raise CheckpointError(f"{path} cannot be loaded: {one_line(repr(error))}") from error
    shapes = {name: weight.shape for name, weight in model.state_dict().items()}
    refuse_weights(path, "lacks", shapes.keys() - tensors.keys())
    refuse_weights(path, "has no place in this network for", tensors.keys() - shapes.keys())
    other = {name for name, shape in shapes.items() if tensors[name].shape != shape}
    refuse_weights(path, "has other shapes than this network for", other)
    exact = {*(getattr(cls, "_keep_in_fp32_modules", None) or ())}  # as diffusers has it
    types = {name: torch.float32 if exact & {*name.split(".")} else dtype for name in shapes}
    weights = {name: tensors.pop(name).to(types[name]) for name in shapes}  # none is there twice
    model.load_state_dict(weights, assign=True)
    return model


def refuse_weights(folder, words, found):
    names = sorted(name if isinstance(name, str) else name[0] for name in found)
    if names:
        line = one_line(f"{words} {len(names)} weights, such as {names[0]}")
        raise CheckpointError(f"{folder} {line}")


def autoencoder_class(folder):
    return AUTOENCODERS[read_config(folder / "vae" / "config.json")["_class_name"]]


def set_up(model, dit, vae, prompt_encoder, device, geometry):
    """What every Backbone has of these; their weights are frozen."""
    model.dit, model.vae, model.prompt_encoder = dit, vae, prompt_encoder
    model.device, model.geometry = torch.device(device), geometry
    model.stacks, model.depth = geometry.stacks, geometry.depth
    model.hidden_width, model.embedding_width = geometry.hidden_width, geometry.embedding_width
    model.velocity_site, model.placed = [], None
    for module in (dit, vae):
        if module is not None:
            module.requires_grad_(False).eval()


def device_and_dtype(device, dtype=None):
    """Both as torch has them; a dtype that is not given is bfloat16 on a GPU, float32 on a CPU."""
    device = torch.device(device)
    return device, dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
