"""Still pictures (1, 3, 192, W) in 0..1 that backdrops and sprites show.

Few photographs would be learned by heart; what `leaves` draws is endless and has what photographs
have: things of all sizes that cover each other, with edges, shading and fine texture.
"""

import functools
import math
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import skimage
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

HEIGHT = 192  # of every picture, in its own pixels
WORDS = "NEWS OPEN 24 HOURS WELCOME EXIT SALE TODAY LIVE COFFEE MUSIC STOP TAXI HOTEL".split()


@functools.lru_cache
def photograph(name):
    """(1, 3, 192, W), one of those that scikit-image installs."""
    folder = Path(skimage.__file__).parent / "data"
    (path,) = [p for p in folder.glob(f"{name}.*") if p.suffix in (".png", ".jpg")]
    image = skimage.img_as_float32(iio.imread(path))
    image = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image[..., :3]
    image = torch.from_numpy(image).permute(2, 0, 1)[None]
    size = (HEIGHT, round(HEIGHT * image.shape[3] / image.shape[2]))
    return F.interpolate(image, size, mode="bilinear", antialias=True)


def developed(rng, picture):
    """The picture as another camera might show it: mirrored, lighter or darker, other colours."""
    if rng.random() < 0.5:
        picture = picture.flip(3)
    picture = picture ** math.exp(rng.normal(0, 0.3))
    if rng.random() < 0.3:
        picture = picture[:, rng.permutation(3)]
    tint = torch.from_numpy(rng.normal(0, 0.08, 3)).float().view(1, 3, 1, 1)
    return (picture * rng.uniform(0.7, 1.1) + tint).clamp(0, 1)


def two_colours(rng):
    return (torch.from_numpy(rng.random(3)).float().view(1, 3, 1, 1) for _ in range(2))


def procedural(rng):
    """A smooth random picture between two colours."""
    low, high = two_colours(rng)
    return low + (high - low) * smooth_field(rng, *rng.integers(3, 24, 2))


def smooth_field(rng, rows, columns):
    """(1, 1, 192, 192) in 0..1 that changes over 1 / rows of the height."""
    coarse = torch.from_numpy(rng.random((1, 1, rows, columns))).float()
    return F.interpolate(coarse, (HEIGHT, HEIGHT), mode="bicubic").clamp(0, 1)


def grain(rng):
    """Fine texture (3, 192, 192) around 0: as in photographs, the finer the weaker."""
    fields = [(n, smooth_field(rng, n, n)[0] - 0.5) for n in (12, 24, 48, 96, 192)]
    total = sum(field * (12 / n) ** 0.5 for n, field in fields)
    return total * torch.from_numpy(rng.uniform(0.4, 0.7, (3, 1, 1))).float()


def leaves(rng):
    """Dead leaves: shaded, textured patches with sizes drawn from a power law, over each other."""
    palette = rng.random((int(rng.integers(2, 6)), 1)) + rng.normal(0, 0.15, (1, 3))
    palette = palette + rng.normal(0, rng.uniform(0.03, 0.25), palette.shape)
    texture, rough = grain(rng), rng.uniform(0, 1.2, len(palette))
    low, high = two_colours(rng)
    canvas = (low + (high - low) * torch.linspace(0, 1, HEIGHT).view(1, 1, -1, 1))[0]
    canvas = canvas + rng.uniform(0, 0.7) * texture
    pixels = torch.arange(HEIGHT) + 0.5
    radii = HEIGHT * 0.02 / np.sqrt(rng.uniform(0.0025, 1, int(rng.integers(10, 110))))
    for radius in np.sort(radii)[::-1]:  # the small ones last, or none would be seen
        x, y = rng.uniform(0, HEIGHT, 2)
        turn, long = rng.uniform(0, math.pi), rng.uniform(1, 3)
        left, right = (int(min(max(x + s * radius * long, 0), HEIGHT)) for s in (-1, 1))
        top, bottom = (int(min(max(y + s * radius * long, 0), HEIGHT)) for s in (-1, 1))
        px, py = pixels[left:right] - float(x), pixels[top:bottom, None] - float(y)
        u = (px * math.cos(turn) + py * math.sin(turn)) / (radius * long)
        v = (py * math.cos(turn) - px * math.sin(turn)) / radius
        far = torch.maximum(u.abs(), v.abs()) if rng.random() < 0.4 else (u * u + v * v).sqrt()
        mask = ((1 - far) * radius + 0.5).clamp(0, 1)
        kind = int(rng.integers(len(palette)))
        colour = torch.from_numpy(palette[kind] + rng.normal(0, 0.05)).float().view(3, 1, 1)
        light = rng.normal(0, 0.15) * u + rng.normal(0, 0.15) * v
        window = (slice(None), slice(top, bottom), slice(left, right))
        patch = colour + light + rough[kind] * texture[window]
        canvas[window] = canvas[window] + mask * (patch - canvas[window])
    grey = canvas.mean(0)
    return (grey + rng.uniform(0.1, 0.9) * (canvas - grey)).clamp(0, 1)[None]


def lettering(rng):
    """Lines of large words (1, 3, 192, 576)."""
    image = Image.new("L", (3 * HEIGHT, HEIGHT))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(int(rng.integers(36, 64)))
    for line in range(3):
        words = " ".join(rng.choice(WORDS, 6))
        draw.text((4, 4 + 64 * line), words, font=font, fill=255)
    paper, ink = two_colours(rng)
    return paper + (ink - paper) * torch.from_numpy(np.array(image)).float().div(255)
