"""The mp4 of a video, for looking: truth left, generated right, with words above them."""

import itertools
import math

import torch
from PIL import Image, ImageDraw, ImageFont

from common.clip import side_by_side
from common.video import write_video

STRIP = 24  # rows of the words
COMMENT = f"{STRIP} rows of words above the pictures"  # of the file
SMALLEST = 128  # rows of a picture; lower ones are shown with each pixel repeated
SECONDS, MOST = 4, 8  # a shorter clip is shown again until these are over, so often at most
FOR_LOOKING = {"crf": "12", "preset": "superfast"}  # larger files in a third of the time
GREY, ORANGE = (150, 150, 150), (255, 170, 60)


def write_pictures(path, clip, frames):
    """Conditioning frames, then the generated ones (F, 3, H, W) in 0..1 beside the truth. A bar
    under the words shows how far the clip is, orange where frames are generated."""
    pictures = side_by_side(clip, frames)
    times = -(-SMALLEST // pictures.shape[2])
    pictures = pictures.repeat_interleave(times, 2).repeat_interleave(times, 3)
    given, count = len(clip.cond_frames), len(pictures)
    strips = [strip(pictures.shape[3], i, given, count) for i in range(count)]
    once = [torch.cat(pair, dim=1) for pair in zip(strips, pictures, strict=True)]
    rounds = min(MOST, max(1, math.ceil(SECONDS * clip.fps / count)))
    shown = itertools.chain.from_iterable(itertools.repeat(once, rounds))
    write_video(path, shown, clip.fps, FOR_LOOKING, COMMENT)


def strip(width, i, given, count):
    """(3, STRIP, width) above frame i of count, of which the first are given."""
    image = Image.new("RGB", (width, STRIP))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    word, color = ("given", GREY) if i < given else ("generated", ORANGE)
    draw.text((4, 1), "truth", GREY, font)
    draw.text((width // 2 + 4, 1), word, color, font)
    edge, now = round(width * given / count), round(width * (i + 1) / count)
    draw.rectangle((0, STRIP - 4, min(edge, now) - 1, STRIP - 1), GREY)
    if now > edge:
        draw.rectangle((edge, STRIP - 4, now - 1, STRIP - 1), ORANGE)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(STRIP, width, 3).permute(2, 0, 1) / 255


def rows_of_words(container):
    """How many rows of an opened mp4 of a run are no picture."""
    return STRIP if container.metadata.get("comment") == COMMENT else 0
