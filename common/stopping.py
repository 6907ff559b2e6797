"""Early stopping on held-out latents: the best state seen wins, and that may be the first.

Rules of oracles/longcat (early_stopping.json): fixed sigmas and draws, measured before the first
update, then after every Nth; only a strictly lower loss is better; the run ends after `patience`
checks in a row that are not; the best state is put back.
"""

import math
import time

import torch

from common.errors import UsageError
from common.loss import Problem, anchored_loss, draw_noise, random_stream
from common.values import at_least, given_flags, not_negative, numbers
from devices.agreement import said_by_all
from devices.shards import kept


def add_arguments(group):
    group.add_argument(
        "--stop-every", type=at_least(0), default=0, metavar="N", changes="adaptation",
        help="hold out a quarter of the target latents, measure their loss after every Nth update, "
        "and put the best state back; 0: keep the last",
    )  # fmt: skip
    group.add_argument(
        "--patience", type=at_least(1), default=3, changes="adaptation",
        help="checks in a row without a better loss",
    )  # fmt: skip
    group.add_argument(
        "--stop-sigmas", type=numbers, default="0.25,0.5,0.75", metavar="S,S",
        changes="adaptation",
        help="noise levels of the check, of --gate's and of --reset-on-degradation's",
    )  # fmt: skip
    group.add_argument(
        "--stop-draws", type=at_least(1, 1024), default=2, changes="adaptation",
        help="fixed draws of noise per level",
    )  # fmt: skip

    group.add_argument(
        "--gate", type=not_negative, metavar="SE", changes="adaptation",
        help="hold these out too, and keep the updates only if they lower that loss by more than "
        "SE standard errors over the draws",
    )  # fmt: skip


def check(args):
    if not args.stop_every and args.gate is None and not args.reset_on_degradation:
        for flag in given_flags(args, "patience", "stop_sigmas", "stop_draws"):
            raise UsageError(f"{flag}: says how --stop-every N checks; give that too")
    for flag in given_flags(args, "patience") if not args.stop_every else ():
        raise UsageError(f"{flag}: is of --stop-every N alone; give that too")
    if args.gate is not None:
        refuse_one_draw(args, f"--gate {args.gate:g}")
    if args.gate is not None and args.adapter and not args.steps:
        raise UsageError(
            f"--gate {args.gate:g}: with --adapter and --steps 0, its default, there are no "
            "updates to keep or not; leave it out, or give --steps of 1 or more"
        )
    if 0 < args.steps < args.stop_every:
        raise UsageError(
            f"--stop-every {args.stop_every}: no check falls within --steps {args.steps}"
        )


def refuse_one_draw(args, flag):
    if args.stop_draws < 2:
        raise UsageError(
            f"{flag}: --stop-draws {args.stop_draws} has no standard error; give 2 or more"
        )


def held_out_problem(model, clip):
    """The held-out latents, predicted at their own place in time from context and target latents,
    or, by a model that takes no such context, with the target latents, which do not count then;
    where none are held out the adaptation's own problem."""
    target, held_out, lengths = clip.target, clip.held_out, model.geometry.context_lengths
    if not held_out.shape[2]:
        return clip
    known = torch.cat([clip.context, target], dim=2)
    if not model.geometry.context_alone and (lengths is None or known.shape[2] in lengths):
        return Problem(known, held_out, clip.text)
    both = torch.cat([target, held_out], dim=2)
    counts = torch.zeros(1, 1, both.shape[2], 1, 1, device=both.device)
    counts[:, :, target.shape[2] :] = both.shape[2] / held_out.shape[2]
    return Problem(clip.context, both, clip.text, counts)


def losses_of_levels(model, clip, args):
    """At each of args.stop_sigmas the losses of args.stop_draws noises of its own, of what is held
    out; the noises are not those that early stopping chooses by."""
    problem = held_out_problem(model, clip)
    generator = random_stream(clip.seed, clip.video.id, "gate noise")
    levels = [(s, draw_noise(generator, problem.target, args.stop_draws)) for s in args.stop_sigmas]
    found = [
        [anchored_loss(model, problem, (s,), each) for each in noise.split(1)]
        for s, noise in levels
    ]
    return said_by_all(found)[0]


