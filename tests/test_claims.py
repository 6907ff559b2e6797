"""Several workers on one folder: claims, takeovers, signals, and a storm of all that can happen."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from cluster import wait_for
from oracles import SHARED
from test_run import QUICK, ROOT, results
from workers import processes, start_worker

import adasteer
import common
import runs
from runs import claims, scores
from runs.results import read_json


@pytest.fixture
def two(tmp_path):
    """Two workers: neither knows what the other holds."""
    return claims.Claims(tmp_path), claims.Claims(tmp_path)


def test_a_video_has_one_worker(two):
    first, second = two
    assert first.take("a") and not second.take("a") and second.take("b")
    assert first.take("a")  # it has it
    first.release("a")
    assert second.take("a") and not first.take("a")


def test_a_claim_says_who_has_it(two, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    two[0].take("a")
    owner = json.loads((tmp_path / "a.claim").read_text())
    assert owner["process"] == os.getpid() and owner["slurm_job"] == "17" and owner["host"]
    assert claims.is_live(tmp_path / "a.claim")
    monkeypatch.setattr(claims, "OURS", set())  # made by a process before us with our number
    assert not claims.is_live(tmp_path / "a.claim")


def foreign(path, **changes):
    """A claim of a process that lives: that which started the tests."""
    claims.create(path)
    alive = {"process": os.getppid(), "process_started": claims.started(os.getppid())}
    owner = json.loads(path.read_text()) | alive | changes
    path.write_text(json.dumps(owner))
    return path


def date(path, seconds):
    """As if it had been touched so long ago."""
    os.utime(path, (0, claims.now(path.parent) - seconds))
    return path


def test_stale_claims_are_taken_over(two, tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    live = {
        "alive": foreign(tmp_path / "alive.claim"),
        "far": foreign(tmp_path / "far.claim", host="another", process=ended.pid),
        "halted": date(foreign(tmp_path / "halted.claim"), 2 * claims.STALE),
        "empty": tmp_path / "empty.claim",  # its worker has only just created it
    }
    live["empty"].touch()
    stale = {
        "dead": foreign(tmp_path / "dead.claim", process=ended.pid),
        "old": date(foreign(tmp_path / "old.claim", host="another"), claims.STALE + 1),
        "ahead": date(foreign(tmp_path / "ahead.claim", host="another"), -claims.STALE - 1),
        "number": foreign(tmp_path / "number.claim", process_started="1"),  # of one before it
    }
    assert all(map(claims.is_live, live.values())) and not any(map(claims.is_live, stale.values()))
    assert [two[0].take(name) for name in live] == [False] * 4
    assert [two[0].take(name) for name in stale] == [True] * 4
    assert {p.stem for p in tmp_path.iterdir()} == {*live, *stale}


@pytest.mark.parametrize("skew", [130, -130, 1e6])
def test_the_clock_of_the_file_system_counts(skew, two, tmp_path, monkeypatch):
    """Not this machine's, which may be ahead."""
    far = foreign(tmp_path / "far.claim", host="another")
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + skew)
    assert claims.is_live(far) and not two[0].take("far")


@pytest.mark.parametrize(
    "content",
    ["", "[]", "null", "17", '"a"', "{}", '{"host": 1, "process": "x"}', '{"process": -1}',
     '{"process": 1e400}', '{"process": 99999999999999999999}', "\x00\xff", '{"process": true}'],
)  # fmt: skip
def test_a_tampered_claim_counts_by_its_age(content, two, tmp_path):
    path = tmp_path / "a.claim"
    path.write_text(content)
    assert claims.is_live(path) and not two[0].take("a")
    assert two[0].is_free("b") and not two[0].is_free("a")
    date(path, claims.STALE + 1)
    assert two[0].take("a") and two[0].holds("a")


def test_one_who_was_taken_over_notices(tmp_path, monkeypatch):
    """A worker of another machine that stood still for longer than claims last."""
    first, second = (claims.Claims(tmp_path) for _ in range(2))
    assert first.take("a") and first.holds("a")
    owner = json.loads((tmp_path / "a.claim").read_text())
    (tmp_path / "a.claim").write_text(json.dumps(owner | {"host": "another"}))
    date(tmp_path / "a.claim", claims.STALE + 1)
    monkeypatch.setattr(claims, "OURS", set())  # that of the second, in a process of its own
    assert second.take("a") and second.holds("a")
    monkeypatch.setattr(claims, "OURS", {owner["key"]})
    assert not first.holds("a")
    first.release("a")
    assert (tmp_path / "a.claim").is_file()


def test_a_claim_of_a_process_that_ended_unasked_is_stale(two, tmp_path):
    """Killed, and whoever started it has not asked how it ended: it still has a number."""
    ended = subprocess.Popen(["sleep", "600"])
    foreign(tmp_path / "a.claim", process=ended.pid, process_started=claims.started(ended.pid))
    assert claims.is_live(tmp_path / "a.claim")
    ended.kill()
    assert wait_for(lambda: not claims.is_live(tmp_path / "a.claim"), 30)
    assert two[0].take("a")
    ended.wait()


