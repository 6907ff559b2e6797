"""Things that move by themselves in front of a backdrop: `add_sprite` and `add_post`."""

import math

import torch
import torch.nn.functional as F

from nano.backdrops import direction
from nano.pictures import developed, leaves, photograph

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
SHAPES = ("ball", "square", "triangle", "ring", "star", "bar", "blob")
TEXTURES = ("plain", "striped", "checkered", "spotted", "shaded", "picture", "patchy")


def path(rng, t, size):
    """Where a sprite is: x, y (F,) in pixels and a verb."""
    kind = rng.choice(["line", "line", "bounce", "circle", "swing", "still"])
    x0, y0 = rng.uniform(0.15, 0.85, 2) * size
    speed = rng.choice([0.2, 0.5, 0.9, 1.8]) * size / 64
    heading = rng.uniform(0, 2 * math.pi)
    dx, dy = speed * math.cos(heading), speed * math.sin(heading)
    if kind == "still":
        return x0 + 0 * t, y0 + 0 * t, "stays"
    if kind == "circle":
        radius = rng.uniform(0.1, 0.35) * size
        angle = speed / radius * rng.choice([-1, 1]) * t + heading
        return x0 + radius * torch.cos(angle), y0 + radius * torch.sin(angle), "circles"
    if kind == "swing":
        reach = rng.uniform(0.05, 0.4) * size
        swing = reach * torch.sin(speed / reach * t + rng.uniform(0, 2 * math.pi))
        return x0 + swing * math.cos(heading), y0 + swing * math.sin(heading), "swings"
    if kind == "bounce":  # a triangle wave between the edges
        x = size - (size - (x0 + dx * t) % (2 * size)).abs()
        y = size - (size - (y0 + dy * t) % (2 * size)).abs()
        return x, y, "bounces"
    x = x0 + dx * (t - t.mean())
    return x, y0 + dy * (t - t.mean()), f"moves {direction(dx, dy)}"


def turning(rng, t):
    """The angle (F,) of a sprite, and a word for how it turns."""
    angle = rng.uniform(0, 2 * math.pi)
    kind = rng.choice(["", "", "spins", "rocks"])
    if kind == "spins":
        return angle + rng.choice([0.03, 0.07, -0.05, -0.12]) * t, ", spinning"
    if kind == "rocks":
        return angle + rng.uniform(0.2, 0.8) * torch.sin(rng.uniform(0.05, 0.3) * t), ", rocking"
    return angle + 0 * t, ""


def outline(rng, shape, u, v, t):
    """Signed distance to the shape's edge, negative inside; u, v in units of its radius."""
    radius = (u * u + v * v).sqrt()
    if shape == "ball":
        return radius - 1
    if shape == "square":
        return torch.maximum(u.abs(), v.abs()) - 0.85
    if shape == "bar":
        return torch.maximum(u.abs() - 1.3, v.abs() - 0.3)
    if shape == "ring":
        return (radius - 0.75).abs() - 0.25
    if shape == "triangle":
        return torch.maximum(u.abs() * 0.866 + v * 0.5, -v) - 0.55
    around = torch.atan2(v, u)
    if shape == "star":
        return radius - (0.7 + 0.3 * torch.cos(5 * around))
    edge = 0.9  # a blob changes its form
    for lobes in (2, 3, 4):
        rate, phase = rng.uniform(-0.2, 0.2), rng.uniform(0, 2 * math.pi)
        edge = edge + 0.16 * torch.cos(lobes * around + phase) * torch.cos(rate * t + phase)
    return radius - edge


def paint(rng, kind, colour, u, v, photos):
    """Colours (F, 3, size, size) over the sprite's own coordinates, so that they move with it; what
    they look like."""
    if kind in ("picture", "patchy"):
        name = str(rng.choice(sorted(photos)))
        middle, scale = rng.uniform(-0.5, 0.5, 2), rng.uniform(0.2, 0.45)
        grid = torch.stack([middle[0] + scale * u, middle[1] + scale * v], dim=-1).float()
        picture = developed(rng, photograph(name)) if kind == "picture" else leaves(rng)
        picture = picture.expand(len(u), -1, -1, -1)
        shown = F.grid_sample(picture, grid, padding_mode="reflection", align_corners=False)
        return shown, "{} showing " + photos[name] if kind == "picture" else "patchy {}"
    n = rng.uniform(3, 6)
    light = {
        "plain": torch.ones_like(u),
        "striped": 0.7 + 0.3 * torch.sin(n * u).sign(),
        "checkered": 0.7 + 0.3 * (torch.sin(n * u) * torch.sin(n * v)).sign(),
        "spotted": 0.6 + 0.4 * (torch.cos(n * u) * torch.cos(n * v)).clamp(0, 1),
        "shaded": (0.8 - 0.3 * u - 0.2 * v).clamp(0.2, 1.2),
    }[kind]
    look = colour if kind == "plain" else f"{kind} {colour}"
    return torch.tensor(COLOURS[colour]).view(1, 3, 1, 1) * light[:, None], look + " {}"


def add_sprite(rng, t, canvas, photos):
    """Draws one on canvas (F, 3, size, size); gives the new canvas and its description."""
    size = canvas.shape[-1]
    colour, shape, kind = (str(rng.choice(list(x))) for x in (COLOURS, SHAPES, TEXTURES))
    x, y, verb = path(rng, t, size)
    angle, turn = turning(rng, t)
    swell = 1 + rng.choice([0, 0, 0.25]) * torch.sin(0.2 * t)
    radius = (min(0.45, 0.07 * math.exp(abs(rng.normal(0.5, 0.6)))) * size * swell)[:, None, None]
    angle = angle[:, None, None]
    pixels = torch.arange(size) + 0.5
    px = (pixels[None, None, :] - x[:, None, None]) / radius
    py = (pixels[None, :, None] - y[:, None, None]) / radius
    u, v = px * angle.cos() + py * angle.sin(), py * angle.cos() - px * angle.sin()
    mask = (0.5 - outline(rng, shape, u, v, t[:, None, None]) * radius).clamp(0, 1)[:, None]
    colours, look = paint(rng, kind, colour, u, v, photos)
    return canvas * (1 - mask) + colours * mask, f"a {look.format(shape)} {verb}{turn}"


def add_post(rng, t, canvas):
    """A still post in front of everything: what moves behind it vanishes and comes back."""
    size = canvas.shape[-1]
    colour, x = str(rng.choice(list(COLOURS))), rng.uniform(0.15, 0.85) * size
    half = rng.uniform(0.02, 0.09) * size
    pixels = torch.arange(size) + 0.5
    edge = (half + 0.5 - (pixels - x).abs()).clamp(0, 1)
    round_side = 1 - 0.5 * ((pixels - x) / half).clamp(-1, 1) ** 2
    colours = torch.tensor(COLOURS[colour]).view(1, 3, 1, 1) * round_side
    return canvas * (1 - edge) + colours * edge, f"a {colour} post in front"
