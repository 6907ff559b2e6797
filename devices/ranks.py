"""The processes that torchrun has started: which one this is, and what they tell each other. With
one process, under torchrun or not, no group is made and nothing is exchanged."""

import atexit
import contextlib
import datetime
import os
import time

import torch
import torch.distributed as dist

DAY = 24 * 60  # minutes
GRACE = 3  # seconds in which the others that still live say so
stores = []  # of the group, see connect


class RankLost(ConnectionError):  # an OSError: run_script prints it as one line
    """Another process has ended, or has not answered within the time-out."""


def count():
    return int(os.environ.get("WORLD_SIZE", 1))


def count_here():
    """Those on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if count() > 1 else 1


def rank():
    return int(os.environ.get("RANK", 0))


def own_device(name):
    """A --device without an index, as this process has it: "cuda" is its own GPU of the machine."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if name == "cuda" and count() > 1 else name


def connect(minutes=30):
    """A connection to what all processes of the job can set and read; whatever waits for it that
    long is an error. It is kept by torchrun's own process, which outlives any rank."""
    return next(dist.rendezvous("env://", timeout=datetime.timedelta(minutes=minutes)))[0]


def start(device, minutes=30):
    """Makes the process group, once. Whatever waits for another process that long is an error."""
    if count() == 1 or dist.is_initialized():
        return
    if not stores:
        stores.append(connect(minutes))
    timeout, on_gpu = datetime.timedelta(minutes=minutes), device.type == "cuda"
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=timeout, store=stores[0], rank=rank(),
        world_size=count(), device_id=device if on_gpu else None,
    )  # fmt: skip
    atexit.register(dist.destroy_process_group)


@contextlib.contextmanager
def together():
    """Round whatever exchanges something: a lost process becomes RankLost, which names it."""
    try:
        yield
    except RuntimeError as error:
        if not is_loss(error):
            raise
        line = (str(error).splitlines() or [""])[0]
        raise RankLost(f"rank {rank()} of {count()}: {lost()} ({line[:200]})") from error


def is_loss(error):
    """Whether it says that a connection to the other processes broke, or timed out."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).partition("\n")[0]


def lost():
    """Which processes are gone or hang: those that do not meet the same error now."""
    stores[0].set(f"lives {rank()}", "")
    time.sleep(GRACE)
    gone = [str(i) for i in range(count()) if not stores[0].check([f"lives {i}"])]
    return f"no answer from rank {', '.join(gone)}" if gone else "the connection is lost"


def broadcast(value=None, source=0):
    """What process `source` gives, an object or a tensor, for all; tensors are on the CPU."""
    box = [value]
    if count() > 1:
        with together():
            dist.broadcast_object_list(box, src=source, device=torch.device("cpu"))
    return box[0]


@torch.no_grad()
def average(tensors):
    """Makes each its mean over processes, in place, all in one message. On one device."""
    if count() == 1:
        return
    whole = torch.cat([x.flatten() for x in tensors])
    with together():
        dist.all_reduce(whole)
    parts = whole.div_(count()).split([x.numel() for x in tensors])
    for x, mean in zip(tensors, parts, strict=True):
        x.copy_(mean.view_as(x))
