"""Copies of a transformer's own weights, which it uses while a method is attached.

In bfloat16 an update below half a unit in the last place of a weight is lost; float32 copies add
such updates up.
"""

import contextlib

import torch
from torch import nn
from torch.nn.utils import parametrize

from common.errors import UsageError
from devices.shards import is_part, local


class Cast(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype

    def forward(self, master):
        return local(master).to(self.dtype)


class Masters:
    """values: {name: Parameter}, copies of the parameters of model.dit that `names` lists, in dtype
    or, where that is None, in their own. originals: the parameters themselves, which never change.

    With `cast` the forward sees each in its weight's own type, rounded to it; without it sees the
    copies as they are, for layers that compute in float32 anyway. Where several processes share the
    weights out (devices/sharding.py) both are DTensors, and of matrices the weights themselves,
    which attached() then brings back to what they were.
    """

    def __init__(self, model, names, dtype=torch.float32, cast=True):
        self.dit, self.cast = model.dit, cast
        self.shards = getattr(model, "shards", None)
        if self.shards and self.shards.holds(names):
            if not self.shards.learned or dtype != self.shards.dtype:
                raise UsageError(
                    "with several processes a method that learns matrices of the DiT says in which "
                    f"type: a static learns(args) that gives {dtype}, as in full_tta.py"
                )
            self.originals, self.values = self.shards.copies(names, dtype)
            return
        self.originals = {name: self.dit.get_parameter(name) for name in names}
        self.values = {
            name: nn.Parameter(p.detach().to(model.device, dtype or p.dtype, copy=True))
            for name, p in self.originals.items()
        }

    @contextlib.contextmanager
    def attached(self):
        """The forward reads the copies; afterwards the very parameters that were there before."""
        with contextlib.ExitStack() as stack:
            if any(map(is_part, self.values.values())):
                stack.enter_context(self.shards.learning(self.values))
            for name, master in self.values.items():
                if not is_part(master):
                    stack.enter_context(replaced(self.dit, name, master, self.cast))
            yield


@contextlib.contextmanager
def replaced(dit, name, master, cast):
    path, _, leaf = name.rpartition(".")
    module = dit.get_submodule(path)
    own, order = getattr(module, leaf), list(module._parameters)
    try:
        setattr(module, leaf, master)
        if cast and (own.dtype != master.dtype or local(master) is not master):
            # unsafe: the type changes, which is the point
            parametrize.register_parametrization(module, leaf, Cast(own.dtype), unsafe=True)
        yield
    finally:
        if parametrize.is_parametrized(module, leaf):
            parametrize.remove_parametrizations(module, leaf, leave_parametrized=False)
        setattr(module, leaf, own)
        for key in order:  # as before in a state dict too
            module._parameters[key] = module._parameters.pop(key)
