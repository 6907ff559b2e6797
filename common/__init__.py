"""What method scripts share. A script needs these names and nothing else."""

from common.adapt import adapt, generate
from common.cli import load_model, not_negative, parse_args, run_script
from common.errors import UsageError
from common.run import Run

__all__ = [
    "Run",
    "UsageError",
    "adapt",
    "generate",
    "load_model",
    "not_negative",
    "parse_args",
    "run_script",
]
