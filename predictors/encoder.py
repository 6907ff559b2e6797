"""The frozen encoder, whose features a predictor predicts: transformers' V-JEPA 2."""

import json

import torch

from backbones import CheckpointError
from backbones.parts import load_weights

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as the encoder learned


def load_encoder(folder, device="cpu"):
    """A VJEPA2Model in float32, frozen, of a folder in transformers' layout. Raises
    CheckpointError."""
    from transformers import VJEPA2Model, utils

    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder}: no folder with the config.json of an encoder; `hf download "
            "facebook/vjepa2-vitg-fpc64-256 --local-dir FOLDER` fetches one"
        ) from error
    if kind != "vjepa2":
        raise CheckpointError(f"{folder}: model_type is {kind!r}, it must be 'vjepa2'")
    utils.logging.disable_progress_bar()  # one bar: that over the videos
    return load_weights(VJEPA2Model, folder, torch.float32).requires_grad_(False).eval().to(device)


def as_tubelets(encoder, pictures):
    """pictures (T, 3, H, W) in 0..1 -> what the encoder takes: each normalised and repeated until
    it fills a tubelet, (T, tubelet, 3, H, W)."""
    mean, std = (torch.tensor(x, device=encoder.device).view(3, 1, 1) for x in (MEAN, STD))
    x = (pictures.to(encoder.device) - mean) / std
    return x[:, None].repeat(1, encoder.config.tubelet_size, 1, 1, 1)


@torch.no_grad()
def encode(encoder, pictures):
    """pictures (T, 3, crop, crop) in 0..1, each by itself -> features (T, N, D) float32, on the
    CPU; as the training of V-JEPA 2-AC does it."""
    x = as_tubelets(encoder, pictures)
    return encoder(pixel_values_videos=x, skip_predictor=True).last_hidden_state.float().cpu()
