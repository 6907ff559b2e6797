"""What keeps a run alive: the command line, what is to do, records, results. Nothing of it needs to
be read to try an idea."""

from runs import start  # noqa: F401 - before torch is loaded  # isort: skip
from runs.cli import parse_args
from runs.exits import STOPPED, run_script
from runs.following import open_run as Run
from runs.latent_run import LatentRun

__all__ = ["STOPPED", "LatentRun", "Run", "parse_args", "run_script"]
