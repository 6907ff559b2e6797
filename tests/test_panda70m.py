"""Panda-70M's official CSV and a folder of videos: lists in text, segments, what is missing."""

import csv
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import SHARED
from test_prepare import QUICK, manifest_rows, pan, prepared, write_avi

import adasteer
from common.errors import UsageError
from common.video import read_frames
from prepare import check, panda70m
from runs.lists import list_videos


@pytest.fixture
def panda(tmp_path):
    """Two videos of the CSV are there, the third is not."""
    folder = tmp_path / "videos"
    for n, name in enumerate(("-aBc_1", "x y")):
        write_avi(folder / f"{name}.avi", pan(50 + n, 110, speed=1.5))
    rows = [
        ("-aBc_1", "[['0:00:00.000', '0:00:01.000'], ['0:00:01.000', '0:00:04.400']]",
         """['A dog, "Rex", runs.', "It's a man in a caf\u00e9."]"""),
        ("x y", "[['0:00:00.500', '0:00:03.500']]", "['A red car on a street.']"),
        ("gone", "[['0:00:00.000', '0:00:03.000']]", "['Nobody sees this.']"),
    ]  # fmt: skip
    path = tmp_path / "panda70m_testing.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["videoID", "url", "timestamp", "caption", "matching_score"])
        writer.writerows((v, f"https://example.org/{v}", t, c, "[0.4]") for v, t, c in rows)
    return path, folder


def test_panda70m(panda, tmp_path, monkeypatch):
    path, folder = panda
    out = tmp_path / "out"
    flags = ["--videos", folder, "--out", out, "--count", 2, *QUICK, "--min-frames", 60]
    assert prepared(panda70m, monkeypatch, path, *flags) == 0
    first, second = sorted(manifest_rows(out), key=lambda row: row["source"])
    assert first["caption"] == "It's a man in a caf\u00e9." and first["category"] == "people"
    assert first["source"] == "-aBc_1" and first["filename"] == "clips/-aBc_1_001.mp4"
    assert (first["start_frame"], first["frames"]) == ("25", "85")
    assert second["caption"] == "A red car on a street." and second["category"] == "vehicles"
    frames, _ = read_frames(out / first["filename"], 0, 1, (32, 48))
    whole, _ = read_frames(folder / "-aBc_1.avi", 22, 29, (32, 48))
    assert (frames - whole).abs().mean((1, 2, 3)).argmin() == 3  # frame 25 of the source


def test_panda70m_at_another_rate(panda, tmp_path, monkeypatch):
    path, folder = panda
    flags = ["--videos", folder, "--out", tmp_path / "out", "--count", 2, "--fps", 10, *QUICK]
    assert prepared(panda70m, monkeypatch, path, *flags) == 0
    rows = {row["source"]: row for row in manifest_rows(tmp_path / "out")}
    assert rows["x y"]["frames"] == "30" and rows["x y"]["fps"] == "10.0"


