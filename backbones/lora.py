"""Low-rank updates in the file format of LongCat-Video's release (lora/cfg_step_lora.safetensors,
the distilled weights), merged into a transformer's linear layers.

Source of the format: meituan-longcat/LongCat-Video 6b3f4b8, longcat_video/modules/lora_utils.py. A
layer's keys begin with its path, `lora` before it and every part after a `___lorahyphen___`. With
one part lora_up.weight is (out, rank); with n (query, key and value of one layer) those of
lora_up.blocks.0, 1, ... are (out / n, rank) each, one below the other. lora_down.weight is (n *
rank, in), and the update of the layer's weight is

    alpha_scale * cat_i(lora_up_i @ lora_down[i * rank : (i + 1) * rank])

Merged, it is part of the network, for adapting, preflight and losses as for sampling, and every
method works on top of it. That is what is wanted of a study on distilled weights: what is adapted
must be the network that generates, and a loss on the true future of another one would say nothing
about the frames. Its price: the distilled network was trained to make steps that are guided
already, at the sigmas of its own schedule, not for the flow-matching loss at any sigma that
adaptation takes, so a part of what that loss gains is guidance undone. The losses of such a run are
to be read against a baseline with the same file alone; runs without it are refused as one.
"""

import re

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from backbones import LoRAError

HYPHEN = "___lorahyphen___"
KEY = re.compile(
    rf"lora{HYPHEN}(?P<layer>[^.]+)\."
    r"(?P<part>alpha_scale|lora_down\.weight|lora_up\.weight|lora_up\.blocks\.\d+\.weight)"
)
DOWN, SCALE = "lora_down.weight", "alpha_scale"


def check(path, dit):
    """{path of the layer: {part: key}} of a file. Raises LoRAError where it does not fit the layers
    of dit, whose values are not read."""
    with opened(path) as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
    layers, modules = by_layer(shapes), dict(dit.named_modules())
    for name, parts in layers.items():
        found = {part: shapes[key] for part, key in parts.items()}
        check_layer(name, found, modules.get(name))
    return layers


@torch.no_grad()
def merge(path, dit):
    """Adds the updates of a file to the weights of dit: computed and added in float32, then cast.
    Raises LoRAError."""
    layers = check(path, dit)
    with opened(path) as file:
        for name, parts in layers.items():
            tensors = {part: file.get_tensor(key).float() for part, key in parts.items()}
            weight = dit.get_submodule(name).weight
            merged = (weight.float() + update_of(tensors)).to(weight.dtype)
            if not merged.isfinite().all():
                raise LoRAError(f"{name} has values that are not finite; fetch the file again")
            weight.copy_(merged)


def update_of(tensors):
    """What is added to a layer's weight (out, in), of its tensors by part."""
    ups = [tensors[part] for part in ups_of(tensors)]
    downs = tensors[DOWN].chunk(len(ups))
    products = [up @ down for up, down in zip(ups, downs, strict=True)]
    return tensors[SCALE] * torch.cat(products)


def opened(path):
    try:
        return safe_open(path, "pt")
    except (OSError, SafetensorError) as error:
        raise LoRAError(f"cannot be read ({error}); give a .safetensors file") from error


def by_layer(keys):
    """{path of the layer: {part: key}}."""
    layers = {}
    for key in keys:
        found = KEY.fullmatch(key)
        if not found:
            raise LoRAError(
                f"has the key {key[:90]!r}; LongCat's keys are such as "
                f"lora{HYPHEN}blocks{HYPHEN}0{HYPHEN}attn{HYPHEN}qkv.{DOWN}"
            )
        layers.setdefault(found["layer"].replace(HYPHEN, "."), {})[found["part"]] = key
    if not layers:
        raise LoRAError("holds no tensor; give LongCat's lora/cfg_step_lora.safetensors")
    return layers


def ups_of(parts):
    """The parts of lora_up, in the order of their rows."""
    count = sum(part.startswith("lora_up.blocks.") for part in parts)
    return [f"lora_up.blocks.{i}.weight" for i in range(count)] or ["lora_up.weight"]


def check_layer(name, shapes, layer):
    """shapes: by part."""
    if not isinstance(layer, nn.Linear):
        raise LoRAError(f"names {name}, which is no linear layer of this transformer")
    ups = ups_of(shapes)
    rank = (*shapes.get(ups[0], ()), 0)[1]
    right = {part: (layer.out_features // len(ups), rank) for part in ups}
    right |= {DOWN: (len(ups) * rank, layer.in_features), SCALE: ()}
    for part in dict.fromkeys([*right, *shapes]):
        there, here = shapes.get(part, "not there"), right.get(part, "nothing")
        if there != here:
            raise LoRAError(f"{name}: {part} is {there}; it must be {here}")
