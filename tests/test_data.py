"""Manifests, frame windows and decoding; every file of bad_inputs as its table says."""

import hashlib
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import SHARED

from backbones.configs import geometry
from common import video
from common.clip import Window
from common.errors import UsageError, VideoError
from common.video import read_frames, write_video
from runs.lists import list_videos
from runs.names import printable, unusable

BAD = SHARED / "bad_inputs"
needs_bad_inputs = pytest.mark.skipif(not BAD.is_dir(), reason=f"odd files not found at {BAD}")

REFUSED = {
    "empty.mp4": "empty file",
    "not_a_video.mp4": "cannot be opened as a video",
    "audio_only.mp4": "no video stream",
    "truncated_index_lost.mp4": "cannot be opened as a video",
    "truncated_data_lost.mp4": "has 28 of 73 announced frames, 46 are needed",
    "corrupted.mp4": "decodes only 28 frames",
    "one_frame.gif": "has 1 frames",
    "one_frame.mp4": "has 1 frames",
    "png_named.mp4": "cannot be opened as a video",
    "three_frames.mp4": "has 3 frames",
    "unordered_timestamps_4f.mov": "has 4 frames",
    "rotated_90_3f.mov": "has 3 frames",
}
LOADED = [
    "glitch_and_freeze.mp4", "short_49f_8fps.mp4", "rotated_90_73f.mp4", "odd_size_127x95.mp4",
    "tiny_16x16.mp4", "anamorphic_sar2.mp4", "portrait_184x240.mp4", "variable_frame_rate.mp4",
    "ten_bit.mp4", "grayscale.mp4", "full_range.mp4", "hevc.mp4", "with audio and spaces.mp4",
    "black_73f.mp4", "frozen_73f.mp4", "two_hard_cuts.mp4",
]  # fmt: skip


@needs_bad_inputs
def test_every_odd_file_is_covered():
    assert {p.name for p in BAD.iterdir() if p.suffix != ".md"} == {*REFUSED, *LOADED}


@needs_bad_inputs
@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    with pytest.raises(VideoError, match=REFUSED[name]) as error:
        read_frames(BAD / name, 3, 46, (64, 64))
    assert name in str(error.value) and "\n" not in str(error.value)


@needs_bad_inputs
@pytest.mark.parametrize("name", LOADED)
def test_loaded(name):
    frames, fps = read_frames(BAD / name, 3, 46, (64, 96))
    assert frames.shape == (43, 3, 64, 96) and frames.dtype == torch.float32
    assert 0 <= frames.min() and frames.max() <= 1 and fps > 0


@needs_bad_inputs
def test_all_stored_frames_of_a_variable_rate_and_no_more():
    read_frames(BAD / "variable_frame_rate.mp4", 0, 73, (64, 64))
    with pytest.raises(VideoError, match="has 73 frames, 74 are needed"):
        read_frames(BAD / "variable_frame_rate.mp4", 0, 74, (64, 64))


@needs_bad_inputs
def test_rotation_is_applied():
    upright, _ = read_frames(BAD / "rotated_90_73f.mp4", 0, 1, (240, 144))
    stored, _ = read_frames(SHARED / "clips" / "ball_juggle_0090.mp4", 0, 1, (144, 240))
    turned = torch.rot90(stored, 1, (2, 3))
    assert torch.equal(upright, turned)


@needs_bad_inputs
def test_full_range_is_not_washed_out():
    full, _ = read_frames(BAD / "full_range.mp4", 0, 1, (144, 240))
    limited, _ = read_frames(SHARED / "clips" / "highway_0074.mp4", 0, 1, (144, 240))
    assert (full - limited).abs().mean() < 0.01


@needs_bad_inputs
def test_grayscale_has_three_equal_channels():
    frames, _ = read_frames(BAD / "grayscale.mp4", 0, 2, (64, 64))
    assert torch.equal(frames[:, 0], frames[:, 1]) and torch.equal(frames[:, 0], frames[:, 2])


def test_frames_are_read_by_index(tmp_path):
    levels = torch.linspace(0.1, 0.9, 20).view(20, 1, 1, 1).expand(20, 3, 32, 32)
    write_video(tmp_path / "ramp.mp4", levels, fps=25)
    frames, fps = read_frames(tmp_path / "ramp.mp4", 5, 9, (32, 32))
    assert fps == 25
    assert torch.allclose(frames.mean((1, 2, 3)), levels[5:9, 0, 0, 0], atol=0.02)


