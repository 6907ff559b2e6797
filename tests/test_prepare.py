"""Preparing data sets: synthetic downloads of the real layouts, real encodes, damage."""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import av
import numpy as np
import psutil
import pytest
import torch
from oracles import SHARED

from common.data import sha256
from common.video import read_frames, write_video
from prepare import check, make, ucf101, workers
from prepare.make import Candidate, Rules, make_clip
from prepare.select import judged
from runs.captions import caption_shares, poor_captions
from runs.exits import run_script
from runs.identity import ROOT
from runs.lists import list_videos
from runs.start import SIGNALS

RULES = Rules((32, 48), None, 46, 300, 0.05, 0.22)
QUICK = ["--size", "48x32", "--min-frames", "20"]


def texture(seed):
    coarse = torch.rand(1, 3, 12, 40, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (96, 320), mode="bicubic").clamp(0, 1)[0]


def pan(seed, count, speed=2):
    """count pictures (48, 64, 3) 8-bit of a camera over a texture."""
    picture = (texture(seed) * 255).byte().permute(1, 2, 0).numpy()
    return [picture[20:68, (x := int(t * speed)) : x + 64] for t in range(count)]


def write_avi(path, pictures, fps=25):
    """MPEG-4 in AVI, as UCF-101 is stored."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=fps, options={"q:v": "3"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def ucf(tmp_path_factory):
    """Three classes of three groups of two cuts; in one class most are of no use."""
    source = tmp_path_factory.mktemp("UCF-101")
    for c, action in enumerate(("ApplyEyeMakeup", "TaiChi", "YoYo")):
        for group in (1, 2, 3):
            for cut in (1, 2):
                name = f"v_{action}_g{group:02d}_c{cut:02d}.avi"
                write_avi(source / action / name, pan(100 * c + 10 * group + cut, 24))
    tai = source / "TaiChi"
    write_avi(tai / "v_TaiChi_g01_c01.avi", pan(1, 24, speed=0))
    write_avi(tai / "v_TaiChi_g01_c02.avi", pan(1, 12))
    write_avi(tai / "v_TaiChi_g02_c01.avi", pan(1, 12) + [p // 4 for p in pan(2, 12)])
    whole = (tai / "v_TaiChi_g02_c02.avi").read_bytes()
    (tai / "v_TaiChi_g02_c02.avi").write_bytes(whole[: len(whole) // 2])
    (tai / "notes.txt").write_text("not a video")
    (source / "README.md").write_text("about")
    return source


def prepared(module, monkeypatch, *flags, processes=False):
    """Runs a preparation in this process, its workers too unless they shall be processes, each of
    which imports torch first; gives its exit code."""
    if not processes:
        monkeypatch.setattr(workers, "ProcessPoolExecutor", lambda n, *_: ThreadPoolExecutor(n))
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, flags)])
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        run_script(module.main)
    except SystemExit as end:
        return end.code
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def manifest_rows(out):
    with open(out / "manifest.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_ucf101(ucf, tmp_path, monkeypatch, capsys):
    out = tmp_path / "ucf"
    flags = ["--out", out, "--count", 7, *QUICK]
    assert prepared(ucf101, monkeypatch, ucf, *flags, processes=True) == 0
    rows, said = manifest_rows(out), capsys.readouterr().out
    assert len(rows) == 7 and len({row["source"] for row in rows}) == 7
    counts = {name: sum(r["category"] == name for r in rows) for name in ("YoYo", "TaiChi")}
    assert counts == {"YoYo": 3, "TaiChi": 1}  # of TaiChi only one group is of use
    (tai,) = [row for row in rows if row["category"] == "TaiChi"]
    assert tai["source"] == "v_TaiChi_g03" and tai["caption"] == "A person is practising tai chi."
    for reason in ("static", "short", "cut"):
        assert f": {reason}" in said
    for row in rows:
        assert (row["width"], row["height"], row["frames"]) == ("48", "32", "24")
        assert float(row["motion"]) > 0.5 and float(row["fps"]) == 25 and len(row["sha256"]) == 64
    videos, _ = list_videos(out / "manifest.csv")
    assert {p.name for p in (out / "clips").iterdir()} == {v.path.name for v in videos}
    frames, _ = read_frames(videos[0].path, 0, 24, (32, 48))
    assert frames.shape == (24, 3, 32, 48)


def test_another_seed_is_another_choice_and_other_rules_are_refused(ucf, tmp_path, monkeypatch):
    chosen = []
    for seed in (42, 42, 7):
        out = tmp_path / f"{len(chosen)}"
        flags = ["--out", out, "--count", 3, "--seed", seed, *QUICK]
        assert prepared(ucf101, monkeypatch, ucf, *flags) == 0
        chosen.append(manifest_rows(out))
    assert chosen[0] == chosen[1] != chosen[2]
    flags = ["--out", tmp_path / "0", "--count", 3, "--size", "64x48", "--min-frames", 20]
    assert prepared(ucf101, monkeypatch, ucf, *flags) == 2


def test_too_few_clips_are_an_error(ucf, tmp_path, monkeypatch, capsys):
    flags = ["--out", tmp_path, "--count", 8, *QUICK]
    assert prepared(ucf101, monkeypatch, ucf, *flags) == 1
    assert "--count 8: only 7 clips pass" in capsys.readouterr().err
    assert not (tmp_path / "manifest.csv").exists()
    assert prepared(ucf101, monkeypatch, tmp_path / "nowhere", *flags) == 2
    assert "SOURCE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ApplyEyeMakeup", "apply eye makeup"), ("YoYo", "yo yo"), ("TaiChi", "tai chi"),
        ("HandstandPushups", "handstand pushups"), ("Archery", "archery"),
    ],
)  # fmt: skip
def test_class_names_in_words(name, words):
    assert ucf101.caption_of(name, "It is {action}!") == f"It is {words}!"


CLASSES = """
ApplyEyeMakeup ApplyLipstick Archery BabyCrawling BalanceBeam BandMarching BaseballPitch Basketball
BasketballDunk BenchPress Biking Billiards BlowDryHair BlowingCandles BodyWeightSquats Bowling
BoxingPunchingBag BoxingSpeedBag BreastStroke BrushingTeeth CleanAndJerk CliffDiving CricketBowling
CricketShot CuttingInKitchen Diving Drumming Fencing FieldHockeyPenalty FloorGymnastics FrisbeeCatch
FrontCrawl GolfSwing Haircut Hammering HammerThrow HandstandPushups HandstandWalking HeadMassage
HighJump HorseRace HorseRiding HulaHoop IceDancing JavelinThrow JugglingBalls JumpingJack JumpRope
Kayaking Knitting LongJump Lunges MilitaryParade Mixing MoppingFloor Nunchucks ParallelBars
PizzaTossing PlayingCello PlayingDaf PlayingDhol PlayingFlute PlayingGuitar PlayingPiano
PlayingSitar PlayingTabla PlayingViolin PoleVault PommelHorse PullUps Punch PushUps Rafting
RockClimbingIndoor RopeClimbing Rowing SalsaSpin ShavingBeard Shotput SkateBoarding Skiing Skijet
SkyDiving SoccerJuggling SoccerPenalty StillRings SumoWrestling Surfing Swing TableTennisShot TaiChi
TennisSwing ThrowDiscus TrampolineJumping Typing UnevenBars VolleyballSpiking WalkingWithDog
WallPushups WritingOnBoard YoYo
""".split()  # of UCF-101's classInd.txt


def test_every_class_of_ucf101_has_a_sentence_of_its_own():
    captions = [ucf101.caption_of(name) for name in CLASSES]
    assert len(CLASSES) == 101 == len(set(captions))
    for caption in captions:
        assert re.fullmatch(r"[A-Z][a-z ,'-]+ (is|are) [a-z ,'-]+\.", caption), caption
    assert ucf101.caption_of("HandStandPushups") == ucf101.caption_of("HandstandPushups")
    assert ucf101.caption_of("FlyKite") == "A video of fly kite."


def test_a_stopped_and_killed_preparation_ends_with_the_same_manifest(ucf, tmp_path, monkeypatch):
    """SIGTERM to all, then SIGKILL to the program alone: its workers end with it."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert prepared(ucf101, monkeypatch, ucf, "--out", whole, "--count", 7, *QUICK) == 0
    process = started(ucf, "--out", out, "--count", 7)
    until(process, lambda: count_verdicts(out) >= 2)
    os.killpg(process.pid, signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 75 and "Traceback" not in said
    assert said.splitlines()[-1].startswith("stopped by SIGTERM")
    before = count_verdicts(out)
    process = started(ucf, "--out", out, "--count", 7)
    until(process, lambda: count_verdicts(out) > before)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate(timeout=60)
    assert workers and not psutil.wait_procs(workers, timeout=60)[1]
    assert not (out / "manifest.csv").exists()
    assert prepared(ucf101, monkeypatch, ucf, "--out", out, "--count", 7, *QUICK) == 0
    for row in manifest_rows(out):
        assert row["sha256"] == sha256(out / row["filename"])
    assert manifest_rows(whole) == manifest_rows(out)


def started(*flags, **more):
    command = [sys.executable, "-m", "prepare.ucf101", *flags, *QUICK]
    return subprocess.Popen(
        [*map(str, command)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, **more,
    )  # fmt: skip


def count_verdicts(out):
    return len(list(out.glob("verdicts/v_*.json")))


def until(process, condition):
    while not condition():
        assert process.poll() is None
        time.sleep(0.02)


@pytest.mark.skipif(not (SHARED / "clips").is_dir(), reason="no real clips")
def test_the_same_video_gives_the_same_bytes(tmp_path):
    """x264 as it comes gives other pictures for this clip nearly every time."""
    clip = Candidate("x", SHARED / "clips" / "aquarium_0000.mp4", "", "", "", 0.0, 1.2)
    rules = replace(RULES, size=(480, 832), min_frames=20)
    found = [make_clip(clip, rules, tmp_path)["sha256"] for _ in range(3)]
    assert len(set(found)) == 1


def test_one_source_in_two_categories_is_chosen_once():
    made = [
        Candidate(f"{source}_{kind}", None, "", kind, source)
        for source in ("x", "y") for kind in ("people", "vehicles")
    ]  # fmt: skip
    args = SimpleNamespace(seed=0, out=None, per_source=1)
    pool = SimpleNamespace(submit=lambda _, candidate, *rest: Done(candidate))
    for seed in range(20):
        args.seed = seed
        chosen = [v["source"] for v in judged(made, None, args, pool)]
        assert sorted(chosen) == ["x", "y"]


class Done:
    """A verdict that is there already."""

    def __init__(self, candidate):
        self.candidate = candidate

    def result(self):
        return {"source": self.candidate.source}


def test_files_that_it_did_not_make_stay(ucf, tmp_path, monkeypatch, capsys):
    mine = tmp_path / "clips" / "mine.mp4"
    mine.parent.mkdir()
    mine.touch()
    assert prepared(ucf101, monkeypatch, ucf, "--out", tmp_path, *QUICK) == 2
    assert "has a folder clips/ that this did not make" in capsys.readouterr().err
    assert mine.exists()


@pytest.mark.parametrize("rate", [None, 10.0])
def test_a_late_segment_is_read_from_the_keyframe_before(rate, tmp_path, monkeypatch):
    path, decoded = tmp_path / "long.mp4", []
    pictures = (torch.from_numpy(p).permute(2, 0, 1) / 255 for p in pan(60, 170, speed=1.5))
    write_video(path, pictures, 25, {"g": "12", "bf": "2"})
    decode = make.decode

    def counted(*args):
        for frame in decode(*args):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(make, "decode", counted)

    def read():
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            rules = replace(RULES, fps=rate)
            late = Candidate("x", path, "", "", "", 4.5, 5.5)
            found = list(make.stretch(container, stream, late, rules))
            return [(index, frame.pts, frame.to_ndarray().tobytes()) for index, frame in found]

    late = read()
    assert len(decoded) < 80
    monkeypatch.setattr(make, "MARGIN", 9.0)  # from the start of the file
    assert late == read() and len(late) == (10 if rate else 25)


def test_a_download_that_broke_off_is_rejected(tmp_path):
    """Its index stands at the front, its pictures are not there."""
    path = tmp_path / "broken.mp4"
    pictures = (torch.from_numpy(p).permute(2, 0, 1) / 255 for p in pan(61, 60))
    write_video(tmp_path / "whole.mp4", pictures, 25)
    with (
        av.open(str(tmp_path / "whole.mp4")) as whole,
        av.open(str(path), "w", options={"movflags": "faststart"}) as copy,
    ):
        stream = copy.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                copy.mux(packet)
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"mdat") + 4])
    for start in (0.0, 1.5):
        found = make_clip(Candidate("x", path, "", "", "", start, 2.0), RULES, tmp_path)
        assert found["rejected"].startswith("damaged")


