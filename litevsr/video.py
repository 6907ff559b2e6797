"""Whole videos, frame by frame, with their sound."""

import heapq

import av

from common.errors import VideoError
from common.video import decode, fit, opened, write_video
from runs.results import discard, replace_file


def frames_of(path):
    """The frames of a video, upright and with square pixels, (3, H, W) in 0..1, one by one; and its
    frame rate. Raises VideoError, from the iterator too."""
    with opened(path) as (_, stream):
        fps = float(stream.average_rate or 24)
    return each_frame(path), fps


def each_frame(path):
    try:
        with opened(path) as (container, stream):
            aspect = stream.sample_aspect_ratio
            for frame in decode(container, stream, path):
                height, width = frame.height, max(1, round(frame.width * float(aspect or 1)))
                turned = (width, height) if frame.rotation % 180 else (height, width)
                yield fit(frame, aspect, turned)
    except av.FFmpegError as error:
        raise VideoError(f"{path}: cannot be read ({error.strerror})") from error


def write(path, frames, fps, sound):
    """Writes an mp4 of the frames with the sound of the video `sound`. Whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    silent = path.with_name(f".{path.name}.silent.mp4")
    try:
        write_video(silent, frames, fps)
        replace_file(path, lambda temporary: join(temporary, silent, sound))
    finally:
        discard(silent)


def join(path, pictures, sound):
    """Packets of both, in the order of their times, as they are."""
    with (
        av.open(str(path), "w", format="mp4") as out,
        av.open(str(pictures)) as first,
        av.open(str(sound)) as second,
    ):
        kept = [first.streams.video[0], *second.streams.audio[:1]]
        placed = {stream: out.add_stream_from_template(stream) for stream in kept}
        found = [
            source.demux(stream) for source, stream in zip((first, second), kept, strict=False)
        ]
        for packet in heapq.merge(*map(timed, found), key=lambda p: p.dts * p.time_base):
            packet.stream = placed[packet.stream]
            out.mux(packet)


def timed(packets):
    return (packet for packet in packets if packet.dts is not None)