@pytest.mark.parametrize(
    "options", [{"g": "10"}, {"g": "10", "bf": "3", "x264-params": "open-gop=1"}]
)
def test_reading_starts_at_a_keyframe(tmp_path, monkeypatch, options):
    """The same frames as from the start of the file, decoding fewer where the index allows."""
    path, decoded = tmp_path / "long.mp4", []
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = 32, 64, "yuv420p"
        for t in range(60):
            picture = np.full((32, 64, 3), 4 * t, np.uint8)
            picture[:, t : t + 4] = 255 - 4 * t
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    plain = video.decode
    monkeypatch.setattr(video, "decode", lambda *a: (decoded.append(f.pts) or f for f in plain(*a)))
    whole, _ = read_frames(path, 0, 60, (32, 64))
    for start in (0, 9, 10, 35, 59):
        decoded.clear()
        part, _ = read_frames(path, start, start + 1, (32, 64))
        assert torch.equal(part, whole[start : start + 1])
        if len(options) == 1:
            assert len(decoded) <= 10
    with pytest.raises(VideoError, match="has 60 frames, 61 are needed"):
        read_frames(path, 55, 61, (32, 64))


@pytest.mark.parametrize("bf", ["0", "2"])
def test_frames_that_an_edit_list_hides_are_not_counted(tmp_path, bf):
    """Cut without encoding anew, as by a phone: a tenth of the frames is stored but never shown."""
    levels = torch.linspace(0.05, 0.95, 100).view(100, 1, 1, 1).expand(100, 3, 32, 32)
    write_video(tmp_path / "whole.mp4", levels, 25, {"g": "25", "bf": bf})
    with (
        av.open(str(tmp_path / "whole.mp4")) as whole,
        av.open(str(tmp_path / "cut.mp4"), "w") as cut,
    ):
        stream = whole.streams.video[0]
        copy, offset = cut.add_stream_from_template(stream), int(0.4 / stream.time_base)
        for packet in whole.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts = packet.pts - offset, packet.dts - offset
                packet.stream = copy
                cut.mux(packet)
    shown, _ = read_frames(tmp_path / "cut.mp4", 0, 90, (32, 32))
    assert torch.allclose(shown.mean((1, 2, 3)), levels[10:, 0, 0, 0], atol=0.02)
    for start in (3, 30, 80):
        part, _ = read_frames(tmp_path / "cut.mp4", start, start + 2, (32, 32))
        assert torch.equal(part, shown[start : start + 2])
    with pytest.raises(VideoError, match="has 90 frames, 91 are needed"):
        read_frames(tmp_path / "cut.mp4", 80, 91, (32, 32))


def manifest(tmp_path, text):
    path = tmp_path / "list.csv"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no column caption or filename"),
        ("filename\na.mp4\n", "no column caption"),
        ("filename,caption\n", "lists no videos"),
        ("filename,caption\na.mp4,\n", "line 2: empty caption"),
        ("filename,caption\na.mp4,x\nb/a.mp4,\n", "line 3: empty caption"),
        ("filename,caption\n,x\n", "line 2: empty filename"),
        ("filename,caption,id\na.mp4,x,one\nb.mp4,x,one\n", "'one' stands 2 times"),
        ("filename,caption\na.mp4,x\na.mp4,y\n", "'a.mp4' stands 2 times"),
        ("filename,caption,id\na.mp4,x,../up\n", "cannot name a file"),
        ("filename,caption,id\na.mp4,x,a/b\n", "cannot name a file"),
        ("filename,caption,id\na.mp4,x,..\n", "cannot name a file"),
        ("filename,caption,id\na.mp4,x,.\n", "cannot name a file"),
        ("filename,caption,id\na.mp4,x,report\n", "cannot name a file"),
        ("filename,caption,id\na.mp4,x,sweep.json\n", "cannot name a file"),
        (f"filename,caption,id\na.mp4,x,{'i' * 300}\n", "longer than 200 bytes"),
        ("filename,caption,id\na.mp4,x,a\x1b[2Jb\n", "has control characters"),
        ('filename,caption\na.mp4,"x\nb.mp4,y\nc.mp4,z\n', "line 2: .*a quote opened"),
        ('filename,caption\na.mp4,x\nb.mp4,"y\nc.mp4,"z"\n', "line 3: .*a quote opened"),
        ('filename,caption\na.mp4,"x\nb.mp4,y\nc.mp4,z"\nd.mp4,w\n', "line 2: .*a quote opened"),
        ('id,filename,caption\n1,a.mp4,"x\n2,b.mp4,y\n3,c.mp4,z"\n', "line 2: .*a quote opened"),
        ('caption,filename\n"x,a.mp4\ny,b.MOV\nz",c.mp4\n', "line 2: .*a quote opened"),
    ],
)
def test_a_bad_manifest_is_refused(tmp_path, text, complaint):
    path = manifest(tmp_path, text)
    with pytest.raises(UsageError, match=complaint) as error:
        list_videos(path)
    assert str(path) in str(error.value)


