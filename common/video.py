"""Frames in and out of video files."""

import contextlib
import itertools
from fractions import Fraction

import av
import numpy as np
import torch
import torch.nn.functional as F

from common.errors import VideoError

# demuxers of real containers: playlists and lists of files would open what they name
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm,gif,mpeg,mpegts,mpegvideo"
LARGEST = 8192 * 4320  # pixels of a stored frame
THINNEST = 32  # a picture's longer side by its shorter one
WIDEST = 10.0  # a stored pixel's width by its height, or the other way round
# bytes in tags that are no UTF-8 are no reason to refuse a video; from 19 on PyAV is lenient itself
LENIENT = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}


def read_frames(path, start, stop, size):
    """Stored frames start..stop - 1 as (stop - start, 3, H, W) float32 in 0..1, and the frame rate.

    By index, whatever the time stamps say; turned upright and to square pixels, scaled to cover
    `size` (height, width) and cropped at the centre. Raises VideoError when one of the frames is
    not to be had.
    """
    frames, count = [], 0
    try:
        with opened(path) as (container, stream):
            announced = announced_frames(stream)
            count = seek_before(container, stream, start)
            for frame in decode(container, stream, path, count):
                count += 1
                if count > start:
                    frames.append(fit(frame, stream.sample_aspect_ratio, size))
                if count == stop:
                    return torch.stack(frames), float(stream.average_rate or 24)
    except av.FFmpegError as error:
        what = f"decodes only {count} frames" if count else "cannot be opened as a video"
        raise VideoError(f"{path}: {what} ({error.strerror}), {stop} are needed") from error
    lacking = f" of {announced} announced" if announced > count else ""
    raise VideoError(f"{path}: has {count}{lacking} frames, {stop} are needed")


@contextlib.contextmanager
def opened(path):
    """A video file's container and video stream. Raises VideoError where there is none that can be
    used, and av.FFmpegError."""
    try:
        if not path.is_file():
            raise VideoError(f"{path}: no such file")
        if path.stat().st_size == 0:
            raise VideoError(f"{path}: empty file")
        path = path.resolve()  # and not a protocol of FFmpeg's
    except (OSError, ValueError) as error:  # a name too long, a loop of links, no permission
        raise VideoError(f"{path}: cannot be opened ({error})") from error
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
    with av.open(str(path), options=options, **LENIENT) as container:
        if not container.streams.video:
            raise VideoError(f"{path}: no video stream in it")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise VideoError(f"{path}: nothing here decodes its video stream")
        refuse_extreme(path, stream.width, stream.height, stream.sample_aspect_ratio)
        stream.thread_type = "AUTO"
        yield container, stream


def refuse_extreme(path, width, height, pixel_aspect):
    """Raises VideoError for frames that would take all memory."""
    if width * height > LARGEST:
        raise VideoError(
            f"{path}: frames of {width}x{height}; at most {LARGEST / 1e6:.0f} million pixels"
        )
    aspect = float(pixel_aspect or 1)
    if not 1 / WIDEST <= aspect <= WIDEST:
        raise VideoError(f"{path}: pixels {aspect:g} times as wide as high; at most {WIDEST:g}")
    sides = (width * aspect, height)
    if max(sides) > THINNEST * min(sides):  # scaled to cover, it would be as large
        raise VideoError(f"{path}: pictures of {sides[0]:g}x{height}; at most {THINNEST} to 1")


def announced_frames(stream):
    """How many frames the file says that it shows. An MP4 that was cut without encoding it anew
    stores more: its edit list hides some, which the index marks or lacks."""
    if "mp4" not in stream.container.format.name:
        return stream.frames
    return min(stream.frames, sum(not entry.is_discard for entry in stream.index_entries))


def seek_before(container, stream, start):
    """Goes to the last keyframe up to frame `start` and gives its index; to the first frame where
    the file's index does not tell, or pictures after the keyframe are shown before it."""
    if "mp4" not in container.format.name:  # AVI has no times of showing
        return 0
    entries = list(stream.index_entries)
    keys = [i for i, entry in enumerate(entries) if entry.is_keyframe and 0 < i <= start]
    all_shown = len(entries) == stream.frames and not any(entry.is_discard for entry in entries)
    if not keys or not all_shown:
        return 0
    time = entries[keys[-1]].timestamp
    shown = time - min(0, entries[0].timestamp)  # the index has times of decoding
    container.seek(shown, stream=stream)
    packets = container.demux(stream)
    first = next(packets)
    until_next = itertools.takewhile(lambda p: not p.is_keyframe and p.pts is not None, packets)
    whole = first.is_keyframe and first.dts == time and all(p.pts > first.pts for p in until_next)
    if whole:  # a picture that is refreshed bit by bit is not shown before it is complete
        container.seek(shown, stream=stream)
        frame = next(container.decode(stream), None)
        whole = frame is not None and frame.pts == first.pts and not frame.is_corrupt
    container.seek(shown if whole else entries[0].timestamp, stream=stream)
    return keys[-1] if whole else 0


def decode(container, stream, path, first=0):
    for index, frame in enumerate(container.decode(stream), first):
        if frame.is_corrupt:
            raise VideoError(f"{path}: frame {index} is damaged")
        refuse_extreme(path, frame.width, frame.height, stream.sample_aspect_ratio)
        yield frame


def lost(stream, count):
    """What a file from which so many frames came announces more, in words; or None."""
    announced = announced_frames(stream)
    return f"{count} of {announced} announced frames decode" if announced > count else None


def refuse_lost(stream, count):
    """Raises VideoError where the file announces more."""
    if said := lost(stream, count):
        raise VideoError(f"damaged: {said}")


def upright(frame, pixel_aspect):
    """(height, width) of a frame with square pixels, turned as it is shown."""
    sides = frame.height, max(1, round(frame.width * float(pixel_aspect or 1)))
    return sides[::-1] if frame.rotation % 180 else sides


def fit(frame, pixel_aspect, size):
    """An av.VideoFrame as (3, *size), upright, undistorted, covering, cropped at the centre."""
    picture = frame.to_ndarray(format="rgb24")
    height, width = picture.shape[:2]
    width = max(1, round(width * float(pixel_aspect or 1)))
    if frame.rotation % 180:
        height, width = width, height
    picture = np.ascontiguousarray(np.rot90(picture, frame.rotation // 90))
    x = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    scale = max(size[0] / height, size[1] / width)
    scaled = (max(size[0], round(height * scale)), max(size[1], round(width * scale)))
    x = F.interpolate(x, scaled, mode="bilinear", antialias=True)[0].clamp(0, 1)
    top, left = (scaled[0] - size[0]) // 2, (scaled[1] - size[1]) // 2
    return x[:, top : top + size[0], left : left + size[1]]


def write_video(path, frames, fps, options=None, comment=""):
    """Writes frames, any iterable of (3, H, W) float in 0..1, as H.264, visually lossless unless
    the encoder's options say otherwise."""
    # av itself: imageio's writer hands no options to the encoder (imageio/imageio#1062)
    with av.open(str(path), "w", format="mp4") as container:
        if comment:
            container.metadata["comment"] = comment
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options=options or {"crf": "12"})
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            pixels = (frame.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
            if not stream.codec_context.is_open:  # the first frame gives the size
                stream.height, stream.width = pixels.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