def test_a_full_disk_leaves_no_claim_that_says_nothing(two, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(json, "dump", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        with pytest.raises(OSError, match="full"):
            two[0].take("a")
    assert not list(tmp_path.iterdir()) and two[0].take("a")


def test_a_folder_in_place_of_a_claim_is_taken_away(two, tmp_path):
    (tmp_path / "a.claim").mkdir()
    assert not two[0].take("a")
    date(tmp_path / "a.claim", claims.STALE + 1)
    assert two[0].take("a") and len(list(tmp_path.iterdir())) == 1


def test_a_claim_made_meanwhile_is_put_back(tmp_path):
    path = foreign(tmp_path / "a.claim", key="new")
    assert not claims.remove(path, {"key": "stale"})
    assert json.loads(path.read_text())["key"] == "new" and len(list(tmp_path.iterdir())) == 1


def test_claims_are_kept_fresh(tmp_path, monkeypatch):
    """Those that this worker still has."""
    monkeypatch.setattr(claims, "REFRESH", 0.05)
    kept, lost = tmp_path / "a.claim", tmp_path / "b.claim"
    with claims.Claims(tmp_path) as worker:
        worker.take("a")
        worker.take("b")
        foreign(lost, key="another")  # it took this one over
        for _ in range(2):  # what had begun before that has ended after the first
            os.utime(lost, (0, 0))
            os.utime(kept, (0, 0))
            assert wait_for(lambda: kept.stat().st_mtime > time.time() - 60, 60)
        assert lost.stat().st_mtime == 0
    assert not kept.exists() and lost.exists()


def test_two_workers_share_a_folder(tmp_path, script):
    """Each video is done by one of them, and the one that ends first waits for the other."""
    out, flags = tmp_path / "both", ["--limit", 3]
    said = [tmp_path / "one_says", tmp_path / "other_says"]
    for worker in [start_worker(each, *QUICK, "--out", out, *flags) for each in said]:
        worker.join(300)
        assert worker.exitcode == 0, [each.read_text() for each in said]
    assert script(adasteer, *QUICK, "--out", tmp_path / "one", *flags) == 0
    assert results(tmp_path / "both") == results(tmp_path / "one")
    assert not list(tmp_path.rglob("*.claim")) and not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
def test_a_signal_drops_the_video_and_keeps_the_rest(number, tmp_path):
    worker = start_worker(tmp_path / "said", *QUICK, "--steps", 200, "--out", tmp_path)
    assert wait_for(lambda: list(tmp_path.rglob("*.claim")), 300)
    time.sleep(0.5)
    os.kill(worker.pid, number)
    worker.join(300)
    said = (tmp_path / "said").read_text()
    assert worker.exitcode == 75 and f"stopped by {number.name}" in said
    assert "Traceback" not in said
    assert not list(tmp_path.rglob("*.claim")) and not list(tmp_path.rglob("*.tmp"))


def test_what_a_killed_worker_was_writing_goes(tmp_path, script):
    (tmp_path / "videos").mkdir()
    for name in (".scene_0.json.0123abcd.tmp", ".scene_0.mp4.0123abcd.tmp", ".other.json.1.tmp"):
        (tmp_path / "videos" / name).touch()
    assert script(adasteer, *QUICK, "--limit", 1, "--out", tmp_path) == 0
    assert [p.name for p in tmp_path.rglob("*.tmp")] == [".other.json.1.tmp"]


def test_a_worker_that_was_taken_over_writes_nothing(tmp_path, script, monkeypatch, capsys):
    """It looks again before it writes, and says that it is not done."""
    scored = scores.Scores.of

    def taken_over_meanwhile(self, clip, *more):
        for path in tmp_path.rglob("*.claim"):
            foreign(path, key="another")
        return scored(self, clip, *more)

    monkeypatch.setattr(scores.Scores, "of", taken_over_meanwhile)
    assert script(adasteer, *QUICK, "--limit", 1, "--out", tmp_path) == 75
    assert "another worker took it over" in capsys.readouterr().out
    assert not list((tmp_path / "videos").glob("*.json"))
    assert len(list(tmp_path.rglob("*.claim"))) == 1


def test_waiting_for_others_is_said(two, tmp_path, monkeypatch):
    said, names = [], [SimpleNamespace(id=name) for name in ("a", "b")]
    assert two[1].take("b")
    monkeypatch.setattr(time, "sleep", lambda seconds: two[1].release("b"))
    turns = [(place, video.id) for place, video in two[0].in_turn(names, said.append)]
    assert turns == [(0, "a"), (1, "b")]
    assert said == ["waiting for other workers, which have 1 videos: b"]


def test_a_run_that_began_beside_this_one_is_not_mixed_in(tmp_path):
    args = runs.parse_args(None, adasteer.AdaSteer, [*map(str, QUICK), "--out", str(tmp_path)])
    run, model = runs.Run(args), common.load_model(args)
    config = tmp_path / "config.json"
    with run.working(model):
        video = next(run.pending())
        with run.recorded(video) as record:
            clip = run.load_clip(video)
            config.write_text(config.read_text().replace('"lr": 0.002', '"lr": 0.1'))
            with pytest.raises(common.UsageError, match="--lr is 0.1 there, 0.002 here"):
                record.later(clip, torch.zeros(1), None)


def test_a_run_with_other_flags_is_refused_while_one_has_begun(tmp_path, script, capsys):
    """Though nothing of it is done."""
    args = runs.parse_args(None, adasteer.AdaSteer, [*map(str, QUICK), "--out", str(tmp_path)])
    runs.Run(args)
    assert claims.Claims(tmp_path / "videos").take("scene_0")
    before = (tmp_path / "config.json").read_bytes()
    assert script(adasteer, *QUICK, "--lr", 0.1, "--out", tmp_path) == 2
    assert "--lr is 0.002 there, 0.1 here" in capsys.readouterr().err
    assert (tmp_path / "config.json").read_bytes() == before


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_share_out_the_range(count, script, tmp_path, capsys):
    flags = ["--videos", ROOT / "nano" / "demo" / "manifest.csv", "--dry-run", "--out", tmp_path]
    listed = []
    for index in range(count):
        assert script(adasteer, *flags, "--batch-start", 1, "--shard", f"{index}/{count}") == 0
        listed += [line for line in capsys.readouterr().out.splitlines() if "to do" in line]
    assert [line.split()[2] for line in listed] == ["scene_1:", "scene_2:", "scene_3:"]


def work(flags, host, skew):
    """A worker as on a machine called `host`, with a clock that is ahead."""
    claims.STALE, claims.REFRESH, claims.WAIT = 3.0, 0.2, 0.2
    clock, claims.machine = time.time, lambda: host
    time.time = lambda: clock() + skew
    torch.set_num_threads(1)
    sys.argv = ["adasteer.py", *flags]
    sys.stdout = sys.stderr = open(os.devnull, "w")
    runs.run_script(adasteer.main)


def claimed(process, folder):
    owners = [read_json(path) or {} for path in folder.rglob("*.claim")]
    return any(owner.get("process") == process.pid for owner in owners)


def strike(process, folder, moments, clip):
    """One way to lose a worker, at a random moment after its first claim."""
    wait_for(lambda: not process.is_alive() or claimed(process, folder), 60)
    time.sleep(moments.uniform(0, 1.5 * clip))
    if moments.random() < 0.2:
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(moments.uniform(0, 5))  # longer than claims last, at times
        os.kill(process.pid, signal.SIGCONT)
        time.sleep(moments.uniform(0, clip))
    os.kill(process.pid, moments.choice(BLOWS))


BLOWS = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "clips").is_dir(), reason=f"no real clips at {SHARED}")
def test_storm(tmp_path):
    """30 rounds over two workers, on one machine or on two with clocks that disagree: killed,
    stopped, halted at random moments; then a clean finish."""
    context = processes()
    listed = ["--videos", SHARED / "clips" / "metadata.csv"]

    def worker(out, host="one", skew=0):
        flags = [*map(str, [*QUICK, *listed, "--device", "cpu", "--out", tmp_path / out])]
        process = context.Process(target=work, args=(flags, host, skew))
        process.start()
        return process

    calm = worker("calm")
    calm.join()
    written = sorted(p.stat().st_mtime for p in (tmp_path / "calm" / "videos").glob("*.json"))
    clip = (written[-1] - written[0]) / len(written)  # seconds that this machine takes for one
    moments, written, unfinished = random.Random(0), {}, 0
    for number in range(30):
        hosts = ("one", "two") if number % 3 == 0 else ("one", "one")
        skew = moments.choice((0, 130, -130))
        workers = [worker("storm", hosts[0]), worker("storm", hosts[1], skew)]
        for process in workers:
            strike(process, tmp_path, moments, clip)
        for process in workers:
            process.join()
        found = {p: p.stat().st_mtime_ns for p in (tmp_path / "storm" / "videos").glob("*.json")}
        assert all(found[path] == then for path, then in written.items()), "done twice"
        written = found
        unfinished += bool(list((tmp_path / "storm").rglob("*.claim")))
    assert unfinished > 5 and 0 < len(written), (unfinished, len(written))
    workers = [worker("storm") for _ in range(2)]
    for process in workers:
        process.join()
    assert [process.exitcode for process in [calm, *workers]] == [0, 0, 0]
    assert results(tmp_path / "storm") == results(tmp_path / "calm")
    assert len(results(tmp_path / "storm")) == 51
    assert not list(tmp_path.rglob("*.claim")) and not list((tmp_path / "storm").rglob("*.tmp"))
