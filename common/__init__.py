"""What the author of a method reads and uses: the loop, the loss, the clip, copies of weights."""

from common.adaptation import adapt, constant, warm_up
from common.adapters import load_adapter
from common.drawing import refuse_other_draws
from common.errors import MisfitError, UsageError
from common.generation import generate
from common.groups import add_groups, check_groups, chosen_blocks, laid_over, number_of_groups
from common.loading import load_model
from common.loss import (
    Draw,
    Problem,
    add_noise,
    draw_noise,
    draws,
    fixed_draw,
    flow_matching_loss,
    random_stream,
    stratified_sigmas,
)
from common.masters import Masters
from common.start import start_stream
from common.values import at_least, blocks, given_flags, not_negative, positive
from devices.paths import all_paths, paths_of

__all__ = [
    "Draw",
    "Masters",
    "MisfitError",
    "Problem",
    "UsageError",
    "adapt",
    "add_groups",
    "add_noise",
    "all_paths",
    "at_least",
    "given_flags",
    "blocks",
    "check_groups",
    "chosen_blocks",
    "constant",
    "draw_noise",
    "draws",
    "fixed_draw",
    "flow_matching_loss",
    "generate",
    "laid_over",
    "load_adapter",
    "load_model",
    "not_negative",
    "number_of_groups",
    "paths_of",
    "positive",
    "random_stream",
    "refuse_other_draws",
    "start_stream",
    "stratified_sigmas",
    "warm_up",
]
