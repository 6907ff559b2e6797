"""Runs on videos: their flags, and what of them is the same for every method and checked first."""

from common import (
    adaptation,
    adapters,
    clip,
    future,
    generation,
    loading,
    loss,
    metrics,
    stages,
    stopping,
)
from runs import baseline, cache, captions, records, scores, todo

ORDER = (  # in the help, after the script's own
    "adaptation", "data and model", "run", "sampling", "frame window", "loss on the true future",
    "early stopping", "speed and memory",
)  # fmt: skip
GROUPS = {  # as they are declared; None: those of the method
    "data and model": (todo.add_arguments, captions.add_arguments, loading.add_arguments),
    "frame window": (clip.add_arguments,),
    "adaptation": (
        adaptation.add_arguments, loss.add_arguments, adapters.add_arguments,
        todo.add_other_videos,
    ),
    "loss on the true future": (future.add_arguments,),
    "early stopping": (stopping.add_arguments,),
    "own": None,
    "sampling": (generation.add_arguments,),
    "run": (
        records.add_arguments, scores.add_arguments, baseline.add_arguments, todo.add_range,
        records.add_adapters, metrics.add_arguments,
    ),
    "speed and memory": (loading.add_speed, cache.add_arguments, stages.add_arguments),
}  # fmt: skip


NOUN, SAME = "video", "the same noise"  # what a baseline shares with a run


def complete(args, method):
    """Fills in the checkpoint's own defaults and checks what can be checked by now."""
    geometry = loading.geometry_of(args)
    loading.check(args, geometry)
    clip.fill_window(args, geometry)
    for module in (adaptation, todo, loss, stopping):
        module.check(args)
    clip.Window.of(args, geometry)
    own = geometry.sampling, geometry.sampling_ranges
    args.sampling = generation.sampling_options(args.sampling, *own)
    if hasattr(method, "check"):
        method.check(args)
    if hasattr(method, "fits"):
        method.fits(args, geometry)


def window_flags(args):
    """Those that a baseline needs beside what it takes over."""
    return clip.fitting_window(args, loading.geometry_of(args))


def metrics_of(args):
    """What is measured, as config.json says it: names, and which values are better."""
    return {name: {"better": better} for name, better in metrics.METRICS.items() if better}
