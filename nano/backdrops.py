"""What fills the frame behind the sprites: a camera over a picture, or water and flames.

Every function takes a numpy random generator first and the frames' times `t` (F,), and says in
words what it shows.
"""

import math

import torch
import torch.nn.functional as F

from nano.pictures import HEIGHT, developed, leaves, lettering, photograph, procedural, two_colours


def direction(dx, dy):
    across, down = ("right" if dx > 0 else "left"), ("down" if dy > 0 else "up")
    if abs(dx) > 2 * abs(dy):
        return across
    return down if abs(dy) > 2 * abs(dx) else f"{down} and {across}"


def view(rng, t, size, picture):
    """A camera that pans, zooms, turns and shakes over a picture (1, 3, H, W), perhaps seen through
    moving water: (F, 3, size, size) and what the camera does."""
    height, width = picture.shape[2:]
    scale0 = rng.uniform(0.3, 0.65) * HEIGHT  # pixels of the picture that the view covers
    pan, zooming, turning = (int(rng.random() < p) for p in (0.6, 0.2, 0.2))
    dx, dy = rng.normal(size=2) * rng.choice([0.4, 1.0, 2.5]) * pan
    zoom, turn = rng.uniform(-0.012, 0.012) * zooming, rng.uniform(-0.025, 0.025) * turning
    shake = rng.choice([0.0, 0.0, 0.0, 0.3, 0.8])
    middle = t.mean()
    cx = rng.uniform(0.3, 0.7) * width + (t - middle) * dx + shake * torch.sin(t * 0.9 + dy)
    cy = rng.uniform(0.3, 0.7) * height + (t - middle) * dy + shake * torch.cos(t * 0.7 + dx)
    scale, angle = scale0 * torch.exp(zoom * (t - middle)), turn * t
    theta = torch.zeros(len(t), 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = angle.cos() * scale / width, -angle.sin() * scale / width
    theta[:, 1, 0], theta[:, 1, 1] = angle.sin() * scale / height, angle.cos() * scale / height
    theta[:, 0, 2], theta[:, 1, 2] = 2 * cx / width - 1, 2 * cy / height - 1
    grid = F.affine_grid(theta, (len(t), 3, size, size), align_corners=False)
    said = [f"pans {direction(dx, dy)}"] * pan + ["turns"] * turning
    said += [f"zooms {'out' if zoom > 0 else 'in'}"] * zooming
    words = f"the camera {' and '.join(said) or 'is still'}"
    if rng.random() < 0.12:
        grid, words = grid + ripples(rng, t, size), f"seen through moving water, {words}"
    shown = F.grid_sample(
        picture.expand(len(t), -1, -1, -1), grid, padding_mode="reflection", align_corners=False
    )
    return shown, words


def waves(rng, t, size, count, upward=False):
    """A sum of travelling waves, (F, size, size) in about -2..2; upward ones all climb."""
    y, x = torch.meshgrid(*[torch.linspace(0, 1, size)] * 2, indexing="ij")
    total = torch.zeros(len(t), size, size)
    for _ in range(count):
        fx, fy = rng.normal(size=2) * rng.choice([6, 14, 28])
        rate = rng.uniform(0.03, 0.25) * rng.choice([-1, 1])
        if upward:
            fy, rate = abs(fy), abs(rate)
        phase = rng.uniform(0, 2 * math.pi)
        total += torch.sin(fx * x + fy * y + phase + rate * t.view(-1, 1, 1))
    return total * (2 / count) ** 0.5


def ripples(rng, t, size):
    """Displacements of a sampling grid, (F, size, size, 2)."""
    both = [waves(rng, t, size, 3) for _ in range(2)]
    return torch.stack(both, dim=-1) * rng.uniform(0.004, 0.02)


def water(rng, t, size):
    deep, crest = two_colours(rng)
    height = torch.sigmoid(1.5 * waves(rng, t, size, 6))[:, None]
    blue = torch.tensor([0.1, 0.35, 0.7]).view(1, 3, 1, 1)
    low, high = 0.3 * deep + 0.7 * blue, 0.4 * crest + 0.6
    return low + (high - low) * height, "rippling water"


def flames(rng, t, size):
    height = torch.linspace(-1.6, 1.6, size).view(1, -1, 1)  # hotter below
    heat = (0.5 + 0.5 * (waves(rng, t, size, 7, upward=True) + height))[:, None]
    return torch.cat([heat * 1.2, heat - 0.25, 0.6 * heat - 0.6], dim=1).clamp(0, 1), "flames"


def background(rng, t, size, photos):
    """(F, 3, size, size) and its description; photos are the names that may be used, with what each
    shows."""
    kind = rng.choice(
        ["photograph", "leaves", "procedural", "lettering", "field"], p=[0.4, 0.36, 0.06, 0.08, 0.1]
    )
    if kind == "field":
        shown, subject = (water if rng.random() < 0.6 else flames)(rng, t, size)
        return shown, f"{subject} in the background"
    if kind == "photograph":
        name = str(rng.choice(sorted(photos)))
        picture, subject = developed(rng, photograph(name)), photos[name]
    else:
        draw, subject = {
            "leaves": (leaves, "a heap of patches"),
            "procedural": (procedural, "soft colours"),
            "lettering": (lettering, "large letters"),
        }[kind]
        picture = draw(rng)
    shown, words = view(rng, t, size, picture)
    return shown, f"{subject} in the background, {words}"
