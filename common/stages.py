"""What a stage of a video costs, and a trace of where the time goes."""

import contextlib
import resource
import sys
import time

import torch
from torch.profiler import ProfilerActivity, profile


def add_arguments(group):
    group.add_argument(
        "--profile", action="store_true", changes=None,
        help="trace the first video with torch's profiler: trace.json.gz in --out",
    )  # fmt: skip


@contextlib.contextmanager
def stage(costs, name, device):
    """Adds to <name>_seconds in costs, and notes <name>_peak_memory_gb: of the stage on a GPU, of
    the whole process so far on a CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    yield
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # what is timed next does not include what came before
    costs[f"{name}_seconds"] = costs.get(f"{name}_seconds", 0.0) + time.perf_counter() - started
    costs[f"{name}_peak_memory_gb"] = peak_memory_gb(device)


def peak_memory_gb(device):
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes * (1 if sys.platform == "darwin" else 1024) / 1e9


@contextlib.contextmanager
def traced(path, device):
    """Writes what torch's profiler sees in the block, for chrome://tracing or ui.perfetto.dev."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        yield
    profiler.export_chrome_trace(str(path))
