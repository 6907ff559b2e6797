"""Clips that the project makes itself: textured sprites with their own motion over moving pictures.

`clip(seed, frames)` gives (frames, 3, size, size) in 0..1 and a caption that names what is seen.
The same seed is always the same clip. `python -m nano.scenes FOLDER` writes the four demo clips;
their photographs (`HELD_OUT`) are not used in training.
"""

import argparse
import csv
import functools
import math
from pathlib import Path

import numpy as np
import skimage
import torch
import torch.nn.functional as F

from common.data import write_video

COLOURS = {
    "red": (0.85, 0.15, 0.12),
    "orange": (0.95, 0.55, 0.1),
    "yellow": (0.95, 0.88, 0.2),
    "green": (0.15, 0.65, 0.25),
    "blue": (0.15, 0.3, 0.85),
    "purple": (0.55, 0.2, 0.7),
    "white": (0.95, 0.95, 0.95),
    "black": (0.06, 0.06, 0.06),
    "brown": (0.45, 0.28, 0.15),
    "pink": (0.95, 0.6, 0.7),
}
SHAPES = ("ball", "square", "triangle", "ring", "star")
TEXTURES = ("plain", "striped", "checkered", "spotted", "shaded")
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
DEMO_SEEDS = (9_000_001, 9_000_004, 9_000_010, 9_000_017)


@functools.lru_cache
def photograph(name):
    """(1, 3, 192, W) in 0..1."""
    folder = Path(skimage.__file__).parent / "data"
    (path,) = [p for p in folder.glob(f"{name}.*") if p.suffix in (".png", ".jpg")]
    image = skimage.img_as_float32(skimage.io.imread(path))
    image = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image[..., :3]
    image = torch.from_numpy(image).permute(2, 0, 1)[None]
    size = (192, round(192 * image.shape[3] / image.shape[2]))
    return F.interpolate(image, size, mode="bilinear", antialias=True)


def procedural(rng):
    """A smooth random picture (1, 3, 192, 192) between two or three colours."""
    coarse = torch.from_numpy(rng.random((1, 1, *rng.integers(3, 24, 2)))).float()
    field = F.interpolate(coarse, (192, 192), mode="bicubic").clamp(0, 1)
    low, high = (torch.from_numpy(rng.random(3)).float().view(1, 3, 1, 1) for _ in range(2))
    return low + (high - low) * field


def direction(dx, dy):
    across, down = ("right" if dx > 0 else "left"), ("down" if dy > 0 else "up")
    if abs(dx) > 2 * abs(dy):
        return across
    return down if abs(dy) > 2 * abs(dx) else f"{down} and {across}"


