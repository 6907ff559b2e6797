"""Does the model predict what really followed? Its loss on the true future, before and after.

The frames after the anchor, encoded after the conditioning frames, are predicted from these and the
prompt as in training: velocities at fixed noise levels and draws, without guidance. Nothing is
sampled, so no luck of a sample is in the number, and a model that merely loses its spread does not
gain by it, as it does in PSNR. Adaptation never sees it. Of a shifted clip whose list names the
clean truth the loss is measured on that too, with the same draws, given the shifted context.
"""

import time

import torch

from common.errors import UsageError
from common.loss import Problem, add_noise, draw_noise, random_stream, velocity_target
from common.stages import stage
from common.values import at_least
from devices.placement import within_memory

SIGMAS = (0.1, 0.25, 0.5, 0.75, 0.9)
OF_CLEAN = ("future_loss_clean_before", "future_loss_clean_online", "future_loss_clean")
PARTS = ("future_loss_per_sigma", "future_loss_per_latent")  # of a record


def add_arguments(group):
    group.add_argument(
        "--future-draws", type=at_least(0, 1024), default=4, metavar="K", changes="generation",
        help="draws of noise for each of five sigmas, before and after adapting; 0: not measured",
    )  # fmt: skip
    group.add_argument(
        "--trace-future", type=at_least(0), default=0, metavar="N", changes=None,
        help="measure it after every Nth update too; nothing is chosen by it",
    )  # fmt: skip


def check(args):
    if args.trace_future and not args.future_draws:
        raise UsageError(f"--trace-future {args.trace_future}: not with --future-draws 0")


@torch.no_grad()
def future_loss(model, problem, noise, sigmas=SIGMAS, cached=True):
    """Mean squared error of the velocity of problem.target (1, C, T, h, w) given problem.context,
    at each of sigmas with each noise of (K, C, T, h, w): (sigmas, T) float64 on the CPU, means over
    draws, channels and places.

    cached reads the context once instead of at every level; the numbers are the same.
    """
    cache = model.context_cache(problem.context) if cached else None
    target, rows = velocity_target(problem.target, noise), []
    for value in sigmas:
        sigma = torch.full((len(noise),), value, device=noise.device)
        noisy = add_noise(problem.target, noise, sigma)
        velocity = model.velocity(noisy, sigma, problem.context, problem.text, cache)
        rows.append((velocity - target).double().square().mean((0, 1, 3, 4)).cpu())
    return torch.stack(rows)


class Future:
    """The loss on a clip's future with the clip's own draws, before and after adapting.

    history: [step, loss] of every time it was measured in between. costs: seconds and memory.
    """

    def __init__(self, model, clip, args):
        self.model, self.every, self.history, self.costs = model, args.trace_future, [], {}
        self.trace_seconds = 0.0  # which are not adaptation's
        self.noise, future = None, getattr(clip, "future", None)
        if future is not None and future.shape[2] and args.future_draws:
            self.problem = Problem(clip.cond_latents, future, clip.text)
            generator = random_stream(clip.seed, clip.video.id, "future noise")
            self.noise = draw_noise(generator, future, args.future_draws)
        self.clean = self.clean_before = self.clean_online = None
        self.before = self.online = self.measured()
        if self.noise is not None and getattr(clip, "clean_future", None) is not None:
            self.clean = Problem(clip.cond_latents, clip.clean_future, clip.text)
            self.clean_before = self.clean_online = self.measured(self.clean)

    def measured(self, problem=None):
        """(sigmas, T) of the clip's own future or another problem's, or None where there is no
        future or no draw."""
        if self.noise is None:
            return None
        with stage(self.costs, "future", self.model.device):
            return within_memory(
                self.model, lambda: future_loss(self.model, problem or self.problem, self.noise)
            )

    def begin(self, moved):
        """Called before the first update. moved: whether parameters are not as at the start."""
        if moved:
            self.online = self.measured()
            self.clean_online = self.clean and self.measured(self.clean)

    def trace(self, step):
        """Called after every update."""
        if self.every and step % self.every == 0 and self.noise is not None:
            started = time.perf_counter()
            self.history.append([step, finite(self.measured().mean())])
            self.trace_seconds += time.perf_counter() - started

    def record(self, updated):
        """Of the video's JSON; updated: whether anything is not as it was before the updates."""
        after = self.measured() if updated else self.online
        names = ("future_loss_before", "future_loss_online", "future_loss", *PARTS)
        if after is None:
            return dict.fromkeys(names)
        parts = ([finite(x) for x in after.mean(axis)] for axis in (1, 0))
        means = (finite(x.mean()) for x in (self.before, self.online, after))
        record = dict(zip(names, (*means, *parts), strict=True)) | self._of_clean(updated)
        return record | {"future_losses": self.history} | self.costs

    def _of_clean(self, updated):
        """The same of the clean future of a shifted clip, given the shifted context."""
        if self.clean is None:
            return {}
        after = self.measured(self.clean) if updated else self.clean_online
        means = (finite(x.mean()) for x in (self.clean_before, self.clean_online, after))
        return dict(zip(OF_CLEAN, means, strict=True))


def finite(value):
    return float(value) if value.isfinite() else None
