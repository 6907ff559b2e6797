"""Tensors of which every process may hold a part (DTensors: those of a sharded run), handled as
whole ones. A plain tensor, as of one process, goes through torch's own functions."""

import torch
from torch.nn.utils import clip_grad_norm_

from devices import ranks


def local(x):
    """The part that this process holds."""
    return x.to_local() if hasattr(x, "to_local") else x


def whole(x):
    """The whole tensor, a copy on every process; a plain one as it is."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def is_part(x):
    """Whether other processes hold the rest of it."""
    return hasattr(x, "placements") and x.placements[0].is_shard()


def reduced(x, kind):
    """x over all processes: its "sum" or "min"."""
    dist = torch.distributed
    with ranks.together():
        dist.all_reduce(x, dist.ReduceOp.SUM if kind == "sum" else dist.ReduceOp.MIN)
    return x


def norm(x):
    """L2, float64 on the CPU."""
    found = torch.linalg.vector_norm(local(x), dtype=torch.float64)
    return (reduced(found.square(), "sum").sqrt() if is_part(x) else found).cpu()


def all_finite(tensors):
    tensors = list(tensors)
    finite = all(local(x).isfinite().all() for x in tensors)
    if not any(map(is_part, tensors)):
        return finite
    return bool(reduced(torch.tensor(float(finite), device=local(tensors[0]).device), "min"))


def clip(parameters, limit):
    """Scales the gradients down to a joint L2 norm of `limit`, as clip_grad_norm_ does; the norm
    before."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not any(map(is_part, gradients)):
        return clip_grad_norm_(parameters, limit)
    total = reduced(squares(filter(is_part, gradients)), "sum")
    rest = [g for g in gradients if not is_part(g)]
    total = (total + squares(rest) if rest else total).sqrt()
    for gradient in gradients:
        local(gradient).mul_((limit / (total + 1e-6)).clamp(max=1.0))
    return total


def squares(tensors):
    norms = [torch.linalg.vector_norm(local(x), dtype=torch.float32) for x in tensors]
    return torch.stack(norms).square().sum()


def kept(parameter):
    """A copy, or, where there is one of the same value, the original that it was made from."""
    original = getattr(parameter, "original", None)
    if original is not None and torch.equal(local(parameter), local(original).to(parameter.dtype)):
        return original
    return parameter.detach().clone()


def put(parameter, tensor):
    """Copies a whole tensor into a parameter, each process its part."""
    if hasattr(parameter, "placements"):
        from torch.distributed.tensor import distribute_tensor

        mesh, placements = parameter.device_mesh, parameter.placements
        tensor = tensor.to(local(parameter).device)
        tensor = distribute_tensor(tensor, mesh, placements, src_data_rank=None)
    parameter.copy_(tensor)


def agree(parameters, *numbers):
    """What process 0 found counts on all: its gradients of parameters that every one holds whole,
    and its scalars, which it gives. A GPU's sums may differ in their last digits from run to run,
    and processes that then decide otherwise would wait for each other."""
    if ranks.count() == 1:
        return numbers
    gradients = [local(p.grad) for p in parameters if p.grad is not None and not is_part(p.grad)]
    with ranks.together():
        for x in (*gradients, *(x for x in numbers if x is not None)):
            torch.distributed.broadcast(x, src=0)
    return numbers
