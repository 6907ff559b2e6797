"""Clips with actions: a sprite over a still backdrop, which each action moves by so many pixels.

    python -m nano.action_clips nano/demo_vjepa     # what vjepa_tta.py runs on by default

`clip(seed)` gives frames and actions; the same seed is always the same clip. In training an action
moves the sprite by just that (gain 1); in the demo's clips, which nobody trained on, by 1.75 times
that. States are zero, as in the study's clips: the predictor has to see where the sprite is.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from predictors.encoder import encode, load_encoder

SIZE = 32  # pixels on a side
FARTHEST = 4.0  # pixels that an action moves the sprite at gain 1
UNIT = 4.0  # pixels of an action of 1.0
UNSEEN = 9_000_000  # seeds from here on are never trained on
DEMO_GAIN = 1.75
DEMO_SOURCES, DEMO_CLIPS = 8, 4  # scenes, and clips of each


def clip(seed, frames=8, gain=1.0, scene=None):
    """pictures (frames, 3, SIZE, SIZE) in 0..1, and actions (frames - 1, 2) in units of UNIT.
    `scene` is the seed of how it looks: clips may share one."""
    rng = np.random.default_rng(seed)
    look = np.random.default_rng(seed + 1 if scene is None else scene)
    backdrop, colour, radius, square = scenery(look)
    places, actions = walk(rng, frames, gain, radius)
    pixels = torch.arange(SIZE) + 0.5
    across = pixels[None, None, :] - places[:, 0, None, None]
    down = pixels[None, :, None] - places[:, 1, None, None]
    far = torch.maximum(across.abs(), down.abs()) if square else (across**2 + down**2).sqrt()
    mask = (0.5 + radius - far).clamp(0, 1)[:, None]
    return backdrop * (1 - mask) + colour * mask, actions


def scenery(rng):
    """A backdrop (3, SIZE, SIZE) of soft colours; a sprite's colour (3, 1, 1), which stands out,
    radius in pixels and whether it is a square."""
    coarse = torch.from_numpy(rng.uniform(0.3, 0.7, (1, 3, 4, 4))).float()
    backdrop = F.interpolate(coarse, (SIZE, SIZE), mode="bicubic")[0].clamp(0, 1)
    colour = rng.uniform(0, 0.25, 3) + rng.choice([0.0, 0.75])
    return (
        backdrop,
        torch.from_numpy(colour).float().view(3, 1, 1),
        float(rng.uniform(4, 6.5)),
        bool(rng.random() < 0.5),
    )


def walk(rng, frames, gain, radius):
    """Where the sprite is, (frames, 2) pixels across and down, and the actions that led there. An
    action that would lead out of the picture is turned round."""
    place = rng.uniform(radius, SIZE - radius, 2)
    places, actions = [place], []
    heading = rng.uniform(0, 2 * np.pi)
    for _ in range(frames - 1):
        heading += rng.normal(0, 0.8)
        step = rng.uniform(1, FARTHEST) * np.array([np.cos(heading), np.sin(heading)])
        out = np.abs(place + gain * step - SIZE / 2) > SIZE / 2 - radius / 2
        step = np.where(out, -step, step)
        heading = np.arctan2(step[1], step[0])
        place = place + gain * step
        places.append(place)
        actions.append(step / UNIT)
    return (torch.from_numpy(np.stack(x)).float() for x in (places, actions))


def main():
    parser = argparse.ArgumentParser(description="write the demo's clips and their manifest")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gain", type=float, default=DEMO_GAIN, help="1 is that of the training")
    parser.add_argument("--encoder", type=Path, default=Path("nano/vjepa/encoder"))
    args = parser.parse_args()
    encoder = load_encoder(args.encoder)
    (args.folder / "clips").mkdir(parents=True, exist_ok=True)
    with open(args.folder / "manifest.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["id", "source", "category"])
        for scene in range(DEMO_SOURCES):
            for number in range(DEMO_CLIPS):
                name, look = f"scene_{scene}_{number}", UNSEEN + 100 * scene
                pictures, actions = clip(look + number, gain=args.gain, scene=look)
                tensors = {
                    "features": encode(encoder, pictures).half(), "actions": actions,
                    "states": torch.zeros_like(actions),
                }  # fmt: skip
                save_file(tensors, args.folder / "clips" / f"{name}.safetensors")
                rows.writerow([name, f"scene {scene}", f"gain {args.gain:g}"])


if __name__ == "__main__":
    main()