def test_a_caption_may_have_lines_and_quotes(tmp_path):
    text = 'filename,caption,id\na.mp4,"one ""two""\nthree, four",\nb.mp4,x,\n'
    videos, _ = list_videos(manifest(tmp_path, text))
    assert [v.caption for v in videos] == ['one "two"\nthree, four', "x"]
    with pytest.raises(UsageError, match="line 4: empty caption"):
        list_videos(manifest(tmp_path, text.replace("x", "")))


@pytest.mark.parametrize(
    "file", ["l" * 300 + ".mp4", "a\0b.mp4", "n/" * 3000 + "b.mp4", "report.mp4", "\u202etxt.mp4"]
)
def test_a_file_name_that_cannot_name_results_is_that_videos_trouble(file, tmp_path):
    """It gets an id that can; reading it says what is wrong."""
    videos, _ = list_videos(manifest(tmp_path, f"filename,caption\na.mp4,x\n{file},y\n"))
    assert videos[0].id == "a" and unusable(videos[1].id) is None
    with pytest.raises(VideoError, match=r"\.mp4"):
        read_frames(videos[1].path, 0, 1, (16, 16))


TOKENS = ["filename", "caption", "id", ",", "\n", '"', "a.mp4", "x", "\0", "\r", "é", " ", "=1"]
HEADS = [b"", b"filename,caption\n", b"filename,caption,id\n"]
texts = st.lists(st.sampled_from(TOKENS)).map(lambda tokens: "".join(tokens).encode())


@settings(max_examples=300)
@given(head=st.sampled_from(HEADS), rest=texts | st.binary(max_size=40))
def test_any_list_is_read_or_refused(head, rest, tmp_path):
    path = tmp_path / "list.csv"
    path.write_bytes(head + rest)
    try:
        videos, _ = list_videos(path)
    except UsageError as error:
        assert "\n" not in printable(str(error)) and str(path) in str(error)
    else:
        assert all(unusable(v.id) is None and v.caption for v in videos)
        assert len({v.id for v in videos}) == len(videos)


def test_ids_and_columns_of_a_manifest(tmp_path):
    text = (
        "filename,caption,source\nsub/a.mp4,first,s\nb.mp4,second,\na.mov,third,t\nsub/c.mp4,x,\n"
    )
    videos, digest = list_videos(manifest(tmp_path, text))
    assert [v.id for v in videos] == ["a.mp4", "b", "a.mov", "c"]
    assert [v.source for v in videos] == ["s", "b", "t", "c"]
    assert videos[0].path == tmp_path / "sub" / "a.mp4" and len(digest) == 64


