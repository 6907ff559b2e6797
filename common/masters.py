"""Copies of a transformer's own weights, which it uses while a method is attached.

In bfloat16 an update below half a unit in the last place of a weight is lost; in float32 it is not.
"""

import contextlib

import torch
from torch import nn
from torch.nn.utils import parametrize


class Cast(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype

    def forward(self, master):
        return master.to(self.dtype)


class Masters:
    """values: {name: Parameter}, copies of the parameters of `dit` that `names` lists, in dtype or,
    where that is None, in their own. originals: the parameters themselves, which never change."""

    def __init__(self, dit, names, dtype=torch.float32):
        self.dit = dit
        self.originals = {name: dit.get_parameter(name) for name in names}
        self.values = {
            name: nn.Parameter(p.detach().to(dtype or p.dtype, copy=True))
            for name, p in self.originals.items()
        }

    @contextlib.contextmanager
    def attached(self):
        """The forward reads the copies, cast to each weight's own type; afterwards the very
        parameters that were there before."""
        with contextlib.ExitStack() as stack:
            for name, master in self.values.items():
                stack.enter_context(replaced(self.dit, name, master))
            yield


@contextlib.contextmanager
def replaced(dit, name, master):
    path, _, leaf = name.rpartition(".")
    module = dit.get_submodule(path)
    own, order = getattr(module, leaf), list(module._parameters)
    setattr(module, leaf, master)
    # unsafe: the type changes, which is the point
    parametrize.register_parametrization(module, leaf, Cast(own.dtype), unsafe=True)
    try:
        yield
    finally:
        parametrize.remove_parametrizations(module, leaf, leave_parametrized=False)
        setattr(module, leaf, own)
        for key in order:  # as before in a state dict too
            module._parameters[key] = module._parameters.pop(key)
