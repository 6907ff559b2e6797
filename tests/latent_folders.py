"""A tiny random predictor and clips of random features, as the loading code finds them on disk."""

import json

import numpy as np
import torch
from safetensors.torch import save_file

from predictors import ActionConditionedPredictor

CONFIG = {
    "img_size": [32, 32], "patch_size": 16, "embed_dim": 8, "predictor_embed_dim": 12, "depth": 2,
    "num_heads": 1, "action_embed_dim": 2,
}  # fmt: skip


def make_predictor(folder):
    torch.manual_seed(0)
    predictor = ActionConditionedPredictor(**CONFIG)
    folder.mkdir(parents=True)
    save_file(predictor.state_dict(), folder / "weights.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def make_clips(folder, count=6, frames=8, sources=3):
    """As prepare.features writes them. They share a direction, so that there is something to
    learn that goes on from one to the next."""
    generator = torch.Generator().manual_seed(1)
    shared = torch.randn(1, 4, 8, generator=generator)
    (folder / "clips").mkdir(parents=True)
    rows = ["id,source,category"]
    for i in range(count):
        noise = torch.randn(frames, 4, 8, generator=generator)
        actions = torch.randn(frames - 1, 2, generator=generator)
        arrays = {
            "features": shared * 2 + noise / 2, "actions": actions,
            "states": torch.zeros(frames - 1, 2),
        }  # fmt: skip
        save_file(arrays, folder / "clips" / f"c{i}.safetensors")
        rows.append(f"c{i},s{i % sources},{'even' if i % 2 == 0 else 'odd'}")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    return folder


def make_study_clip(folder, features=(8, 4, 8), actions=(8, 2)):
    """A clip folder of the study; None: without the array."""
    generator = np.random.default_rng(2)
    for name, shape in (("feature_maps/map", features), ("actions_states/actions", actions)):
        path = folder / f"{name}.npy"
        path.parent.mkdir(parents=True)
        if shape is not None:
            np.save(path, generator.normal(size=shape).astype(np.float32))
    return folder
