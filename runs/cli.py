"""The command line of every method script: the flags of the modules that read them, and those of
the method."""

import argparse
import sys
from pathlib import Path

from common import adaptation, clip, future, generation, loading, loss, metrics, stages, stopping
from common.errors import UsageError
from common.method import refuse_misspelt
from runs import cache, captions, records, run, todo
from runs.flags import Group
from runs.identity import script_sha256


class Parser(argparse.ArgumentParser):
    """Its groups take what each flag changes; `flags` has it, by the name in the arguments."""

    def __init__(self, **more):
        super().__init__(formatter_class=Help, allow_abbrev=False, **more)
        self.flags = {}

    def add(self, title, *declare):
        group = Group(self.add_argument_group(title), self.flags)
        for add_arguments in declare:
            add_arguments(group)

    def error(self, message):  # one line; argparse would print every flag before it
        self.exit(2, f"{self.prog}: error: {message}\n")


class Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the script's equation as it is written, and names every default that says something."""

    def _get_help_string(self, action):
        if action.default is None or isinstance(action.default, bool):
            return action.help
        return super()._get_help_string(action)


def parse_args(description, method, argv=None):
    """The shared flags plus those of `method`, filled in from the checkpoint's configuration.
    Checks what can be checked without weights or videos."""
    refuse_misspelt(method)
    parser = parser_of(description, method)
    args = parser.parse_args(argv)
    file = getattr(sys.modules[method.__module__], "__file__", sys.argv[0])  # none in a notebook
    args.method, args.script = method.__name__, Path(file).stem
    args.script_sha256 = script_sha256(method, file)
    args.flags = parser.flags
    args.out = args.out or Path("results") / Path(sys.argv[0]).stem
    try:
        geometry = loading.geometry_of(args)
        loading.check(args, geometry)
        clip.fill_window(args, geometry)
        for module in (todo, loss, stopping):
            module.check(args)
        clip.Window.of(args, geometry)
        own = geometry.sampling, geometry.sampling_ranges
        args.sampling = generation.sampling_options(args.sampling, *own)
        if hasattr(method, "check"):
            method.check(args)
    except UsageError as error:
        parser.error(str(error))
    return args


def parser_of(description, method):
    parser = Parser(description=description)
    parser.add("data and model", todo.add_arguments, captions.add_arguments, loading.add_arguments)
    parser.add("frame window", clip.add_arguments)
    parser.add("adaptation", adaptation.add_arguments, loss.add_arguments, todo.add_other_videos)
    parser.add("loss on the true future", future.add_arguments)
    parser.add("early stopping", stopping.add_arguments)
    parser.add(f"{method.__name__} (this script)", method.add_arguments)
    parser.add("sampling", generation.add_arguments)
    parser.add(
        "run", records.add_arguments, todo.add_range, run.add_arguments, metrics.add_arguments
    )
    parser.add("speed and memory", loading.add_speed, cache.add_arguments, stages.add_arguments)
    return parser
