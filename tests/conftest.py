import os

# before torch: tests, and what they start, share the cores
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import functools
import signal
import sys

import pytest
from backbone_rows import BACKBONES
from hypothesis import HealthCheck, settings
from oracles import LONGCAT, SHARED
from toy import make_checkpoint, toy_clip

import backbones
from runs.background import cores
from runs.exits import SIGNALS

# the same examples on every machine, however slow it is
settings.register_profile(
    "fixed", derandomize=True, database=None, deadline=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
settings.load_profile("fixed")


def pytest_configure(config):
    absent = [p for p in (LONGCAT, SHARED / "clips", SHARED / "bad_inputs") if not p.is_dir()]
    if os.environ.get("CI") and absent:
        pytest.exit(f"CI must not skip tests: there is no {absent[0]}", returncode=1)


def pytest_xdist_auto_num_workers(config):
    """Slow ones start several processes each: two of them at a time are enough."""
    return min(2 if config.option.markexpr == "slow" else 4, cores())


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Of embedded prompts, for this process and those it starts; the user's stays as it is."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def toy_checkpoint(tmp_path_factory):
    """A random checkpoint in the official layout, sharded DiT and Wan VAE included."""
    return make_checkpoint(tmp_path_factory.mktemp("toy") / "LongCat-Video")


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory):
    """Name of a row of backbone_rows.py -> its checkpoint, made when it is first asked for."""

    @functools.cache
    def made(name):
        return BACKBONES[name].make(tmp_path_factory.mktemp("toy") / "checkpoint")

    return made


@pytest.fixture(scope="module")
def model(toy_checkpoint):
    return backbones.load(toy_checkpoint)


@pytest.fixture(scope="module")
def clip(toy_checkpoint):
    return toy_clip(backbones.load(toy_checkpoint))


@pytest.fixture
def script(monkeypatch):
    """Calls a script's main in this process with a command line; gives its exit code."""

    def call(module, *flags):
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, flags)])
        with pytest.raises(SystemExit) as end:
            module.runs.run_script(module.main)
        return end.value.code

    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)
