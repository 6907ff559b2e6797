"""The loop in which a predictor's method adapts, and what it carries from clip to clip."""

import contextlib
import copy
import math

import torch
from torch.nn.utils import clip_grad_norm_


@contextlib.contextmanager
def in_place(parameters):
    """In it these own weights of a network ({name: Parameter}) take gradients; afterwards they do
    not, and have the values that they had before."""
    own = copies(parameters)
    for parameter in parameters.values():
        parameter.requires_grad_()
    try:
        yield
    finally:
        put(parameters, own)
        for parameter in parameters.values():
            parameter.requires_grad_(False).grad = None


class Adaptation:
    """The state of a method while it goes through clips: its parameters, which begin where they
    are now, and its optimiser. Both go on from clip to clip unless `reset` is called."""

    def __init__(self, method, grad_clip=0.0):
        """grad_clip: the largest norm of the whole gradient; 0 is no limit."""
        self.method, self.limit = method, grad_clip or math.inf
        self.parameters = method.named_parameters()
        self.start = copies(self.parameters)
        self.restart()

    def restart(self):
        """A fresh optimiser; the parameters stay."""
        self.optimizer, self.schedule = self.method.optimizer()

    def reset(self):
        """The parameters' first values and a fresh optimiser."""
        put(self.parameters, self.start)
        self.restart()

    @contextlib.contextmanager
    def untouched(self):
        """In it the predictor is what it was before any clip."""
        now = copies(self.parameters)
        put(self.parameters, self.start)
        try:
            yield
        finally:
            put(self.parameters, now)

    def adapt(self, clip, watch=lambda step, loss, draw: None):
        """Takes a step on each of the method's draws of the clip, and calls watch after it.

        Returns {"losses", "grad_norms" (before they are limited), "update_norms": of each step,
        None where not finite; "diverged"}. An update that would not be finite is not made; then
        parameters and optimiser are put back to where they were before the clip.
        """
        before, record = self.state_dict(), {"losses": [], "grad_norms": [], "update_norms": []}
        finite = True
        for step, draw in enumerate(self.method.draws(clip), 1):
            values = self._step(self.method.loss(draw))
            finite = all(map(math.isfinite, values))
            for name, value in zip(record, values, strict=True):
                record[name].append(value if math.isfinite(value) else None)
            watch(step, values[0], draw)
            if not finite:
                self.load_state_dict(before)
                break
        return record | {"diverged": not finite}

    def _step(self, loss):
        """Loss, norm of the gradient and of the update."""
        parameters, old = list(self.parameters.values()), copies(self.parameters)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = clip_grad_norm_(parameters, self.limit)
        if not (loss.isfinite() and norm.isfinite()):
            return loss.item(), norm.item(), math.nan
        self.optimizer.step()
        self.schedule.step()
        with torch.no_grad():
            moved = [p - old[name] for name, p in self.parameters.items()]
        update = torch.stack([torch.linalg.vector_norm(each) for each in moved]).norm()
        return loss.item(), norm.item(), update.item()

    def state_dict(self):
        """A copy of all that goes on to the next clip."""
        return {
            "parameters": copies(self.parameters),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "schedule": copy.deepcopy(self.schedule.state_dict()),
        }

    def load_state_dict(self, state):
        put(self.parameters, state["parameters"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])


def copies(parameters):
    return {name: p.detach().clone() for name, p in parameters.items()}


@torch.no_grad()
def put(parameters, values):
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
