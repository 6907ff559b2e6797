"""The errors of a clip's frames, those that are learned from and those ahead of them, and how far
the adapted weights went."""

import math
import re
from dataclasses import dataclass

import torch

from common.errors import VideoError
from common.metrics import mean
from predictors import modes, rollout
from predictors.clips import LatentClip


@dataclass(frozen=True)
class Parts:
    """A clip, and the first frames of it, which adaptation sees."""

    item: object
    whole: LatentClip
    seen: LatentClip

    @property
    def ahead(self):
        """How many frames adaptation does not see."""
        return len(self.whole.features) - len(self.seen.features)


def in_parts(item, clip, args):
    """Raises VideoError where the clip is too short."""
    frames, shortest = len(clip.features), args.context_frames + 1
    seen = {"all": frames, "half": max(shortest, frames // 2)}.get(
        args.adapt_frames, args.adapt_frames
    )
    ahead = int(args.adapt_frames != "all")  # at least
    if frames < seen + ahead or seen < shortest:
        raise VideoError(
            f"has {frames} frames; --adapt-frames {args.adapt_frames} and --context-frames "
            f"{args.context_frames} need {max(seen, shortest) + ahead} or more"
        )
    return Parts(item, clip, rollout.until(clip, seen - 1))


@torch.no_grad()
def seen_errors(predictor, parts, args):
    """Of the frames that adaptation may learn from, after the context: a list of floats."""
    made = modes.predict(predictor, parts.seen, args.score, args.context_frames)
    return rollout.errors(*made)[args.loss].tolist()


@torch.no_grad()
def errors_ahead(predictor, parts, args):
    """Of the frames that adaptation has not seen: a rollout whose context are all that it has, or
    each straight from frame 0."""
    if not parts.ahead:
        return []
    seen = len(parts.seen.features)
    made = modes.predict(predictor, parts.whole, args.score, seen, parts.ahead)
    return rollout.errors(*made)[args.loss].tolist()


def named(**errors):
    """{name: mean, name_per_frame: list} of each, None where there are none. What is not finite is
    None too, and so is the mean of it."""
    record = {}
    for name, values in errors.items():
        values = [value if math.isfinite(value) else None for value in values]
        record[name] = None if None in values else mean(values)
        record[f"{name}_per_frame"] = values or None
    return record


@torch.no_grad()
def distances(parameters, start):
    """Norms of the parameters, distances from the start (L2) and these relative to the start's norm
    (None where it is zero), those of all blocks in one."""
    sums = {}
    for name, value in parameters.items():
        kind = re.sub(r"\.\d+\.", ".*.", name)
        found = [x.double().square().sum().cpu() for x in (value, value - start[name], start[name])]
        sums[kind] = sums.get(kind, 0) + torch.stack(found)
    found = {kind: total.sqrt().tolist() for kind, total in sums.items()}
    return {
        "norms": {kind: norm for kind, (norm, _, _) in found.items()},
        "distances": {kind: moved for kind, (_, moved, _) in found.items()},
        "relative_distances": {
            kind: moved / first if first else None for kind, (_, moved, first) in found.items()
        },
    }
