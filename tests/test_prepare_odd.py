"""Preparing from what is hostile, odd or full: that video is rejected, or one line says why not."""

import os
import resource
import signal
import struct
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from test_prepare import QUICK, RULES, manifest_rows, pan, prepared, started, write_avi

from prepare import check, panda70m, ucf101
from prepare.make import Candidate, make_clip
from prepare.select import verdict_of
from runs.identity import ROOT

FLAGS = ["--count", 1, *QUICK]


def write_flat(path, size=(64, 48)):
    """30 pictures of H.264, with pixels half as wide as high."""
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, options={"threads": "1"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(1, 2)
        for value in range(30):
            picture = np.full((size[1], size[0], 3), 8 * value, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def write_narrow_pixels(path):
    write_flat(path)
    shape, content = b"pasp" + struct.pack(">II", 1, 2), path.read_bytes()
    assert shape in content
    path.write_bytes(content.replace(shape, b"pasp" + struct.pack(">II", 1, 1000)))


def write_huge_gif(path):
    """14000x14000 in less than a kilobyte."""
    screen = b"GIF89a" + struct.pack("<HH", 14000, 14000) + b"\x80\0\0" + bytes(6)
    picture = b"," + struct.pack("<HHHH", 0, 0, 14000, 14000) + b"\0\x02\x02\x4c\x01\0"
    path.write_bytes(screen + 20 * picture + b";")


ODD = {
    "aspect": (write_narrow_pixels, "times as wide as high"),
    "thin": (lambda path: write_flat(path, (4096, 16)), "at most 32 to 1"),
    "huge": (write_huge_gif, "frames of 14000x14000"),
    "list": (lambda path: path.write_text("ffconcat version 1.0\nfile other.mp4\n"), "damaged"),
}


@pytest.mark.parametrize("kind", ODD)
def test_an_extreme_video_is_rejected(kind, tmp_path):
    write, reason = ODD[kind]
    write_avi(tmp_path / "other.mp4", pan(1, 30))
    write(tmp_path / "odd.mp4")
    found = make_clip(Candidate("x", tmp_path / "odd.mp4", "", "", ""), RULES, tmp_path)
    assert reason in found["rejected"] and found["rejected"].startswith("damaged: ")
    assert str(tmp_path) not in found["rejected"] and not (tmp_path / "x.mp4").exists()


def test_a_path_that_names_nothing_is_rejected(tmp_path):
    for name in ("a" * 300 + ".mp4", "nul\0.mp4", "missing.mp4"):
        found = make_clip(Candidate("x", tmp_path / name, "", "", ""), RULES, tmp_path)
        assert found["rejected"].startswith("damaged: ")


def test_odd_names_and_videos_do_not_end_a_preparation(tmp_path, monkeypatch, capsys):
    source, out = tmp_path / "UCF-101", tmp_path / "out"
    folder = source / "YoYo"
    write_avi(folder / "v_YoYo_g01_c01.avi", pan(1, 24))
    write_avi(folder / f"v_{'Yo' * 110}_g01_c01.avi", pan(2, 24))
    write_avi(folder / "v_Yo\nYo_g01_c01.avi", pan(3, 24))
    write_huge_gif(folder / "v_YoYo_g02_c01.avi")
    (folder / "v_YoYo_g03_c01.avi").symlink_to("v_YoYo_g03_c01.avi")
    flags = ["--count", 2, *QUICK, "--out", out]
    assert prepared(ucf101, monkeypatch, source, *flags) == 1
    said = capsys.readouterr().out
    assert "rejected 1: its name is longer than 200 bytes" in said
    assert "rejected 1: its name has control characters" in said
    assert "rejected 2: damaged" in said
    assert len(list((out / "clips").iterdir())) == 1


@pytest.mark.parametrize(
    "template", ["{", "{foo}", "{action.x}", "{0}", "{action!r}", "a\nb {action}", "\udc80", ""]
)
def test_a_template_that_is_none(template, tmp_path, monkeypatch, capsys):
    write_avi(tmp_path / "UCF" / "YoYo" / "v_YoYo_g01_c01.avi", pan(1, 24))
    flags = ["--caption-template", template, "--out", tmp_path / "out", *FLAGS]
    assert prepared(ucf101, monkeypatch, tmp_path / "UCF", *flags) == 2
    assert "--caption-template: " in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--size", "999999998x999999998"), ("--size", "7x8"), ("--fps", "1e300"),
        ("--fps", "1e-9"), ("--count", "9" * 30), ("--max-frames", "3"), ("--out", ""),
    ],
)  # fmt: skip
def test_flags_that_no_machine_can_follow(flag, value, tmp_path, monkeypatch, capsys):
    write_avi(tmp_path / "UCF" / "YoYo" / "v_YoYo_g01_c01.avi", pan(1, 24))
    flags = ["--out", tmp_path / "out", *FLAGS, flag, value]
    assert prepared(ucf101, monkeypatch, tmp_path / "UCF", *flags) == 2
    assert flag in capsys.readouterr().err.splitlines()[-1]


