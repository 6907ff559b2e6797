"""Runs on videos: their flags, and what of them is the same for every method and checked first."""

import functools

import backbones
from common import (
    adaptation,
    adapters,
    best_of,
    clip,
    control,
    drawing,
    future,
    generation,
    loading,
    loss,
    metrics,
    stages,
    start,
    stopping,
)
from runs import baseline, cache, captions, carry, lists, measures, records, scores, todo

ORDER = (  # in the help, after the script's own
    "adaptation", "data and model", "run", "sampling", "frame window", "loss on the true future",
    "early stopping", "speed and memory",
)  # fmt: skip
GROUPS = {  # as they are declared; None: those of the method
    "data and model": (todo.add_arguments, captions.add_arguments, loading.add_arguments),
    "frame window": (clip.add_arguments,),
    "adaptation": (
        adaptation.add_arguments, loss.add_arguments, drawing.add_arguments, adapters.add_arguments,
        control.add_arguments, start.add_arguments, carry.add_order, todo.add_other_videos,
    ),
    "loss on the true future": (future.add_arguments,),
    "early stopping": (stopping.add_arguments,),
    "own": None,
    "sampling": (generation.add_arguments, best_of.add_arguments),
    "run": (
        records.add_arguments, scores.add_arguments, baseline.add_arguments, todo.add_range,
        records.add_adapters, metrics.add_arguments,
    ),
    "speed and memory": (loading.add_speed, cache.add_arguments, stages.add_arguments),
}  # fmt: skip


SITE = {"--checkpoint": "CHECKPOINT", "--videos": "VIDEOS"}  # what sbatch/site.sh calls them
NANO = {"--checkpoint": loading.NANO, "--videos": todo.DEMO}
NOUN, SAME = "video", "the same noise"  # what a baseline shares with a run


def complete(args, method):
    """Fills in the checkpoint's own defaults and checks what can be checked by now."""
    geometry = loading.geometry_of(args)
    loading.check(args, geometry)
    clip.fill_window(args, geometry)
    for module in (start, control, todo, drawing, stopping, future, scores):
        module.check(args)
    args.save_adapter = args.save_adapter or args.start_from == start.BANK
    if carries(args):
        carry.refuse_parts(args, start.linked(args))
    clip.Window.of(args, geometry)
    generation.fill(args, geometry)
    if hasattr(method, "check"):
        method.check(args)
    if hasattr(method, "fits"):
        method.fits(args, geometry)


def window_flags(args):
    """Those that a baseline needs beside what it takes over."""
    return clip.fitting_window(args, loading.geometry_of(args))


def metrics_of(args):
    """What is measured, as config.json says it."""
    videos = lists.list_videos(args.videos, args.prompt, allow_empty=True)[0]
    return measures.of_videos(videos, carries(args))


weights_sha256 = functools.cache(metrics.lpips_sha256)


def facts(args):
    """SHA-256s of the lists and of what scores, as config.json has them: the last not on every
    machine that asks."""
    found = {
        "manifest_sha256": lists.list_videos(args.videos, args.prompt, allow_empty=True)[1],
        "forgetting_sha256": todo.other_videos(args)[1],
    }
    lpips = weights_sha256(args.lpips_weights)
    return found | ({"lpips_sha256": lpips} if lpips else {})


def in_range(args):
    """The videos that a worker with these flags has."""
    return todo.in_range(lists.list_videos(args.videos, args.prompt, allow_empty=True)[0], args)


def other_file(video, record):
    """The first of its files, where there are any, that is not that of the record, or None."""
    return todo.other_file(video, record)


def carries(args):
    """Whether what is learned goes on from video to video."""
    return start.linked(args) is not None


def import_model(checkpoint):
    """Imports its class, before processes are forked."""
    backbones.found(backbones.BACKBONES, checkpoint)
