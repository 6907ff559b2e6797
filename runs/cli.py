"""The command line of every method script: the flags of the modules that read them, and those of
the method."""

import sys
from pathlib import Path

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
from common.method import refuse_misspelt
from runs import baseline, cache, captions, records, run, todo
from runs.identity import script_sha256
from runs.parser import Parser, names_in

ORDER = (  # in the help, after the script's own
    "adaptation", "data and model", "run", "sampling", "frame window", "loss on the true future",
    "early stopping", "speed and memory",
)  # fmt: skip


def parse_args(description, method, argv=None):
    """The shared flags plus those of `method`, filled in from the checkpoint's configuration.
    Checks what can be checked without weights or videos. Raises UsageError, and where another
    checkpoint's model could follow the flags MisfitError."""
    refuse_misspelt(method)
    parser = parser_of(description, method)
    args = parser.parse_args(argv)
    file = getattr(sys.modules[method.__module__], "__file__", sys.argv[0])  # none in a notebook
    args.method, args.script = method.__name__, Path(file).stem
    args.script_sha256 = script_sha256(method, file)
    args.flags, args.given = parser.flags, sys.argv[1:] if argv is None else list(map(str, argv))
    args.headings = given_under(parser, args.given)
    args.out = args.out or Path("results") / Path(sys.argv[0]).stem
    geometry = loading.geometry_of(args)
    loading.check(args, geometry)
    clip.fill_window(args, geometry)
    for module in (adaptation, todo, loss, stopping):
        module.check(args)
    clip.Window.of(args, geometry)
    generation.fill(args, geometry)
    if hasattr(method, "check"):
        method.check(args)
    if hasattr(method, "fits"):
        method.fits(args, geometry)
    return args


def given_under(parser, tokens):
    """{heading: {name in the arguments: whether its flag was given}}."""
    given = {*names_in(tokens)}
    return {
        title: {name: not given.isdisjoint(parser.flags[name]["names"]) for name in names}
        for title, names in parser.headings.items()
    }


def parser_of(description, method):
    parser, own = Parser(description), f"{method.__name__} (this script)"
    parser.add("data and model", todo.add_arguments, captions.add_arguments, loading.add_arguments)
    parser.add("frame window", clip.add_arguments)
    parser.add(
        "adaptation", adaptation.add_arguments, loss.add_arguments, adapters.add_arguments,
        todo.add_other_videos,
    )  # fmt: skip
    parser.add("loss on the true future", future.add_arguments)
    parser.add("early stopping", stopping.add_arguments)
    parser.add(own, method.add_arguments, own=True)  # after those whose defaults it may set
    parser.add("sampling", generation.add_arguments)
    parser.add(
        "run", records.add_arguments, baseline.add_arguments, todo.add_range, run.add_arguments,
        metrics.add_arguments,
    )  # fmt: skip
    parser.add("speed and memory", loading.add_speed, cache.add_arguments, stages.add_arguments)
    parser.arrange([own, *ORDER])
    return parser