def background(rng, t, size, photos):
    """A camera that pans, zooms or turns over a picture: (len(t), 3, size, size) and what it
    does."""
    if rng.random() < 0.75:
        name = rng.choice(sorted(photos))
        picture, subject = photograph(str(name)), photos[str(name)]
    else:
        picture, subject = procedural(rng), "soft colours"
    height, width = picture.shape[2:]
    window = rng.uniform(64, 120)  # pixels of the picture that the view covers
    move = rng.choice(["still", "pan", "pan", "pan", "zoom", "turn"])
    dx, dy = rng.normal(size=2) * rng.choice([0.4, 1.0, 2.5]) * (move == "pan")
    zoom = rng.uniform(-0.012, 0.012) * (move == "zoom")
    turn = rng.uniform(-0.025, 0.025) * (move == "turn")
    shake = rng.choice([0.0, 0.0, 0.6])
    middle = t.mean()
    cx = rng.uniform(0.3, 0.7) * width + (t - middle) * dx + shake * torch.sin(t * 0.9 + dy)
    cy = rng.uniform(0.3, 0.7) * height + (t - middle) * dy + shake * torch.cos(t * 0.7 + dx)
    scale, angle = window * torch.exp(zoom * (t - middle)), turn * t
    theta = torch.zeros(len(t), 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = angle.cos() * scale / width, -angle.sin() * scale / width
    theta[:, 1, 0], theta[:, 1, 1] = angle.sin() * scale / height, angle.cos() * scale / height
    theta[:, 0, 2], theta[:, 1, 2] = 2 * cx / width - 1, 2 * cy / height - 1
    grid = F.affine_grid(theta, (len(t), 3, size, size), align_corners=False)
    view = F.grid_sample(
        picture.expand(len(t), -1, -1, -1), grid, padding_mode="reflection", align_corners=False
    )
    said = {
        "still": "the camera is still",
        "pan": f"the camera pans {direction(dx, dy)}",
        "zoom": f"the camera zooms {'out' if zoom > 0 else 'in'}",
        "turn": "the camera turns",
    }
    return view, f"{subject} in the background, {said[str(move)]}"


def path(rng, t, size):
    """Where a sprite is: x, y (len(t),) in pixels and a verb."""
    kind = rng.choice(["line", "line", "bounce", "circle", "swing"])
    x0, y0 = rng.uniform(0.15, 0.85, 2) * size
    speed = rng.choice([0.4, 0.9, 1.8]) * size / 64
    if kind == "circle":
        radius, phase = rng.uniform(0.1, 0.35) * size, rng.uniform(0, 2 * math.pi)
        rate = speed / radius * rng.choice([-1, 1])
        return (
            x0 + radius * torch.cos(rate * t + phase),
            y0 + radius * torch.sin(rate * t + phase),
            "circles",
        )
    heading = rng.uniform(0, 2 * math.pi)
    dx, dy = speed * math.cos(heading), speed * math.sin(heading)
    if kind == "swing":
        reach = rng.uniform(0.1, 0.4) * size
        swing = reach * torch.sin(speed / reach * t)
        return x0 + swing * math.cos(heading), y0 + swing * math.sin(heading), "swings"
    if kind == "bounce":  # a triangle wave between the edges
        x = size - (size - (x0 + dx * t) % (2 * size)).abs()
        y = size - (size - (y0 + dy * t) % (2 * size)).abs()
        return x, y, "bounces"
    x = x0 + dx * (t - t.mean())
    return x, y0 + dy * (t - t.mean()), f"moves {direction(dx, dy)}"


def outline(shape, u, v):
    """Signed distance to the shape's edge, negative inside; u, v in units of its radius."""
    radius = (u * u + v * v).sqrt()
    if shape == "ball":
        return radius - 1
    if shape == "square":
        return torch.maximum(u.abs(), v.abs()) - 0.85
    if shape == "ring":
        return (radius - 0.75).abs() - 0.25
    if shape == "triangle":
        return torch.maximum(u.abs() * 0.866 + v * 0.5, -v) - 0.55
    return radius - (0.7 + 0.3 * torch.cos(5 * torch.atan2(v, u)))


def texture(kind, u, v, rng):
    """Brightness 0..1 over the sprite's own coordinates, so that it moves and turns with it."""
    n = rng.uniform(3, 6)
    if kind == "striped":
        return 0.7 + 0.3 * torch.sin(n * u).sign()
    if kind == "checkered":
        return 0.7 + 0.3 * (torch.sin(n * u) * torch.sin(n * v)).sign()
    if kind == "spotted":
        return 0.6 + 0.4 * (torch.cos(n * u) * torch.cos(n * v)).clamp(0, 1)
    if kind == "shaded":
        return (0.8 - 0.3 * u - 0.2 * v).clamp(0.2, 1.2)
    return torch.ones_like(u)


def add_sprite(rng, t, canvas):
    """Draws one sprite on canvas (F, 3, size, size); gives the new canvas and its description."""
    size = canvas.shape[-1]
    colour, shape, kind = (str(rng.choice(list(x))) for x in (COLOURS, SHAPES, TEXTURES))
    x, y, verb = path(rng, t, size)
    spin = rng.choice([0.0, 0.05, -0.12])
    radius = rng.uniform(0.09, 0.24) * size * (1 + rng.choice([0, 0.25]) * torch.sin(0.2 * t))
    angle = (rng.uniform(0, 6.28) + spin * t)[:, None, None]
    pixels = torch.arange(size) + 0.5
    px = (pixels[None, None, :] - x[:, None, None]) / radius[:, None, None]
    py = (pixels[None, :, None] - y[:, None, None]) / radius[:, None, None]
    u, v = px * angle.cos() + py * angle.sin(), py * angle.cos() - px * angle.sin()
    edge = outline(shape, u, v) * radius[:, None, None]
    mask = (0.5 - edge).clamp(0, 1)[:, None]
    paint = torch.tensor(COLOURS[colour]).view(1, 3, 1, 1) * texture(kind, u, v, rng)[:, None]
    look = colour if kind == "plain" else f"{kind} {colour}"
    return canvas * (1 - mask) + paint * mask, f"a {look} {shape} {verb}"


def clip(seed, frames, size=64, photos=TRAINING):
    """frames (frames, 3, size, size) float32 in 0..1, and a caption."""
    rng = np.random.default_rng(seed)
    t = torch.arange(frames, dtype=torch.float32) * rng.choice([0.6, 1.0, 1.6])
    canvas, scene = background(rng, t, size, photos)
    said = []
    for _ in range(rng.choice([0, 1, 1, 2, 2, 3])):
        canvas, words = add_sprite(rng, t, canvas)
        said.append(words)
    if rng.random() < 0.2:
        light = 1 + rng.uniform(-0.3, 0.3) * torch.sin(rng.uniform(0.03, 0.15) * t)
        canvas = canvas * light.view(-1, 1, 1, 1)
    caption = ", ".join([*said, scene])
    return canvas.clamp(0, 1), caption[0].upper() + caption[1:] + "."


def main():
    parser = argparse.ArgumentParser(description="write the demo clips and their manifest")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "manifest.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["filename", "caption"])
        for number, seed in enumerate(DEMO_SEEDS):
            frames, caption = clip(seed, 97, photos=HELD_OUT)
            write_video(folder / f"scene_{number}.mp4", frames, fps=24)
            rows.writerow([f"scene_{number}.mp4", caption])


if __name__ == "__main__":
    main()
