"""The adaptation loop that every method runs in; common/method.py says what a method is."""

import functools
import re

import torch

from common.control import Control
from common.future import Future
from common.loss import (
    PREFLIGHT_DRAWS,
    PREFLIGHT_SIGMAS,
    anchored_loss,
    draw_noise,
    draws,
    preflight,
    random_stream,
)
from common.method import parts, with_schedule
from common.stages import stage
from common.start import Start
from common.stopping import Gate, early_stopping, finite_or_none
from common.values import at_least, positive
from devices import shards
from devices.paths import paths_of
from devices.placement import within_memory

MAX_GRAD_NORM = 1.0
FIXED = ("fixed_loss_before", "fixed_loss_online", "fixed_loss_after")  # of a record


def add_arguments(group):
    group.add_argument(
        "--steps", type=at_least(0, 1_000_000), changes="adaptation",
        help="updates per video; 0 is the baseline (default: 5, with --adapter 0)",
    )  # fmt: skip
    group.add_argument(
        "--lr", type=positive, default=2e-3, changes="adaptation",
        help="learning rate; where its default comes from is in docs/findings.md",
    )  # fmt: skip


def adapt(model, method, clip, args, show=lambda line: None, stopping=None):
    """Runs args.steps updates of the method's parameters on the clip's target latents, from where
    clip.start or --adapter puts them.

    Returns the record of the video's JSON: loss, penalty and sigmas of every step (before its
    update), loss on fixed draws and on the true future of the model as it is (`before`), where the
    updates begin (`online`) and after them, what early stopping saw, whether the adaptation
    diverged, what is kept, parameter count, norms and distances from the start, seconds.
    """
    other_loss, costs = loss_on_other(model, clip), {}
    fixed, future = Fixed(model, clip), Future(model, clip, args)
    start, control = getattr(clip, "start", None) or Start(), Control(method, clip, args)
    with stage(costs, "adapt", model.device):  # what --reset-on-degradation measures is its cost
        start.begin(model, method, clip, args)
        control.begin()
    for losses in (fixed, future):
        losses.begin(start.moved)
    parameters, steps = method.named_parameters(), Steps()

    def watch(step, loss):
        show(f"step {step}/{args.steps} loss {loss:.4f}")
        future.trace(step)

    with stage(costs, "adapt", model.device):
        stopping = stopping or early_stopping(model, clip, args, parameters.values())
        gate = Gate(model, clip, args)
        diverged = not learn(model, method, clip, args, stopping, steps, watch, start)
        kept_step = settle(stopping, gate, diverged, len(steps.losses))
    costs["adapt_seconds"] -= future.trace_seconds
    start.end(diverged or not kept_step)
    control.end()
    return {
        **vars(steps) | stopping.record(),
        "diverged": diverged,
        "kept": start.kept(kept_step > 0),
        "adapted_parameters": sum(p.numel() for p in parameters.values()),
        **(method.details() if hasattr(method, "details") else {}),
        **start.facts | gate.facts | control.said,
        **costs | distances(model, parameters, control.origin or stopping.start),
        "forgetting": forgetting(model, clip, other_loss),
        **fixed.record(kept_step > 0) | future.record(kept_step > 0),
    }


def learn(model, method, clip, args, *more):
    """All updates, as take_steps makes them; whether everything stayed finite."""
    finite = True
    if args.steps:
        drawn = method.draws() if hasattr(method, "draws") else draws(model, clip, args)
        finite = take_steps(model, method, drawn, *more)
    return finite and shards.all_finite(method.named_parameters().values())


def settle(stopping, gate, diverged, steps):
    """Puts back what is to be kept, and gives how many of the steps that is the state after."""
    if diverged or stopping.every:
        stopping.restore()
    if gate.refuses():
        stopping.restore(first=True)
        return 0
    return stopping.best_step if diverged or stopping.every else steps