def test_a_folder_or_a_file_needs_a_prompt(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.mp4", "a.mp4", "notes.txt", "deep/c.mp4"):
        (tmp_path / name).write_bytes(b"x")
    videos, _ = list_videos(tmp_path, prompt="a cat")
    assert [(v.id, v.caption) for v in videos] == [("a", "a cat"), ("b", "a cat")]
    assert [v.id for v in list_videos(tmp_path / "b.mp4", prompt="a cat")[0]] == ["b"]
    manifest(tmp_path, "filename,caption\na.mp4,x\n")
    with pytest.raises(UsageError, match="--prompt TEXT .*list.csv"):
        list_videos(tmp_path)
    with pytest.raises(UsageError, match="--prompt"):
        list_videos(tmp_path / "b.mp4", prompt="  ")
    with pytest.raises(UsageError, match="no such file"):
        list_videos(tmp_path / "absent")


def captioned_folder(tmp_path):
    """a has a text of two lines, b an empty one, c none."""
    for name in ("a.mp4", "b.mov", "c.avi"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "a.txt").write_text("\ufeff  A red caf\u00e9\r\n in the rain.\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text(" \n")
    return tmp_path


def test_the_text_beside_a_video_is_its_caption(tmp_path):
    videos, _ = list_videos(captioned_folder(tmp_path), prompt="a cat")
    assert [v.caption for v in videos] == ["A red caf\u00e9 in the rain.", "a cat", "a cat"]
    (only,), _ = list_videos(tmp_path / "a.mp4")
    assert only.caption == "A red caf\u00e9 in the rain."
    with pytest.raises(UsageError, match=r"b\.mov has no caption \(2 of 3 videos lack") as error:
        list_videos(tmp_path)
    assert "b.txt beside it" in str(error.value) and "--prompt TEXT" in str(error.value)
    assert [v.caption for v in list_videos(tmp_path, allow_empty=True)[0]][1:] == ["", ""]


def test_captions_beside_videos_are_part_of_the_list(tmp_path):
    digests = [list_videos(captioned_folder(tmp_path), "p")[1]]
    (tmp_path / "a.txt").write_text("A blue caf\u00e9 in the rain.", encoding="utf-8")
    digests.append(list_videos(tmp_path, "p")[1])
    (tmp_path / "a.txt").rename(tmp_path / "c.txt")
    digests.append(list_videos(tmp_path, "p")[1])
    (tmp_path / "c.txt").unlink()
    digests.append(list_videos(tmp_path, "p")[1])
    assert len(set(digests)) == 4
    assert digests[-1] == hashlib.sha256(b"a.mp4\nb.mov\nc.avi").hexdigest()  # as it always was


def test_a_text_that_cannot_be_read_is_one_line(tmp_path):
    (captioned_folder(tmp_path) / "c.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UsageError, match=r"c\.txt: no caption in UTF-8") as error:
        list_videos(tmp_path, "p")
    assert "\n" not in str(error.value)
    (tmp_path / "c.txt").unlink()
    (tmp_path / "c.txt").mkdir()
    with pytest.raises(UsageError, match=r"--forgetting .*c\.txt: no caption"):
        list_videos(tmp_path, flag="--forgetting")


def window(**change):
    default = {
        "anchor": 32,
        "cond_frames": 13,
        "tta_frames": 29,
        "context_latents": 4,
        "gen_frames": 14,
        "stop_every": 0,
        "gate": None,
    }
    return Window.of(SimpleNamespace(**default | change), geometry({}, 16))


def test_the_default_window():
    w = window()
    assert (w.first, w.stop, w.new_latents) == (3, 46, 4)


@pytest.mark.parametrize(("context_latents", "held_out"), [(1, 1), (3, 1), (6, 1)])
def test_a_quarter_of_the_targets_is_held_out(context_latents, held_out):
    assert window(context_latents=context_latents).held_out_latents == 0
    assert window(context_latents=context_latents, stop_every=5).held_out_latents == held_out
    assert window(anchor=64, tta_frames=61, stop_every=5).held_out_latents == 3  # of 12


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"stop_every": 1, "context_latents": 7}, "--stop-every holds out .* leave 1"),
        ({"cond_frames": 14}, r"--cond-frames: .* 4k \+ 1, got 14: .* try 13 or 17"),
        ({"tta_frames": 32}, r"--tta-frames: .* 4k \+ 1, got 32: .* try 29 or 33"),
        ({"cond_frames": 33}, "--cond-frames 33 reaches before the clip"),
        ({"tta_frames": 1}, "--context-latents needs --tta-frames 5 or more"),
        ({"context_latents": 8}, "--context-latents must be in 1..7"),
        ({"context_latents": 0}, "--context-latents must be in 1..7"),
    ],
)
def test_a_window_that_does_not_fit_is_refused(change, complaint):
    with pytest.raises(UsageError, match=complaint):
        window(**change)


def test_video_round_trip_keeps_pictures(tmp_path):
    frames = torch.from_numpy(np.random.default_rng(0).random((3, 3, 4, 4))).float()
    frames = torch.nn.functional.interpolate(frames, (64, 64), mode="bilinear")
    write_video(tmp_path / "x.mp4", frames, fps=8)
    read, _ = read_frames(tmp_path / "x.mp4", 0, 3, (64, 64))
    assert (read - frames).abs().mean() < 0.03