@pytest.mark.parametrize(
    ("column", "text", "complaint"),
    [
        ("timestamp", "0:00-0:03", "line 2: timestamp is not a list: '0:00-0:03'"),
        ("caption", "['one', 'two', 'three']", "line 2: 2 timestamps, 3 captions"),
        ("videoID", None, "no column videoID"),
    ],
)
def test_a_csv_that_is_not_panda(panda, tmp_path, column, text, complaint):
    with open(panda[0], newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if text is None:
            del row[column]
        else:
            row[column] = text
    with open(tmp_path / "bad.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(UsageError, match=complaint):
        panda70m.candidates(tmp_path / "bad.csv", panda[1])


def test_a_video_may_have_several_rows(panda):
    with open(panda[0], "a", newline="") as file:
        file.write("x y,,\"[['0:00:03.500', '0:00:04.000']]\",['A bus.']\n")
    names = [(c.name, c.start) for c in panda70m.candidates(*panda) if c.source == "x y"]
    assert names == [("x y_000", 0.5), ("x y_001", 3.5)]


def test_download_fetches_what_is_missing(panda, tmp_path, monkeypatch):
    """With a yt-dlp that has every video but one."""
    path, folder = panda
    store, program = tmp_path / "store", tmp_path / "bin" / "yt-dlp"
    folder.rename(store)
    program.parent.mkdir()
    program.write_text(
        '#!/bin/sh\nwhile [ "$1" != -- ]; do [ "$1" = -o ] && out=$2; shift; done\n'
        f'echo "$2" >> "{tmp_path}/asked"\nname=${{2##*/}}\n'
        f'cp "{store}/$name.avi" "$(echo "$out" | sed "s/%(ext)s/avi/")"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    flags = ["--videos", folder, "--out", tmp_path / "out", "--count", 2, *QUICK, "--download"]
    assert prepared(panda70m, monkeypatch, path, *flags) == 0
    assert prepared(panda70m, monkeypatch, path, *flags) == 0
    asked = [line.rsplit("/")[-1] for line in (tmp_path / "asked").read_text().splitlines()]
    assert sorted(asked) == ["-aBc_1", "gone", "gone", "x y"]


HOSTILE = {
    "../escaped": "has a slash", "a/b": "has a slash", ".hidden": "begins with a dot",
    "": "is empty", "v" * 300: "is longer than 200 bytes", "a\nb": "has control characters",
    "%(title)s": "none of YouTube's", "$HOME": "none of YouTube's", "~x": "none of YouTube's",
}  # fmt: skip


def test_what_is_not_handed_to_yt_dlp(tmp_path, monkeypatch, capsys):
    """Ids that lead elsewhere or mean something in its template, and urls that are no http."""
    program, folder, asked = tmp_path / "bin" / "yt-dlp", tmp_path / "100%(id)s", tmp_path / "asked"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$PWD" "$@" >> "{asked}"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    rows = [(video, "https://example.org/bad") for video in HOSTILE]
    rows += [("disk", "file:///etc/passwd"), ("none", ""), ("good-1", "https://example.org/good")]
    with open(tmp_path / "list.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["videoID", "url", "timestamp", "caption"])
        writer.writerows((*row, "[['0:00', '0:03']]", "['A dog.']") for row in rows)
    flags = ["--videos", folder, "--out", tmp_path / "out", "--count", 50, *QUICK, "--download"]
    assert prepared(panda70m, monkeypatch, tmp_path / "list.csv", *flags) == 2
    said = capsys.readouterr()
    (call,) = asked.read_text().splitlines()
    assert call.startswith(str(folder)) and call.endswith(
        "-o ./good-1.%(ext)s -- https://example.org/good"
    )
    for reason in HOSTILE.values():
        assert reason in said.out
    assert "not fetched 2: its url is not of http" in said.out
    assert "holds none of the CSV's 12 videos" in said.err


def test_ids_that_lead_elsewhere_name_no_clip(panda):
    with open(panda[0], "a", newline="") as file:
        for video in HOSTILE:
            row = [video, "", "[['0:00', '0:03']]", "['A dog.']"]
            csv.writer(file).writerow(row)
    sources = {c.source for c in panda70m.candidates(*panda)}
    assert sources == {"-aBc_1", "x y"}


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (b"x y,,\"[['0:00', '0:01']],['never closed']", "line 5"),
        (b"x y,,\"[['0:00', '0:01']]\",\"['caf\xe9']\"", "UTF-8"),
        (b"x y,,\"[['nan', '0:01']]\",\"['A dog.']\"", "line 5: timestamps must be pairs"),
        (b"x y,,\"[['0:00', '1e999']]\",\"['A dog.']\"", "line 5: timestamps must be pairs"),
        (b"x y,,\"[['0:00', '0:01']]\",[b'bytes']", "line 5: captions must be text"),
        (b"x y,," + b"[" * 5000 + b",", "line 5: timestamp is not a list"),
        (b"x y", "line 5: timestamp is not a list: ''"),
    ],
)
def test_a_bad_row_is_one_line_that_names_it(row, complaint, panda, monkeypatch, capsys):
    with open(panda[0], "ab") as file:
        file.write(row + b"\n")
    flags = ["--videos", panda[1], "--out", panda[1] / "out", *QUICK]
    assert prepared(panda70m, monkeypatch, panda[0], *flags) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "SOURCE" in said[0] and complaint in said[0]


def test_a_caption_is_one_line_of_a_manifest(panda, tmp_path, monkeypatch):
    """Line breaks, control characters and half a character, as a list written as text can hold."""
    times, caption = "[['0:00', '0:03']]", repr(["A\ndog.mp4,\x1b[31m x\udc80\0  y"])
    with open(panda[0], "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["videoID", "url", "timestamp", "caption"])
        writer.writerow(["x y", "", times, caption])
    flags = ["--videos", panda[1], "--out", tmp_path / "out", "--count", 1, *QUICK]
    assert prepared(panda70m, monkeypatch, panda[0], *flags) == 0
    (video,), _ = list_videos(tmp_path / "out" / "manifest.csv")
    assert video.caption == "A dog.mp4, [31m x y"


odd_text = st.text() | st.sampled_from(["[]", "[['0:00','0:01']]", "['a']", "{[]}", "-" * 9000])
quick = settings(deadline=None, max_examples=60)


@quick
@given(odd_text | st.lists(st.lists(st.text() | st.floats() | st.none())).map(repr), odd_text)
def test_any_row_gives_clips_or_one_complaint(times, captions):
    row = {"timestamp": times, "caption": captions}
    try:
        for start, stop, caption in panda70m.clips_of(row, 7):
            assert 0 <= start < float("inf") and 0 <= stop < float("inf") and caption.strip()
    except UsageError as error:
        assert str(error).startswith("SOURCE, line 7: ")


@quick
@given(odd_text | st.recursive(st.none() | st.text(), st.lists).map(repr))
def test_any_text_is_a_list_or_a_complaint(text):
    try:
        assert isinstance(panda70m.as_list(text, "caption", 3), list)
    except UsageError as error:
        assert str(error).startswith("SOURCE, line 3: caption is not a list")


@quick
@given(st.binary() | st.text().map(lambda text: f"videoID,url,timestamp,caption\n{text}".encode()))
def test_any_file_gives_rows_or_one_complaint(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("list") / "list.csv"
    path.write_bytes(content)
    try:
        for line, row in panda70m.read_rows(path):
            assert line > 1 and all(isinstance(value, str) for value in row.values())
    except UsageError as error:
        assert str(error).startswith(f"SOURCE {path}")


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "clips").is_dir(), reason=f"no real clips at {SHARED}")
def test_the_real_clips_as_a_download(tmp_path, monkeypatch, script):
    """As Panda-70M: an official CSV and a folder of videos; then a run on two of them."""
    with open(SHARED / "clips" / "metadata.csv", newline="") as file:
        clips = list(csv.DictReader(file))
    with open(tmp_path / "panda70m_testing.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["videoID", "url", "timestamp", "caption"])
        for row in clips:
            name = row["filename"].removesuffix(".mp4")
            times = str([["0:00:00.000", "0:00:59.000"]])
            writer.writerow([name, "https://example.org", times, str([row["caption"]])])
    out = tmp_path / "data"
    flags = ["--videos", SHARED / "clips", "--out", out, "--count", 45, "--size", "240x144"]
    assert prepared(panda70m, monkeypatch, tmp_path / "panda70m_testing.csv", *flags) == 0
    rows = manifest_rows(out)
    motion = {row["filename"].removesuffix(".mp4"): float(row["motion"]) for row in clips}
    assert len(rows) == 45 and all(row["frames"] == "73" for row in rows)
    for row in rows:
        assert float(row["motion"]) == pytest.approx(motion[row["source"]], rel=0.1, abs=0.02)
    assert prepared(check, monkeypatch, out / "manifest.csv") == 0
    run = ["--videos", out / "manifest.csv", "--limit", 2, "--steps", 1, "--sampling-steps", 2]
    assert script(adasteer, *run, "--out", tmp_path / "run") == 0
    assert len(list((tmp_path / "run" / "videos").glob("*.json"))) == 2