@pytest.mark.skipif(not (SHARED / "bad_inputs").is_dir(), reason="odd files not found")
@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("two_hard_cuts", "cut"), ("glitch_and_freeze", "cut"), ("frozen_73f", "static"),
        ("black_73f", "static"), ("truncated_data_lost", "damaged"), ("corrupted", "damaged"),
        ("empty", "empty file"), ("not_a_video", "damaged"),
        ("audio_only", "no video stream"), ("three_frames", "short"),
            ("png_named", "damaged: 0 frames decode"),
        ("ten_bit", None), ("variable_frame_rate", None), ("rotated_90_73f", None),
        ("with audio and spaces", None), ("portrait_184x240", None),
    ],
)  # fmt: skip
def test_odd_files(name, verdict, tmp_path):
    path = SHARED / "bad_inputs" / f"{name}.mp4"
    found = make_clip(Candidate("x", path, "", "", ""), RULES, tmp_path)
    if verdict:
        assert verdict in found["rejected"] and not list(tmp_path.iterdir())
    else:
        assert found["frames"] == 73 and (tmp_path / "x.mp4").is_file()


def test_check_says_what_a_list_is(ucf, tmp_path, monkeypatch, capsys):
    out = tmp_path / "ucf"
    assert prepared(ucf101, monkeypatch, ucf, "--out", out, "--count", 4, *QUICK) == 0
    assert prepared(check, monkeypatch, out / "manifest.csv") == 0
    said = capsys.readouterr().out
    assert "4 videos, 4 sources" in said and "frames 24 to 24" in said and "rates 25 (4)" in said
    assert (out / "contact_sheet.png").stat().st_size > 5000
    name = manifest_rows(out)[0]["filename"]
    shutil.copy(out / name, out / "clips" / "again.mp4")
    (out / "clips" / "broken.mp4").write_bytes(b"x" * 100)
    with open(out / "manifest.csv", "a") as file:
        file.write("clips/again.mp4,once more,,,,,,,,,\nclips/broken.mp4,never,,,,,,,,,\n")
    assert prepared(check, monkeypatch, out / "manifest.csv") == 1
    said = capsys.readouterr().out
    assert "TWICE" in said and "BROKEN broken" in said
    (tmp_path / "empty.csv").write_text("filename,caption\na.mp4,\nb.mp4,a dog runs\n")
    assert prepared(check, monkeypatch, tmp_path / "empty.csv") == 1
    assert "50.0 % empty (limit 5 %)" in capsys.readouterr().out


def test_poor_captions():
    good = [f"clip number {n} shows a dog" for n in range(30)]
    assert poor_captions(good) is None and poor_captions(["videos"] * 5) is None
    assert "the same (at most 50 %)" in poor_captions(["videos"] * 30)
    assert "generic" in poor_captions([*good[:20], *["video"] * 10])
    assert "empty" in poor_captions([*good, "", "", ""])
    shares = caption_shares(["A dog.", "a dog", "", "['a', 'b']"])
    assert shares == {"empty": 0.25, "repeated": 0.25, "the same": 0.5, "generic": 0.25}