def test_sources_are_not_overwritten(tmp_path, monkeypatch, capsys):
    """Videos in out/clips, whoever made that folder, also behind a link; and SOURCE itself."""
    out, listed = tmp_path / "out", tmp_path / "list.csv"
    (out / "verdicts").mkdir(parents=True)
    write_avi(out / "clips" / "x_000.avi", pan(1, 24))
    (tmp_path / "link").symlink_to(out / "clips")
    rows = "videoID,url,timestamp,caption\nx_000,,\"[['0:00','0:01']]\",\"['A dog.']\"\n"
    listed.write_text(rows)
    for videos in (out / "clips", tmp_path / "link"):
        flags = ["--videos", videos, "--out", out, *FLAGS]
        assert prepared(panda70m, monkeypatch, listed, *flags) == 2
        assert "source videos lie in its folder clips/" in capsys.readouterr().err
    assert [p.name for p in (out / "clips").iterdir()] == ["x_000.avi"]
    (out / "clips").rename(tmp_path / "videos")
    (out / "manifest.csv").write_text(rows)
    flags = ["--videos", tmp_path / "videos", "--out", out, *FLAGS]
    assert prepared(panda70m, monkeypatch, out / "manifest.csv", *flags) == 2
    assert "would be overwritten" in capsys.readouterr().err
    assert (out / "manifest.csv").read_text() == rows


def test_a_full_disk_is_one_line_and_no_verdict(tmp_path, monkeypatch):
    """With a limit on the size of files, which is met where a disk would be full."""
    write_avi(tmp_path / "UCF" / "YoYo" / "v_YoYo_g01_c01.avi", pan(1, 24))

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    flags = [tmp_path / "UCF", "--out", tmp_path / "out", "--count", 1]
    process = started(*flags, preexec_fn=small_files)
    said = process.communicate(timeout=120)
    assert process.returncode == 1 and "Traceback" not in said[1], said
    assert said[1].splitlines()[-1].startswith("ucf101.py: stopped: ")
    assert "File too large" in said[1] and "rejected" not in said[0]
    assert prepared(ucf101, monkeypatch, *flags, *QUICK) == 0
    assert len(manifest_rows(tmp_path / "out")) == 1


def test_an_out_that_cannot_be_is_one_line(tmp_path, monkeypatch, capsys):
    write_avi(tmp_path / "UCF" / "YoYo" / "v_YoYo_g01_c01.avi", pan(1, 24))
    (tmp_path / "file").touch()
    flags = ["--out", tmp_path / "file" / "out", *FLAGS]
    assert prepared(ucf101, monkeypatch, tmp_path / "UCF", *flags) == 1
    assert "stopped: " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("damage", ["[]", "{", "null", '{"candidate": 3}', "\udcff", None])