def take_steps(model, method, drawn, stopping, steps, watch, start=None):
    """The loop. Adds every step to `steps`; returns whether all losses and gradients were finite.
    An update that would not be is not made, and is the last."""
    optimizer, schedule = with_schedule(within_memory(model, method.optimizer, graph=True))
    if start:
        start.resume(optimizer, schedule)
    for step, draw in enumerate(drawn, 1):
        loss, penalty = within_memory(
            model, functools.partial(backward, method, optimizer, draw), backward=True
        )
        loss, penalty = shards.agree(method.named_parameters().values(), loss, penalty)
        norms = [shards.clip(group, MAX_GRAD_NORM) for group in clipped_together(method)]
        finite = all(value.isfinite() for value in (loss, *norms))
        if finite:
            optimizer.step()
            schedule.step()
        optimizer.zero_grad(set_to_none=True)
        steps.add(loss, penalty, draw.sigma)
        watch(step, loss.item())
        ends = not finite or stopping.ends_after(step)
        if start and stopping.best_step == step:
            start.mark()
        if ends:
            return finite
    return True


def backward(method, optimizer, draw):
    """Takes the gradients of a draw; its loss and penalty."""
    optimizer.zero_grad(set_to_none=True)  # of an attempt that ran out of memory
    loss, penalty = map(shards.whole, parts(method.loss(draw)))
    if loss.isfinite():
        (loss if penalty is None else loss + penalty).backward()
    return loss.detach(), penalty if penalty is None else penalty.detach()


def clipped_together(method):
    """Lists of parameters whose joint gradient norm is limited: all at once, unless the method says
    more."""
    if hasattr(method, "clipped_together"):
        return method.clipped_together()
    return [list(method.named_parameters().values())]


class Steps:
    """What the record has of every step; None where a value is not finite."""

    def __init__(self):
        self.losses, self.penalties, self.sigmas = [], [], []

    def add(self, loss, penalty, sigma):
        self.losses.append(finite_or_none(loss.item()))
        if penalty is not None:
            self.penalties.append(finite_or_none(penalty.item()))
        self.sigmas.append(sigma.tolist())


def constant(optimizer):
    """The learning rate stays."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1.0)


def warm_up(optimizer, steps):
    """Step i (from 0) below `steps` uses lr * (i + 1) / steps."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(1.0, (i + 1) / max(1, steps)))


@torch.no_grad()
def distances(model, parameters, start):
    """Norm of the parameters, distance from the start (L2) and that relative to the start's norm
    (None where it is zero), per parameter; those of all blocks in one."""
    first = [path for blocks in model.stacks for path in paths_of(blocks[0])]
    stacks = "|".join(re.escape(path.rpartition(".")[0]) for path in first)
    sums = {}
    for (name, value), first in zip(parameters.items(), start, strict=True):
        kind = re.sub(rf"\b({stacks})\.\d+\.", r"\1.*.", name)
        found = torch.stack([shards.norm(x).square() for x in (value, value - first, first)])
        sums[kind] = sums.get(kind, 0) + found
    found = {kind: total.sqrt().tolist() for kind, total in sums.items()}
    return {
        "norms": {kind: norm for kind, (norm, _, _) in found.items()},
        "distances": {kind: moved for kind, (_, moved, _) in found.items()},
        "relative_distances": {
            kind: moved / first if first else None for kind, (_, moved, first) in found.items()
        },
    }


class Fixed:
    """The loss on the adaptation's own problem, at the sigmas and noise of the preflight."""

    def __init__(self, model, clip):
        self.model, self.clip, self.costs = model, clip, {}
        self.before = self.online = getattr(clip, "preflight", {}).get("loss")

    def measured(self):
        with stage(self.costs, "fixed", self.model.device):
            return within_memory(self.model, lambda: preflight(self.model, self.clip))["loss"]

    def begin(self, moved):
        """Called before the first update. moved: whether parameters are not as at the start."""
        if moved:
            self.online = self.measured()

    def record(self, updated):
        """Of the video's JSON; updated: whether anything is not as it was before the updates."""
        after = self.measured() if updated else self.online
        return dict(zip(FIXED, (self.before, self.online, after), strict=True)) | self.costs


def loss_on_other(model, clip):
    """Loss on the clip that forgetting is measured on, with fixed sigmas and draws."""
    other = getattr(clip, "other", None)
    if other is None:
        return None
    generator = random_stream(other.seed, other.video.id, "forgetting")
    noise = draw_noise(generator, other.target, PREFLIGHT_DRAWS)
    return anchored_loss(model, other, PREFLIGHT_SIGMAS, noise)


def forgetting(model, clip, before):
    if before is None:
        return None
    after = loss_on_other(model, clip)
    return {
        "id": clip.other.video.id,
        "loss_before": finite_or_none(before),
        "loss_after": finite_or_none(after),
    }
