"""What backbones share: loading a part of a checkpoint, prompt text, registering a function at a
site."""

import contextlib
import html
import json
from dataclasses import dataclass

import ftfy
import torch
from diffusers import AutoencoderKLWan

from backbones import CheckpointError
from backbones.linear_autoencoder import LinearVideoAutoencoder

AUTOENCODERS = {cls.__name__: cls for cls in (AutoencoderKLWan, LinearVideoAutoencoder)}


@dataclass(frozen=True)
class Text:
    """Prompt embeddings (B, 1, L, width) and their mask (B, L)."""

    embeds: torch.Tensor
    mask: torch.Tensor

    def to(self, device):
        return Text(self.embeds.to(device), self.mask.to(device))

    def expand(self, batch):
        return Text(self.embeds.expand(batch, -1, -1, -1), self.mask.expand(batch, -1))

    def __getitem__(self, rows):
        return Text(self.embeds[rows], self.mask[rows])

    def joined(self, other):
        return Text(torch.cat([self.embeds, other.embeds]), torch.cat([self.mask, other.mask]))


def clean_prompt(text):
    """Text repair, html entities and white space, as the official sampler does."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


@contextlib.contextmanager
def registered(functions, function):
    functions.append(function)
    try:
        yield
    finally:
        functions.remove(function)


def load_part(cls, folder, name, **options):
    try:
        return cls.from_pretrained(folder / name, local_files_only=True, **options)
    except (OSError, ValueError) as error:
        line = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{folder / name} cannot be loaded: {line}") from error


def autoencoder_class(folder):
    config = folder / "vae" / "config.json"
    if not config.is_file():
        raise CheckpointError(f"{folder / 'vae'} cannot be loaded: no config.json in it")
    name = json.loads(config.read_text(encoding="utf-8")).get("_class_name")
    if name not in AUTOENCODERS:
        raise CheckpointError(f"{config} names {name}; known are {', '.join(AUTOENCODERS)}")
    return AUTOENCODERS[name]
