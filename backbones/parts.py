"""What backbones share: loading a part of a checkpoint, where its weights are, registering a
function at a site."""

import contextlib

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.modeling_utils import ModelMixin
from safetensors.torch import load_file

from backbones import CheckpointError
from backbones.configs import read_config
from backbones.linear_autoencoder import LinearVideoAutoencoder
from devices import offload
from devices.paths import all_paths

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


def place_weights(model, plan, stays):
    """As Backbone.place. Of a block's matrices, which the plan "blocks" streams, those stay on the
    device whose names begin with `stays`."""
    dit, device = model.dit, model.device
    if plan == "blocks" and model.placed != "blocks":
        dit.to("cpu")
        streamed = {path.partition(".")[0] for path in all_paths(model.stacks)}
        for name, part in dit.named_children():
            if name not in streamed:
                part.to(device)
        offload.stream_blocks(dit, dit.blocks, device, stays)
        dit.has_weight_hooks = True
    elif plan != "blocks":
        dit.to(device)
    model.vae.to("cpu" if plan != "none" else device)
    model.placed = plan
