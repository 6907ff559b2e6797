"""Which worker of several on one folder has a video: <id>.claim, created exclusively, kept fresh.

A claim names its owner (host, process, Slurm job, time). It is stale, and any worker takes it over,
when its process on this machine is gone, or, of another machine, when nobody refreshed it for STALE
seconds by the file system's own clock.
"""

import json
import os
import platform
import tempfile
import threading
import time
import uuid
from pathlib import Path

from runs.results import discard, read_json

REFRESH, STALE = 20.0, 120.0  # seconds
WAIT = 2.0  # seconds between looks at what others hold
OURS = set()  # keys of the claims that this process has made


class Claims:
    """The claims this process holds in a folder: a context that keeps them fresh, and gives back at
    its end what is still held."""

    def __init__(self, folder):
        self.folder, self.held, self.over = folder, set(), threading.Event()

    def __enter__(self):
        self.thread = threading.Thread(target=self._keep_fresh, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        for path in list(self.held):
            self.release(path.stem)
        self.thread.join()

    def take(self, name):
        """Whether this worker has `name` now; not while another, live one has it."""
        path = self.folder / f"{name}.claim"
        if path not in self.held:
            if not create(path):
                owner = stale_owner(path)
                if owner is None or not (remove(path, owner) and create(path)):
                    return False
            self.held.add(path)
        return True

    def is_free(self, name):
        """Whether no other worker has `name`."""
        path = self.folder / f"{name}.claim"
        return path in self.held or not is_live(path)

    def holds(self, name):
        """Whether this worker still has it: after a long halt another may."""
        path = self.folder / f"{name}.claim"
        return path in self.held and is_ours(path)

    def in_turn(self, videos, say):
        """(place, video) of each once, with its claim, which is the caller's to release; at the end
        those that other workers had, when they have given them back. say(line) tells of that."""
        videos, said = list(enumerate(videos)), False
        while videos:
            left = []
            for place, video in videos:
                if self.take(video.id):
                    yield place, video
                else:
                    left.append((place, video))
            if len(left) == len(videos):
                if not said:
                    names = ", ".join(video.id for _, video in left[:5])
                    say(f"waiting for other workers, which have {len(left)} videos: {names}")
                said = True
                time.sleep(WAIT)
            videos = left

    def release(self, name):
        path = self.folder / f"{name}.claim"
        if self.holds(name):
            path.unlink(missing_ok=True)
        self.held.discard(path)

    def _keep_fresh(self):
        while not self.over.wait(REFRESH):
            for path in list(self.held):
                try:
                    if is_ours(path):  # and not taken over by another since
                        os.utime(path)
                except OSError:  # released just now, or a hiccup of the file system
                    continue


def create(path):
    owner = {
        "host": machine(),
        "process": os.getpid(),
        "process_started": started(os.getpid()),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "key": uuid.uuid4().hex,
    }
    try:
        file = open(path, "x", encoding="utf-8")
    except FileExistsError:
        return False
    try:
        with file:
            json.dump(owner, file)
    except OSError:  # a full disk
        path.unlink(missing_ok=True)
        raise
    OURS.add(owner["key"])
    return True


def is_ours(path):
    return read_owner(path).get("key") in OURS


def read_owner(path):
    """What a claim says, {} where it is gone, not written yet or damaged."""
    owner = read_json(path)
    whole = isinstance(owner, dict) and type(owner.get("process")) is int
    return owner if whole and 0 < owner["process"] < 1 << 31 else {}


def stale_owner(path):
    """The owner of a claim that may be taken over, {} where it is gone or says nothing; None of a
    live one."""
    try:
        touched = path.stat().st_mtime
    except FileNotFoundError:
        return {}
    owner = read_owner(path)
    if owner.get("host") == machine():
        return None if is_running(owner) else owner
    return owner if abs(now(path.parent) - touched) > STALE else None


def now(folder):
    """By the clock that the folder's files are dated with, which may be another machine's."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime


def is_live(path):
    return path.exists() and stale_owner(path) is None


def is_running(owner):
    """Whether the process of this machine that made the claim has not ended."""
    process = owner["process"]
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    if process == os.getpid() and owner.get("key") not in OURS:
        return False  # it had our number
    return owner.get("process_started") in (None, started(process))


def started(process):
    """When a process began, in clock ticks since the machine did: tells it from a later one of the
    same number. None where it has ended, though nobody has asked how, or the system does not
    say."""
    try:
        state, *facts = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return None if state in ("Z", "X") else facts[18]
    except (OSError, ValueError, IndexError):
        return None


def remove(path, owner):
    """Takes a stale claim away and says whether it did: of two workers that find one, only one
    does, and a claim made meanwhile is put back."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return True
    ours = read_owner(aside) == owner
    if not ours:
        try:
            os.link(aside, path)
        except FileExistsError:
            pass
    discard(aside)
    return ours


def machine():
    """Host and, in a container, its own numbering of processes."""
    space = Path("/proc/self/ns/pid")
    return platform.node() + (f" {os.readlink(space)}" if space.exists() else "")
