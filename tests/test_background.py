"""Reading ahead and writing behind: what goes wrong there is that video's, and nothing is lost."""

import gzip
import json
import signal
import threading
from types import SimpleNamespace

import pytest
import torch
from test_run import QUICK, demo_rows, results, write_manifest

import adasteer
from runs import background, clips, scores
from runs.background import Ahead, Behind
from runs.exits import Stopped

CPU = torch.device("cpu")
NAMES = [path.stem for path, _ in demo_rows()]


@pytest.fixture(autouse=True)
def spare_core(monkeypatch):
    monkeypatch.setattr(background, "cores", lambda: 1000)


def test_ahead_reads_once_and_gives_what_was_raised():
    calls = []

    def read(item):
        calls.append(item.id)
        if item.id == "broken":
            raise ValueError("broken")
        return item.id.upper()

    ahead = Ahead(read, CPU)
    items = {name: SimpleNamespace(id=name) for name in ("a", "b", "c", "broken")}
    ahead.begin(items["a"])
    assert ahead.take(items["a"]) == "A"
    ahead.begin(items["b"])  # a wrong guess
    assert ahead.take(items["c"]) == "C"
    ahead.begin(items["broken"])
    with pytest.raises(ValueError, match="broken"):
        ahead.take(items["broken"])
    assert calls.count("a") == calls.count("c") == calls.count("broken") == 1


def test_behind_waits_for_the_last_and_surfaces_errors():
    behind, gate, done = Behind(CPU), threading.Event(), []
    behind.begin(lambda: (gate.wait(5), done.append(1)))
    assert not done
    gate.set()
    behind.begin(lambda: done.append(2))
    behind.finish()
    assert done == [1, 2]
    behind.begin(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        behind.finish()
    behind.finish()  # once


def test_what_a_signal_interrupts_is_waited_for_again():
    """As at a stop: the last video is written all the same."""
    behind, gate, done = Behind(CPU), threading.Event(), []

    def interrupt(*_):
        raise Stopped("SIGALRM")

    before = signal.signal(signal.SIGALRM, interrupt)
    behind.begin(lambda: (gate.wait(10), done.append(1)))
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    with pytest.raises(Stopped):
        behind.finish()
    signal.signal(signal.SIGALRM, before)
    gate.set()
    behind.finish()
    assert done == [1]


def test_a_run_that_began_meanwhile_is_not_mixed_in(script, tmp_path, monkeypatch, capsys):
    """Its config.json replaced ours before our first video was written."""
    score, out = scores.evaluate, tmp_path / "out"

    def evaluate(*given):
        config = json.loads((out / "config.json").read_text())
        config["arguments"]["lr"] = 1.0
        (out / "config.json").write_text(json.dumps(config))
        return score(*given)

    monkeypatch.setattr(scores, "evaluate", evaluate)
    assert script(adasteer, *QUICK, "--out", out, "--limit", 1) == 2
    assert "holds another run (--lr is 1.0 there" in capsys.readouterr().err
    assert not results(out)


def test_a_video_that_cannot_be_scored_is_skipped(script, tmp_path, monkeypatch, capsys):
    score = scores.evaluate

    def evaluate(frames, *given):
        assert threading.current_thread() is not threading.main_thread()
        if not failed:
            failed.append(1)
            raise ValueError("no room")
        return score(frames, *given)

    failed, out = [], tmp_path / "out"
    monkeypatch.setattr(scores, "evaluate", evaluate)
    assert script(adasteer, *QUICK, "--out", out, "--limit", 2) == 3
    found = results(out)
    assert [found[name]["status"] for name in NAMES[:2]] == ["skipped", "done"]
    assert found[NAMES[0]]["reason"] == "not scored: ValueError: no room"
    assert not list(out.rglob("*.claim"))
    assert script(adasteer, *QUICK, "--out", out, "--limit", 2) == 0
    assert len([r for r in results(out).values() if r["status"] == "done"]) == 2


def test_a_clip_that_cannot_be_read_ahead_is_skipped(script, tmp_path):
    rows = demo_rows()[:3]
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video")
    manifest = write_manifest(tmp_path / "list.csv", [rows[0], (broken, "a cat"), rows[1]])
    out = tmp_path / "out"
    assert script(adasteer, *QUICK, "--out", out, "--videos", manifest) == 3
    found = results(out)
    assert [found[n]["status"] for n in (NAMES[0], "broken", NAMES[1])] == [
        "done", "skipped", "done",
    ]  # fmt: skip


def test_the_next_clip_is_read_while_this_one_is_adapted_to(script, tmp_path, monkeypatch):
    events, read, adapt = [], clips.read_footage, adasteer.common.adapt

    def reading(video, *given):
        events.append((f"read {video.id}", threading.current_thread() is threading.main_thread()))
        return read(video, *given)

    def adapting(model, method, clip, *given):
        events.append((f"adapt {clip.video.id}", True))
        return adapt(model, method, clip, *given)

    monkeypatch.setattr(clips, "read_footage", reading)
    monkeypatch.setattr(adasteer.common, "adapt", adapting)
    assert script(adasteer, *QUICK, "--out", tmp_path / "out", "--limit", 3) == 0
    names = [name for name, _ in events]
    assert [name for name, main in events if main] == [f"adapt {n}" for n in NAMES[:3]]
    assert names.index(f"read {NAMES[1]}") < names.index(f"adapt {NAMES[1]}")
    assert len([n for n in names if n.startswith("read")]) == 3


@pytest.mark.slow
def test_a_trace_of_the_first_video(script, tmp_path):
    out = tmp_path / "out"
    assert script(adasteer, *QUICK, "--out", out, "--limit", 2, "--profile") == 0
    with gzip.open(out / "trace.json.gz") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert "aten::scaled_dot_product_attention" in names
    record = json.loads((out / "videos" / f"{NAMES[0]}.json").read_text())
    for stage in ("encode", "adapt", "generate", "decode"):
        assert record[f"{stage}_peak_memory_gb"] > 0


def test_without_a_spare_core_all_is_done_at_once(monkeypatch):
    monkeypatch.setattr(background, "cores", lambda: 1)
    threads, behind = [], Behind(CPU)
    behind.begin(lambda: threads.append(threading.current_thread()))
    behind.begin(lambda: 1 / 0)
    assert threads == [threading.main_thread()]
    with pytest.raises(ZeroDivisionError):
        behind.finish()
    ahead = Ahead(lambda item: item.id, CPU)
    ahead.begin(SimpleNamespace(id="a"))
    assert ahead.take(SimpleNamespace(id="a")) == "a"


def test_runs_in_one_process_leave_no_thread(script, tmp_path):
    before = set(threading.enumerate())
    for name in ("first", "second"):
        assert script(adasteer, *QUICK, "--limit", 2, "--out", tmp_path / name) == 0
    assert set(threading.enumerate()) == before