def test_a_damaged_verdict_is_made_again(damage, tmp_path):
    """Also one that is whole but for a column."""
    (tmp_path / "clips").mkdir()
    (tmp_path / "verdicts").mkdir()
    write_avi(tmp_path / "x.avi", pan(1, 24))
    job = Candidate("x", tmp_path / "x.avi", "", "", ""), replace(RULES, min_frames=20), tmp_path
    whole, path = verdict_of(*job), tmp_path / "verdicts" / "x.json"
    damaged = path.read_text().replace('"motion"', '"motions"') if damage is None else damage
    path.write_bytes(damaged.encode(errors="surrogateescape"))
    assert verdict_of(*job) == whole and "sha256" in whole


def checked(*flags, **environment):
    """What prepare.check says, as a program."""
    return subprocess.run(
        [sys.executable, "-m", "prepare.check", *map(str, flags)], cwd=ROOT, capture_output=True,
        env=os.environ | environment,
    )  # fmt: skip


def test_check_of_odd_names_and_captions_on_an_ascii_terminal(tmp_path):
    write_flat(tmp_path / "a$b$\\frac.mp4")
    write_huge_gif(tmp_path / "huge.gif")
    rows = ["filename,caption,category", "a$b$\\frac.mp4,caf\u00e9,\u72ac\x1b[31m"]
    rows += ["huge.gif,it moves,x", "b" * 300 + ".mp4,long,x", "nul\0.mp4,nul,x"]
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    done = checked(tmp_path / "list.csv", PYTHONIOENCODING="ascii")
    assert done.returncode == 1 and b"Traceback" not in done.stderr, done.stderr
    assert b"\x1b" not in done.stdout and b"\\u72ac\\x1b[31m" in done.stdout
    assert done.stdout.count(b"BROKEN") == 3 and b"14000x14000" in done.stdout
    assert (tmp_path / "contact_sheet.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"filename,caption\na.mp4,caf\xe9\n", "UTF-8"),
        (b'filename,caption\na.mp4,x\nb.mp4,"never closed\nc.mp4,y\n', "line 3"),
        (b"name,caption\na.mp4,x\n", "no column filename"),
        (b"", "no column"),
    ],
)
def test_check_of_a_list_that_is_none(content, complaint, tmp_path, monkeypatch, capsys):
    (tmp_path / "list.csv").write_bytes(content)
    assert prepared(check, monkeypatch, tmp_path / "list.csv") == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and complaint in said[0] and "MANIFEST" in said[0]


def test_check_of_a_sheet_that_is_no_picture(tmp_path, monkeypatch, capsys):
    write_flat(tmp_path / "a.mp4")
    (tmp_path / "list.csv").write_text("filename,caption\na.mp4,x\n")
    assert prepared(check, monkeypatch, tmp_path / "list.csv", "--sheet", "x.docx") == 2
    assert "--sheet: must be a .png file" in capsys.readouterr().err
    nowhere = tmp_path / "list.csv" / "x.png"
    assert prepared(check, monkeypatch, tmp_path / "list.csv", "--sheet", nowhere) == 1
    assert "stopped: " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("program", ["prepare.ucf101", "prepare.check", "report.fvd"])
def test_a_signal_while_torch_is_loaded_ends_with_75(program, tmp_path):
    """As soon as the program has handlers of its own, while torch takes longer than this test."""
    (tmp_path / "torch.py").write_text("import time\ntime.sleep(300)\n")
    flags = ["--weights", tmp_path / "x"] if program == "report.fvd" else []
    flags += ["--out", tmp_path / "out"] if program == "prepare.ucf101" else []
    process = subprocess.Popen(
        [sys.executable, "-m", program, tmp_path, *flags], cwd=ROOT, stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    caught = 0
    while not caught >> (signal.SIGUSR1 - 1) & 1:
        assert process.poll() is None
        status = Path(f"/proc/{process.pid}/status").read_text()
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 75 and b"stopped by SIGTERM before it began" in said
