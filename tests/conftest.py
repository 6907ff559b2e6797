import os
import signal
import sys

import pytest
from oracles import LONGCAT, SHARED
from toy import make_checkpoint

from common.exits import SIGNALS


def pytest_configure(config):
    absent = [p for p in (LONGCAT, SHARED / "clips", SHARED / "bad_inputs") if not p.is_dir()]
    if os.environ.get("CI") and absent:
        pytest.exit(f"CI must not skip tests: there is no {absent[0]}", returncode=1)


@pytest.fixture(scope="session")
def toy_checkpoint(tmp_path_factory):
    """A random checkpoint in the official layout, sharded DiT and Wan VAE included."""
    return make_checkpoint(tmp_path_factory.mktemp("toy") / "LongCat-Video")


@pytest.fixture
def script(monkeypatch):
    """Calls a script's main in this process with a command line; gives its exit code."""

    def call(module, *flags):
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, flags)])
        with pytest.raises(SystemExit) as end:
            module.common.run_script(module.main)
        return end.value.code

    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)
