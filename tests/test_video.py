"""Video files that a reader must not trust: what it opens, what it holds, where it seeks."""

from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from test_run import QUICK, demo_rows, results, write_manifest

import adasteer
from common.errors import VideoError
from common.video import read_frames, write_video

SEEKING = {
    "closed": {"g": "10"},
    "open": {"g": "24", "bf": "3", "x264-params": "open-gop=1:scenecut=0:b-adapt=0"},
    "refreshed": {"g": "24", "x264-params": "intra-refresh=1:bframes=0:scenecut=0"},
}


def marked(path, container, options, count=64, aspect=1):
    """A bright bar that moves a pixel a frame over a ramp."""
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream("libx264", rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = 32, 80, "yuv420p"
        stream.codec_context.sample_aspect_ratio = aspect
        for t in range(count):
            picture = np.full((32, 80, 3), 3 * t, np.uint8)
            picture[:, t : t + 4] = 255 - 3 * t
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())
    return path


@pytest.mark.parametrize("options", SEEKING)
@pytest.mark.parametrize("container", ["avi", "mp4", "matroska", "mpegts"])
def test_the_same_frames_wherever_reading_starts(container, options, tmp_path):
    path = marked(tmp_path / "video", container, SEEKING[options])
    whole, _ = read_frames(path, 0, 60, (32, 80))
    bars = [
        int(frame.sub(3 * t / 255).abs().mean((0, 1)).argmax()) for t, frame in enumerate(whole)
    ]
    assert all(t - 1 <= bar <= t + 4 for t, bar in enumerate(bars))
    for start, stop in ((24, 60), (11, 13), (25, 27), (47, 50)):
        part, _ = read_frames(path, start, stop, (32, 80))
        assert torch.equal(part, whole[start:stop])


LISTS = {
    "ffconcat": "ffconcat version 1.0\nfile {secret}\n",
    "playlist": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{secret}\n#EXT-X-ENDLIST\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=video 5004 RTP/AVP 96\n",
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_list_of_files_is_not_a_video(kind, tmp_path, monkeypatch):
    write_video(tmp_path / "secret.mp4", torch.zeros(3, 3, 32, 32), 25)
    monkeypatch.chdir(tmp_path)  # where ffmpeg's own check of such names would let it pass
    (tmp_path / "list.mp4").write_text(LISTS[kind].format(secret="secret.mp4"))
    with pytest.raises(VideoError, match="list.mp4: cannot be opened as a video"):
        read_frames(tmp_path / "list.mp4", 0, 3, (32, 32))


def gif(path, width, height):
    """A header that announces a picture, and one row of it."""
    size = width.to_bytes(2, "little") + height.to_bytes(2, "little")
    screen, colours = b"GIF89a" + size + b"\x80\0\0", bytes(6)
    image = b"\x2c\0\0\0\0" + size + b"\0" + b"\x02\x02\x4c\x01\0"
    path.write_bytes(screen + colours + image + b"\x3b")
    return path


@pytest.mark.parametrize("aspect", [Fraction(1, 20), Fraction(20)])
def test_pixels_that_are_all_width_are_refused(aspect, tmp_path):
    path = marked(tmp_path / "thin.mp4", "mp4", {}, count=3, aspect=aspect)
    with pytest.raises(VideoError, match="times as wide as high; at most 10"):
        read_frames(path, 0, 3, (32, 80))


def test_one_extreme_file_does_not_end_the_run(tmp_path, script, capsys):
    """Each is skipped with its reason, and the good one is done."""
    good = demo_rows()[0]
    gif(tmp_path / "large.gif", 14_000, 14_000)
    rows = [("large.gif", "a wall"), ("n" * 250 + ".mp4", "a name"), ("z\0.mp4", "a zero"), good]
    listed = write_manifest(tmp_path / "list.csv", rows)
    assert script(adasteer, *QUICK, "--videos", listed, "--out", tmp_path / "out") == 3
    found = results(tmp_path / "out")
    reasons = [record.get("reason", "") for record in found.values()]
    assert sorted(record["status"] for record in found.values()) == ["done", *["skipped"] * 3]
    assert any("frames of 14000x14000; at most 35 million pixels" in reason for reason in reasons)
    assert "Traceback" not in capsys.readouterr().err


def test_tags_may_have_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "video.mp4"
    with av.open(str(path), "w") as file:
        file.metadata["title"] = "caf\u00e9"
        stream = file.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        picture = np.zeros((32, 32, 3), np.uint8)
        file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())
    content = path.read_bytes()
    assert content.count("caf\u00e9".encode()) == 1
    path.write_bytes(content.replace("caf\u00e9".encode(), b"caf\xe9\xe8"))
    frames, _ = read_frames(path, 0, 1, (32, 32))
    assert frames.shape == (1, 3, 32, 32)
