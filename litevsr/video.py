"""Whole videos, frame by frame, with their sound."""

import contextlib
import functools
import heapq
import shutil
import sys
from fractions import Fraction

import av

from common.errors import VideoError
from common.video import decode, fit, lost, opened, upright, write_video
from runs.results import discard, replace_file

HELD = ("aac", "ac3", "alac", "eac3", "flac", "mp3", "opus")  # codecs that an mp4 takes
GAP = 0.05  # seconds of silence that are kept
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}  # of channels


def frames_of(path):
    """The frames of a video, upright and with square pixels, (3, H, W) in 0..1, one by one; and its
    frame rate. Raises VideoError, from the iterator too."""
    with readable(path) as (_, stream):
        fps = float(stream.average_rate or 24)
    return each_frame(path), fps


def each_frame(path):
    with readable(path) as (container, stream):
        aspect, count = stream.sample_aspect_ratio, 0
        for frame in decode(container, stream, path):
            yield fit(frame, aspect, upright(frame, aspect))
            count += 1
        if said := lost(stream, count):
            say_once(f"{path}: {said}")


@functools.cache  # a video is read again to be compared with
def say_once(text):
    print(text, file=sys.stderr)


@contextlib.contextmanager
def readable(path):
    try:
        with opened(path) as found:
            yield found
    except av.FFmpegError as error:
        raise VideoError(f"{path}: cannot be read ({error.strerror})") from error


def write(path, frames, fps, sound):
    """Writes an mp4 of the frames with the sound of the video `sound`. Whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    silent = path.with_name(f".{path.name}.silent.mp4")
    try:
        write_video(silent, frames, fps)
        try:
            replace_file(path, lambda temporary: join(temporary, silent, sound))
        except av.FFmpegError as error:
            print(f"{sound}: its sound cannot be kept ({error.strerror})", file=sys.stderr)
            replace_file(path, lambda temporary: shutil.copy(silent, temporary))
    finally:
        discard(silent)


def join(path, pictures, sound):
    """Packets of both, in the order of their times; sound that no mp4 holds is coded anew."""
    with (
        av.open(str(path), "w", format="mp4") as out,
        av.open(str(pictures)) as first,
        av.open(str(sound)) as second,
    ):
        found = [copied(out, first, first.streams.video[0])]
        for stream in second.streams.audio[:1]:
            known = stream.codec_context.codec.canonical_name in HELD
            found.append((copied if known else coded_anew)(out, second, stream))
        for packet in heapq.merge(*found, key=lambda p: p.dts * p.time_base):
            out.mux(packet)


def copied(out, source, stream):
    """A stream of `out` like this one, and its packets."""
    placed = out.add_stream_from_template(stream)

    def packets():
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.stream = placed
                yield packet

    return packets()


def coded_anew(out, source, stream):
    """An AAC stream of `out`, and its packets."""
    rates = av.codec.Codec("aac", "w").audio_rates
    rate = stream.rate if rates is None or stream.rate in rates else 48_000
    layout = LAYOUTS.get(stream.layout.nb_channels, "stereo")
    placed = out.add_stream("aac", rate=rate, layout=layout)

    def packets():
        count = 0
        for frame in source.decode(stream):
            at = round((frame.time or 0) * frame.sample_rate)
            if abs(at - count) > GAP * frame.sample_rate:
                count = at
            frame.pts, frame.time_base = count, Fraction(1, frame.sample_rate)
            count += frame.samples
            yield from placed.encode(frame)
        yield from placed.encode(None)

    return packets()
