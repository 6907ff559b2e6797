"""Frames through a restorer: windows, tiles, colours."""

import torch
from torchvision.transforms.functional import gaussian_blur

from common.loss import random_stream
from litevsr.data import enlarged
from litevsr.windows import in_tiles, in_windows


class Enlarger:
    """config: of the adapter's folder. args: steps, overlap, tile_overlap, colour_fix, seed."""

    def __init__(self, restorer, config, args):
        self.restorer, self.args = restorer, args
        self.scale, self.size, self.frames = config["scale"], config["size"], config["frames"]
        text = next(restorer.embed_each([""]))
        self.text = {name: value.to(restorer.device) for name, value in text.items()}
        default = min(self.size) // 4
        self.overlap = default if args.tile_overlap is None else args.tile_overlap

    def all(self, frames):
        """Restored frames (3, H, W) of low-resolution ones, one by one."""
        yield from in_windows(frames, self.frames, self.args.overlap, self.window)

    def window(self, frames):
        """(F, 3, h, w) -> (F, 3, scale * h, scale * w)."""
        size = [self.scale * side for side in frames.shape[2:]]
        return in_tiles(enlarged(frames, size), self.size, self.overlap, self.tile)

    @torch.no_grad()
    def tile(self, given):
        """(F, 3, H, W), enlarged -> restored; the same noise in every tile."""
        restorer = self.restorer
        low = restorer.encode(given.transpose(0, 1)[None].to(restorer.device))
        generator = random_stream(self.args.seed, "litevsr", "noise")
        noise = torch.randn(low.shape, generator=generator).to(low)
        latents = restorer.generate(low, self.text, noise, self.args.steps)
        restored = restorer.decode(latents)[0].transpose(0, 1).cpu()
        return colour_fixed(restored, given, self.scale) if self.args.colour_fix else restored


def colour_fixed(restored, given, scale):
    """The restored frames with the coarse picture of the given ones: what a wide blur keeps."""
    width = 4 * scale + 1
    return (restored + gaussian_blur(given - restored, width)).clamp(0, 1)
