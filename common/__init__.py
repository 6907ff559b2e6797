"""What the author of a method reads and uses: the loop, the loss, the clip, copies of weights."""

from common.adapt import adapt, warm_up
from common.errors import UsageError
from common.generation import generate
from common.groups import add_groups, chosen_blocks, number_of_groups
from common.loading import load_model
from common.loss import (
    Problem,
    add_noise,
    draw_noise,
    flow_matching_loss,
    random_stream,
    stratified_sigmas,
)
from common.masters import Masters
from common.values import at_least, blocks, not_negative, positive

__all__ = [
    "Masters",
    "Problem",
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
    "positive",
    "random_stream",
    "stratified_sigmas",
    "warm_up",
]
