"""The restorer adapted to one video: AdaSteer's vector, learned on the video itself and a copy of
it that is damaged once more (zero-shot super-resolution)."""

import contextlib
import itertools
import math
from types import SimpleNamespace

import torch

import common
from adasteer import AdaSteer
from common.data import Video
from common.errors import VideoError
from common.loss import preflight
from litevsr.data import enlarged
from litevsr.degradation import Degradation
from runs import videos
from runs.cli import parser_of


@contextlib.contextmanager
def adapted(enlarge, frames, args):
    """Within it the vector acts that args.adapt steps have learned on the first window of the
    low-resolution frames. Prints its loss before and after."""
    restorer = enlarge.restorer
    # not parse_args, which asks for a model that continues clips
    flags = ["--steps", args.adapt, "--future-draws", 0, "--seed", args.seed]
    settings = parser_of(None, AdaSteer, videos).parse_args([*map(str, flags)])
    clip = pair(enlarge, frames, args)
    method = AdaSteer(restorer, clip, settings)
    with method.attached():
        record = common.adapt(restorer, method, clip, settings)
        print("loss on the video damaged again: {:.4f} -> {:.4f}".format(
            record["fixed_loss_before"], record["fixed_loss_after"]))  # fmt: skip
        yield


@torch.no_grad()
def pair(enlarge, frames, args):
    """The problem of restoring the video itself: its context is what came of damaging it again."""
    restorer, multiple = enlarge.restorer, enlarge.restorer.geometry.size_multiple
    sharp = torch.stack(list(itertools.islice(frames, enlarge.frames)))
    if len(sharp) < enlarge.frames:
        raise VideoError(f"{args.video}: has {len(sharp)} frames; --adapt needs {enlarge.frames}")
    multiple = math.lcm(multiple, enlarge.scale)  # it is made smaller by the scale
    size = [
        min(side, n) // multiple * multiple
        for n, side in zip(sharp.shape[2:], enlarge.size, strict=True)
    ]
    if 0 in size:
        raise VideoError(f"{args.video}: --adapt needs frames of {multiple}x{multiple} or more")
    sharp = sharp[:, :, : size[0], : size[1]]
    damaged = enlarged(Degradation.draw(args.seed, enlarge.scale)(sharp), size)
    target, context = (
        restorer.encode(x.transpose(0, 1)[None].to(restorer.device)) for x in (sharp, damaged)
    )
    clip = SimpleNamespace(
        context=context, target=target, text=enlarge.text, seed=args.seed,
        video=Video(args.video.stem, args.video, ""),
    )  # fmt: skip
    clip.preflight = preflight(restorer, clip)
    return clip
