"""The command line of every method script: the flags of the modules that read them, and those of
the method."""

import sys
from pathlib import Path

from common.method import refuse_misspelt
from runs import latents, videos
from runs.identity import script_sha256
from runs.parser import Parser, names_in


def parse_args(description, method, argv=None):
    """The shared flags plus those of `method`, filled in from the checkpoint's configuration.
    Checks what can be checked without weights or videos. Raises UsageError, and where another
    checkpoint's model could follow the flags MisfitError."""
    refuse_misspelt(method)
    kind = kind_of(method)
    parser = parser_of(description, method, kind)
    args = parser.parse_args(argv)
    file = getattr(sys.modules[method.__module__], "__file__", sys.argv[0])  # none in a notebook
    args.method, args.script = method.__name__, Path(file).stem
    args.script_sha256, args.kind = script_sha256(method, file), kind
    args.flags, args.given = parser.flags, sys.argv[1:] if argv is None else list(map(str, argv))
    args.headings, args.learns = given_under(parser, args.given), getattr(method, "learns", None)
    args.out = args.out or Path("results") / Path(sys.argv[0]).stem
    kind.complete(args, method)
    return args


def kind_of(method):
    """The module that says what runs of it are: on videos, or on clips of frame features."""
    return latents if getattr(method, "of_latent_clips", False) else videos


def given_under(parser, tokens):
    """{heading: {name in the arguments: whether its flag was given}}."""
    given = {*names_in(tokens)}
    return {
        title: {name: not given.isdisjoint(parser.flags[name]["names"]) for name in names}
        for title, names in parser.headings.items()
    }


def parser_of(description, method, kind):
    parser, own = Parser(description), f"{method.__name__} (this script)"
    for title, declared in kind.GROUPS.items():
        if declared is None:  # here: after those whose defaults it may set
            parser.add(own, method.add_arguments, own=True)
        else:
            parser.add(title, *declared)
    parser.arrange([own, *kind.ORDER])
    return parser
