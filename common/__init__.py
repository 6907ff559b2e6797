"""What method scripts share. A script needs these names and nothing else."""

from common import start  # noqa: F401 - before torch is loaded  # isort: skip
from common.adapt import adapt, generate, warm_up
from common.capacity import add_groups, chosen_blocks, number_of_groups
from common.cli import parse_args
from common.errors import UsageError
from common.exits import STOPPED, run_script
from common.loading import load_model
from common.loss import (
    Problem,
    add_noise,
    draw_noise,
    flow_matching_loss,
    stratified_sigmas,
    stream,
)
from common.masters import Masters
from common.run import Run
from common.values import at_least, blocks, not_negative, positive

__all__ = [
    "STOPPED",
    "Masters",
    "Problem",
    "Run",
    "UsageError",
    "adapt",
    "add_groups",
    "add_noise",
    "at_least",
    "blocks",
    "chosen_blocks",
    "draw_noise",
    "flow_matching_loss",
    "generate",
    "load_model",
    "not_negative",
    "number_of_groups",
    "parse_args",
    "positive",
    "run_script",
    "stratified_sigmas",
    "stream",
    "warm_up",
]