def risen(before, after):
    """The mean difference of losses (levels, draws) on the same draws, and its standard error:
    levels are fixed, so that only the spread of the draws within each counts."""
    found = torch.tensor(after).double() - torch.tensor(before).double()
    levels, draws = found.shape
    error = (found.var(dim=1).sum() / draws).sqrt() / levels
    return found.mean().item(), error.item()


class Gate:
    """Whether the updates on a clip are kept, with --gate. Made before them."""

    def __init__(self, model, clip, args):
        self.given, self.limit, self.facts = (model, clip, args), args.gate, {}
        self.on = args.gate is not None and args.steps > 0
        self.before = losses_of_levels(*self.given) if self.on else None
        self.refused = False

    def refuses(self):
        """Called after the updates; `refused` from then on."""
        if not self.on:
            return False
        rise, error = risen(self.before, losses_of_levels(*self.given))
        self.facts = {
            "gate": {"rise": finite_or_none(rise), "standard_error": finite_or_none(error)}
        }
        self.refused = not -rise > self.limit * error
        return self.refused


def finite_or_none(value):
    return value if math.isfinite(value) else None


class EarlyStopping:
    """measure() gives the loss now; `every` 0 never measures, and keeps the last state.

    history: [step, loss] of every check, a loss that is not finite as None. best_step: where the
    kept state was reached. stop_step: where patience ran out, else None. seconds: of all checks.
    """

    def __init__(self, parameters, measure=None, every=0, patience=3):
        self.parameters, self.measure = list(parameters), measure
        self.every, self.patience, self.misses = every, patience, 0
        self.start = [kept(p) for p in self.parameters]
        self.best, self.best_step, self.stop_step = self.start, 0, None
        self.best_loss, self.history, self.seconds = math.inf, [], 0.0
        if every:
            self.check(0)
            self.misses = 0

    def record(self):
        """Of the video's JSON."""
        return {
            "anchor_losses": self.history,
            "stop_step": self.stop_step,
            "best_step": self.best_step if self.every else None,
            "stop_seconds": self.seconds,
        }

    def ends_after(self, step):
        """Called after every update; whether it was the last one."""
        if self.every and step % self.every == 0 and not self.check(step):
            self.misses += 1
            if self.misses == self.patience:
                self.stop_step = step
        return self.stop_step is not None

    def check(self, step):
        """Measures; whether this is the best loss so far. Then the state is kept."""
        started = time.perf_counter()
        loss = self.measure()
        self.seconds += time.perf_counter() - started
        self.history.append([step, finite_or_none(loss)])
        better = loss < self.best_loss
        if better:
            self.best_loss, self.best_step, self.misses = loss, step, 0
            if step:
                self._keep()
        return better

    def _keep(self):
        if self.best is self.start:
            self.best = [torch.empty_like(p) for p in self.parameters]
        for copy, parameter in zip(self.best, self.parameters, strict=True):
            copy.copy_(parameter.detach())

    @torch.no_grad()
    def restore(self, first=False):
        """Puts the best state back, or the first; without checks the best is the first."""
        state = self.start if first else self.best
        for parameter, value in zip(self.parameters, state, strict=True):
            parameter.copy_(value)


def early_stopping(model, clip, args, parameters):
    """The stopper that the flags ask for."""
    if not args.stop_every:
        return EarlyStopping(parameters)
    problem = held_out_problem(model, clip)
    generator = random_stream(clip.seed, clip.video.id, "validation noise")
    noise = draw_noise(generator, problem.target, args.stop_draws)
    return EarlyStopping(
        parameters,
        lambda: said_by_all(anchored_loss(model, problem, args.stop_sigmas, noise))[0],
        args.stop_every,
        args.patience,
    )
