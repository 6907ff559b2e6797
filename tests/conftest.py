import os
import sys

import pytest
import torch
from oracles import LONGCAT
from toy import make_checkpoint

torch.set_num_threads(2)


def pytest_configure(config):
    if os.environ.get("CI") and not LONGCAT.is_dir():
        pytest.exit(f"CI must not skip the parity tests: nothing at {LONGCAT}", returncode=1)


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

    return call
