"""The adaptation loop that every method runs in.

A method is a class as in the scripts. It has `add_arguments(group)`, `named_parameters()` (a dict),
`optimizer(args)` and `attached()`, a context in which adaptation and generation run. It may have
`check(args)` (static; of the command line), `schedule(optimizer)` (of the learning rate),
`penalty()` (added to the loss), `clipped_together()` (lists of parameters whose joint gradient norm
is limited; else all), `losses(model, clip, args)` (in place of random_losses), `solve(model, clip,
args)` (in place of all steps), `details` (added to the record) and `save(folder)`.
"""

import itertools
import math
import re

import torch

from common.future import Future
from common.loss import (
    PREFLIGHT_DRAWS,
    PREFLIGHT_SIGMAS,
    anchored_loss,
    draw_noise,
    random_losses,
    random_stream,
)
from common.stages import stage
from common.stopping import early_stopping
from devices.placement import within_memory

MAX_GRAD_NORM = 1.0


def adapt(model, method, clip, args, show=lambda line: None, stopping=None):
    """Runs args.steps updates of the method's parameters on the clip's target latents.

    Returns the record of the video's JSON: loss and sigmas of every step (before its update), loss
    on the true future, checks of the early stopping, whether the adaptation diverged (then the best
    state is put back, or the first), what is kept, parameter count, norms and distances from the
    start, seconds.
    """
    other_loss, costs, future = loss_on_other(model, clip), {}, Future(model, clip, args)
    parameters = method.named_parameters()
    losses, sigmas, diverged = [], [], False
    with stage(costs, "adapt", model.device):
        stopping = stopping or early_stopping(model, clip, args, parameters.values())
        for loss, drawn, finite in take_steps(model, method, clip, args):
            losses.append(finite_or_none(loss))
            sigmas.append(drawn)
            show(f"step {len(losses)}/{args.steps} loss {loss:.4f}")
            future.trace(len(losses))
            diverged = not finite
            if diverged or stopping.ends_after(len(losses), last=hasattr(method, "solve")):
                break
        diverged = diverged or not all(p.isfinite().all() for p in parameters.values())
        if diverged or stopping.every:
            stopping.restore()
    costs["adapt_seconds"] -= future.trace_seconds
    kept_step = stopping.best_step if diverged or stopping.every else len(losses)
    return {
        "losses": losses,
        "sigmas": sigmas,
        "anchor_losses": stopping.history,
        "stop_step": stopping.stop_step,
        "best_step": stopping.best_step if stopping.every else None,
        "diverged": diverged,
        "kept": "adapted" if kept_step else "baseline",
        "adapted_parameters": sum(p.numel() for p in parameters.values()),
        **getattr(method, "details", {}),
        "stop_seconds": stopping.seconds,
        **costs,
        **distances(model, parameters, stopping.start),
        "forgetting": forgetting(model, clip, other_loss),
        **future.record(adapted=kept_step > 0),
    }


def take_steps(model, method, clip, args):
    """For each step its loss, its sigmas, and whether loss and gradient were finite. A method that
    solves for its parameters takes one step."""
    if not args.steps:
        return
    if hasattr(method, "solve"):
        yield *within_memory(model, lambda: method.solve(model, clip, args)), True
        return
    optimizer = within_memory(model, lambda: method.optimizer(args), graph=True)
    schedule = method.schedule(optimizer) if hasattr(method, "schedule") else None
    draw = getattr(method, "losses", random_losses)
    for sigmas, compute_loss in within_memory(model, lambda: begun(draw(model, clip, args))):
        loss, finite = take_step(model, method, optimizer, compute_loss)
        optimizer.zero_grad(set_to_none=True)
        if schedule and finite:
            schedule.step()
        yield loss, sigmas, finite


def begun(draws):
    """The draws, with what the first of them computes already computed."""
    return itertools.chain([next(draws)], draws)


def take_step(model, method, optimizer, compute_loss):
    """One update; returns the loss before it and whether it and its gradient were finite. If not,
    nothing changes."""

    def gradient():
        optimizer.zero_grad(set_to_none=True)  # of an attempt that ran out of memory
        loss = compute_loss()
        if loss.isfinite():
            (loss + method.penalty() if hasattr(method, "penalty") else loss).backward()
        return loss.detach()

    loss = within_memory(model, gradient, backward=True)
    if not loss.isfinite():
        return loss.item(), False
    norms = [
        torch.nn.utils.clip_grad_norm_(group, MAX_GRAD_NORM) for group in clipped_together(method)
    ]
    finite = all(norm.isfinite() for norm in norms)
    if finite:
        optimizer.step()
    return loss.item(), finite


def clipped_together(method):
    """Lists of parameters whose joint gradient norm is limited: all at once, unless the method says
    more."""
    everything = [list(method.named_parameters().values())]
    return getattr(method, "clipped_together", lambda: everything)()


def warm_up(optimizer, steps):
    """Step i (from 0) below `steps` uses lr * (i + 1) / steps."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(1.0, (i + 1) / max(1, steps)))


@torch.no_grad()
def distances(model, parameters, start):
    """Norm of the parameters, distance from the start (L2) and that relative to the start's norm
    (None where it is zero), per parameter; those of all blocks in one."""
    blocks = model.block_names[0].rpartition(".")[0]
    sums = {}
    for (name, value), first in zip(parameters.items(), start, strict=True):
        kind = re.sub(rf"\b{blocks}\.\d+\.", f"{blocks}.*.", name)
        found = torch.stack([norm(x).square() for x in (value, value - first, first)])
        sums[kind] = sums.get(kind, 0) + found
    found = {kind: total.sqrt().tolist() for kind, total in sums.items()}
    return {
        "norms": {kind: norm for kind, (norm, _, _) in found.items()},
        "distances": {kind: moved for kind, (_, moved, _) in found.items()},
        "relative_distances": {
            kind: moved / first if first else None for kind, (_, moved, first) in found.items()
        },
    }


def norm(x):
    return torch.linalg.vector_norm(x, dtype=torch.float64).cpu()


def finite_or_none(value):
    return value if math.isfinite(value) else None


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
