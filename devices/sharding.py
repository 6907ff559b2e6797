"""A model's weights shared out over the processes of torchrun (PyTorch's FSDP2, fully_shard).

What is adapted to is one video, so that there is no batch to share out: every process computes the
same forward and backward on the same data, a block's weights gathered while it computes, and it is
memory that falls as 1 / N. Gradients are therefore the same everywhere; FSDP's mean of N equal ones
is each of them.

A part of every matrix is on every process: of frozen ones in their own type, where a method learns
all of them (its `learns`) in the type it learns them in, float32 masters for instance, which are
gathered in the type that the transformer computes in. Vectors, what a block reads of itself outside
its forward and is no layer, and weights that a checkpoint keeps in another type are whole on every
process.
"""

import contextlib
import warnings

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate

from devices import agreement, ranks
from devices.paths import all_paths


class Shards:
    """Of model.dit, once `place` was called. learned: whether a method learns all weights, then in
    dtype, or, where that is None, in their own. sent: whether the first process alone has weights,
    the others what begin_as_first makes: a module at a time is sent, before it is shared out, so
    that no other ever holds more of them."""

    def __init__(self, model, learned=False, dtype=None, sent=False):
        self.dit, self.device, self.stacks = model.dit, model.device, model.stacks
        self.learned, self.dtype, self.sent = learned, dtype, sent
        self.parts = self.originals = None

    def place(self, stays):
        """Shards the weights, once. stays: what names begin with, in a block, of what it reads
        outside its forward: gathered with what is in no block."""
        if self.parts is not None:
            return
        # outputs are views; nothing here changes them in place
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
        dit, self.mesh = self.dit, init_device_mesh(self.device.type, (ranks.count(),))
        blocks = [dit.get_submodule(path) for path in all_paths(self.stacks)]
        outside = [layer for block in blocks for layer in layers_outside(block, stays)]
        main = next(p.dtype for p in blocks[0].parameters() if p.ndim > 1)
        own = {id(p) for block in blocks for name, p in block.named_parameters(recurse=False)}
        whole = {p for p in dit.parameters() if p.ndim < 2 or p.dtype != main or id(p) in own}
        self.receive(p for p in dit.parameters() if p in whole)
        policy = MixedPrecisionPolicy(main, torch.float32, cast_forward_inputs=False)
        for module in (*outside, *blocks, dit):
            mine = [p for p in module.parameters() if p not in whole and not isinstance(p, DTensor)]
            self.receive(mine)
            for p in mine if self.learned and self.dtype else ():
                p.data = p.data.to(self.dtype)
            options = {} if module is not dit else {"reshard_after_forward": False}
            fully_shard(module, mesh=self.mesh, mp_policy=policy, ignored_params=whole, **options)
        self.outside = outside
        if self.learned:  # weights were changed since they were gathered last
            dit.register_forward_pre_hook(lambda *_: self.release(), prepend=True)
        dit.register_forward_pre_hook(lambda *_: self.gather_outside())
        self.parts = {name: p for name, p in dit.named_parameters() if isinstance(p, DTensor)}
        if self.learned:
            self.originals = {
                name: p.detach().to(main, copy=True) for name, p in self.parts.items()
            }

    def receive(self, parameters):
        """Moves them to the device, one by one, with what the first process has in them."""
        for p in parameters:
            others = self.sent and ranks.rank()
            p.data = torch.empty_like(p, device=self.device) if others else p.data.to(self.device)
            if self.sent:
                with ranks.together():
                    torch.distributed.broadcast(p.data, src=0)

    def gather_outside(self):
        """Until backward has passed, as what is in no block."""
        for layer in self.outside:
            layer.unshard()

    def release(self):
        """What stays gathered after a forward."""
        for module in (self.dit, *self.outside):
            module.reshard()

    def recover(self):
        """After a forward that no backward followed, or an error in one of them."""
        if hasattr(self.dit, "reset_iter_state"):  # torch 2.13
            self.dit.reset_iter_state()

    def holds(self, names):
        """Whether other processes hold a part of one of them."""
        return not self.parts.keys().isdisjoint(names)

    def copies(self, names, dtype):
        """{name: original} and {name: Parameter} of these weights for common.Masters, all DTensors;
        what they hold of sharded ones are the very weights that the forward reads."""
        self.release()
        originals, values = {}, {}
        for name in names:
            if name in self.parts:
                originals[name], values[name] = self.originals[name], self.parts[name]
                values[name].original = originals[name]  # see shards.kept
            else:
                p = self.dit.get_parameter(name).detach()
                originals[name] = DTensor.from_local(p, self.mesh, [Replicate()])
                values[name] = nn.Parameter(originals[name].to(dtype or p.dtype, copy=True))
        return originals, values

    @contextlib.contextmanager
    def learning(self, values):
        """The forward's own weights are learned; afterwards they are bit for bit what they were,
        and `values` keeps copies of what they became."""
        learned = {name: p for name, p in values.items() if name in self.parts}
        try:
            for p in learned.values():
                p.requires_grad_(True)
            yield
        finally:
            self.recover()
            self.release()
            for name, p in learned.items():
                p.grad = None
                p.requires_grad_(False)
                values[name] = p.detach().clone()
                p.data.copy_(self.originals[name])


def begin_as_first(dit):
    """Gives a transformer that has its parameters on the meta device, as all but the first
    process's, the types and the buffers of that one's, and parameters that take no memory before
    they are written to."""
    (agreement.wait_for_turn if ranks.rank() else agreement.begin_turn)()  # it may read for long
    types, buffers = ranks.broadcast(
        ({name: p.dtype for name, p in dit.named_parameters()}, dict(dit.named_buffers()))
    )
    if not ranks.rank():
        return
    for name, buffer in dit.named_buffers():
        buffer.data = buffers[name]
    for path, module in dit.named_modules():
        for name, p in module.named_parameters(recurse=False):
            dtype = types[f"{path}.{name}".removeprefix(".")]
            setattr(module, name, nn.Parameter(torch.empty(p.shape, dtype=dtype), False))


def layers_outside(block, stays):
    """Modules of a block whose weights are read outside its forward."""
    return [layer for name, layer in block.named_children() if name.startswith(stays)]
