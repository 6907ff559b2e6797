"""Clips that the project makes itself: sprites with their own motion over moving pictures.

`clip(seed, frames)` gives (frames, 3, size, size) in 0..1 and a caption that names what is seen.
The same seed is always the same clip. `python -m nano.scenes FOLDER` writes the four demo clips;
their photographs (`HELD_OUT`) are not used in training.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
import torch

from common.video import write_video
from nano.backdrops import background
from nano.sprites import add_post, add_sprite

TRAINING = {
    "astronaut": "an astronaut",
    "brick": "a brick wall",
    "camera": "a man with a camera",
    "coins": "old coins",
    "grass": "grass",
    "gravel": "gravel",
    "hubble_deep_field": "galaxies",
    "moon": "the moon",
    "page": "a printed page",
    "rocket": "a rocket",
    "text": "handwriting",
    "motorcycle_left": "a motorcycle",
}
HELD_OUT = {"chelsea": "a cat", "coffee": "a cup of coffee"}
UNSEEN = 9_000_000  # seeds from here on are never trained on
DEMO_SEEDS = (9_000_017, 9_000_004, 9_000_005, 9_000_024)  # from easy to hard


def times(rng, frames):
    """The time (frames,) that motions see: at several speeds, a third of them uneven."""
    t = torch.arange(frames, dtype=torch.float32) * rng.choice([0.3, 0.6, 1.0, 1.5])
    if rng.random() < 0.33:
        rate, phase = rng.uniform(0.1, 0.4), rng.uniform(0, 6.28)
        t = t + rng.uniform(0.4, 1.0) / rate * torch.sin(rate * t + phase)
    return t


def relight(rng, t, canvas):
    """Light that changes over time, and more on one side than on the other."""
    depth, rate = rng.uniform(-0.4, 0.4), rng.uniform(0.02, 0.15)
    side = torch.linspace(0.4, 1, canvas.shape[-1]) if rng.random() < 0.5 else torch.ones(1)
    if rng.random() < 0.5:
        side = side.flip(0)
    return canvas * (1 + depth * side * torch.sin(rate * t).view(-1, 1, 1, 1)), "changing light"


def clip(seed, frames, size=64, photos=TRAINING, pace=1.0):
    """frames (frames, 3, size, size) float32 in 0..1, and a caption. pace: of all motion."""
    rng = np.random.default_rng(seed)
    t = pace * times(rng, frames)
    canvas, scene = background(rng, t, size, photos)
    said = []
    for _ in range(rng.choice([0, 1, 1, 2, 2, 3])):
        canvas, words = add_sprite(rng, t, canvas, photos)
        said.append(words)
    said.append(scene)
    if rng.random() < 0.12:
        canvas, words = add_post(rng, t, canvas)
        said.append(words)
    if rng.random() < 0.2:
        canvas, words = relight(rng, t, canvas)
        said.append(words)
    caption = ", ".join(said)
    return canvas.clamp(0, 1), caption[0].upper() + caption[1:] + "."


def main():
    parser = argparse.ArgumentParser(description="write the demo clips and their manifest")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "manifest.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["filename", "caption"])
        for number, seed in enumerate(DEMO_SEEDS):
            frames, caption = clip(seed, 97, photos=HELD_OUT)
            write_video(folder / f"scene_{number}.mp4", frames, fps=24)
            rows.writerow([f"scene_{number}.mp4", caption])


if __name__ == "__main__":
    main()
