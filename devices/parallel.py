"""Sampling on several processes of torchrun: guidance's branches side by side, or the tokens of
every latent frame split over them. Both act within `sampling` alone, so never in adaptation: what
is exchanged carries no gradient.

All processes make the same calls and end with the same values; a function at a site meets its own
process' branch or tokens. Split tokens see the keys and values of all, gathered in each block:
PyTorch's own context parallelism replaces the kernels of GPUs alone, and has none for queries that
are fewer than the keys, as those of a clip that continues its context.
"""

import contextlib

import torch
import torch.distributed as dist

from devices import ranks

WAYS = ("none", "guidance", "context")
begun = []  # the way of the sampling in progress


@contextlib.contextmanager
def sampling(way):
    """Within it what is sampled is split this way."""
    if way == "none":
        yield
        return
    begun.append(way)
    try:
        yield
    finally:
        begun.pop()


def count(way):
    """Processes over which the sampling in progress is split this way; 1 where it is not."""
    return ranks.count() if begun and begun[-1] == way else 1


def each(function, items):
    """[function(item), ...] tensors of one shape. With "guidance" each process computes a share of
    them and is given the others; all make as many calls, some with the last item once more."""
    size, found = count("guidance"), []
    if size == 1:
        return [function(item) for item in items]
    for start in range(0, len(items), size):
        mine = function(items[min(start + ranks.rank(), len(items) - 1)])
        found += gathered(mine)[: len(items) - start]
    return found


def each_row(function, *batches):
    """function(*batches), with a row for each branch in every batch, a tensor or a dict of tensors
    (what else is in it goes to all); with "guidance" by a call for each row."""
    if count("guidance") == 1:
        return function(*batches)
    rows = range(len(batches[0]))
    return torch.cat(each(lambda i: function(*(row(batch, i) for batch in batches)), rows))


def row(batch, i):
    if isinstance(batch, dict):
        return {name: row(part, i) for name, part in batch.items()}
    return batch[i : i + 1] if torch.is_tensor(batch) else batch


def own(tokens, frames, dim):
    """With "context" this process' tokens of each frame, of tokens that lie frame by frame along
    dim. Raises ValueError where they do not split."""
    size = count("context")
    if size == 1:
        return tokens
    of_frame = tokens.unflatten(dim, (frames, -1))
    if of_frame.shape[dim + 1] % size:
        raise ValueError(f"{of_frame.shape[dim + 1]} tokens of a frame, but {size} processes")
    return of_frame.chunk(size, dim + 1)[ranks.rank()].flatten(dim, dim + 1)


def whole(tokens, frames, dim):
    """What `own` was given, of all processes' parts."""
    return everyones(tokens.unflatten(dim, (frames, -1)), dim + 1).flatten(dim, dim + 1)


def everyones(tokens, dim):
    """With "context" the tokens of all processes along dim, one after the other."""
    return torch.cat(gathered(tokens), dim) if count("context") > 1 else tokens


def gathered(tensor):
    """The tensors that all processes have here, in the order of their ranks."""
    tensor = tensor.contiguous()
    parts = [torch.empty_like(tensor) for _ in range(ranks.count())]
    with ranks.together():
        dist.all_gather(parts, tensor)
    return parts
