"""Which worker of several on one folder has a video: <id>.claim, created exclusively, kept fresh.

A claim names its owner (host, process, Slurm job, time). It is stale, and any worker takes it over,
when nobody refreshed it for STALE seconds or its process on this machine is gone.
"""

import atexit
import json
import os
import platform
import threading
import time
import uuid
from pathlib import Path

from common.exits import BEFORE_STOP
from common.results import read_json

REFRESH, STALE = 20.0, 120.0  # seconds
WAIT = 2.0  # seconds between looks at what others hold
OURS = set()  # keys of the claims that this process has made


class Claims:
    """The claims this process holds in a folder; given back at the latest when it ends."""

    def __init__(self, folder):
        self.folder, self.held = folder, set()
        threading.Thread(target=self._keep_fresh, daemon=True).start()
        atexit.register(self._release_all)
        BEFORE_STOP.append(self._release_all)

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

    def in_turn(self, videos, waiting):
        """Each video once, with its claim, which is the caller's to release; at the end those that
        other workers had, when they have given them back. waiting(line) is told of that."""
        while videos:
            left = []
            for video in videos:
                if self.take(video.id):
                    yield video
                else:
                    left.append(video)
            if left == videos:
                waiting(f"waiting for other workers: {', '.join(v.id for v in left)}"[:80])
                time.sleep(WAIT)
            videos = left

    def release(self, name):
        path = self.folder / f"{name}.claim"
        self.held.discard(path)
        if (read_json(path) or {}).get("key") in OURS:  # not of one who took over while we slept
            path.unlink(missing_ok=True)

    def _release_all(self):
        for path in list(self.held):
            self.release(path.stem)

    def _keep_fresh(self):
        while True:
            time.sleep(REFRESH)
            for path in list(self.held):
                try:
                    os.utime(path)
                except OSError:  # released just now, or a hiccup of the file system
                    continue


def create(path):
    owner = {
        "host": machine(),
        "process": os.getpid(),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "key": uuid.uuid4().hex,
    }
    try:
        with open(path, "x", encoding="utf-8") as file:
            json.dump(owner, file)
    except FileExistsError:
        return False
    OURS.add(owner["key"])
    return True


def stale_owner(path):
    """The owner of a claim that may be taken over, {} where it is gone or empty; None of a live
    one."""
    try:
        age = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return {}
    owner = read_json(path) or {}
    return owner if age > STALE or is_dead(owner) else None


def is_live(path):
    return path.exists() and stale_owner(path) is None


def is_dead(owner):
    """Whether a process of this machine made the claim and has ended."""
    if owner.get("host") != machine():
        return False
    try:
        os.kill(owner["process"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return owner["process"] == os.getpid() and owner["key"] not in OURS  # it had our number


def remove(path, owner):
    """Takes a stale claim away and says whether it did: of two workers that find one, only one
    does, and a claim made meanwhile is put back."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return True
    ours = (read_json(aside) or {}) == owner
    if not ours:
        try:
            os.link(aside, path)
        except FileExistsError:
            pass
    aside.unlink()
    return ours


def machine():
    """Host and, in a container, its own numbering of processes."""
    space = Path("/proc/self/ns/pid")
    return platform.node() + (f" {os.readlink(space)}" if space.exists() else "")
