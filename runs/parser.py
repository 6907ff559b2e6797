"""The command line of every program here: a short usage, defaults in the help, errors in a line."""

import argparse
import difflib
import itertools
import shutil
import sys
from pathlib import Path

from common.errors import UsageError
from runs.flags import Group
from runs.names import printable

ROOT = Path(__file__).resolve().parents[1]
WIDEST = 100  # columns of the help
NUMBERS = {  # how the help shows one, by the name of its type
    **dict.fromkeys(("int", "whole number"), "N"),
    **dict.fromkeys(("float", "finite", "positive", "not_negative"), "X"),
}


class Parser(argparse.ArgumentParser):
    """Raises UsageError, which run_script prints. Of groups that are added with `add`, `flags` has
    what each flag changes, and `headings` their names, {title: [name in the arguments]}."""

    def __init__(self, description, usage="%(prog)s [flags]"):
        super().__init__(
            usage=usage, description=description, formatter_class=Help,
            allow_abbrev=False, add_help=False,
        )  # fmt: skip
        self.flags, self.headings = {}, {}

    def add(self, title, *declare, own=False):
        group, before = Group(self.add_argument_group(title), self.flags, own), len(self.flags)
        for add_arguments in declare:
            add_arguments(group)
        self.headings[title] = [*self.flags][before:]

    def arrange(self, titles):
        """The order of the groups in the help."""
        place = {title: number for number, title in enumerate(titles)}
        self._action_groups.sort(key=lambda group: place.get(group.title, -1))
        self.headings = {title: self.headings[title] for title in titles}

    def parse_args(self, args=None, namespace=None):
        tokens = sys.argv[1:] if args is None else list(args)
        known = self._option_string_actions
        if "--help" not in known:  # the last in the help
            self._action_groups[-1].add_argument(
                "-h", "--help", action="help", help="show this, and end"
            )
        for name in names_in(tokens):
            if name not in known:
                self.error(unrecognized(name, known))
        found, rest = self.parse_known_args(tokens, namespace)
        if rest:
            self.error(unrecognized(rest[0], known))
        return found

    def error(self, message):
        raise UsageError(message)


class Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the equation or commands of a description as they are written, and names every default
    that says something; one in the repository from there."""

    def __init__(self, prog):
        columns = shutil.get_terminal_size().columns
        super().__init__(prog, max_help_position=26, width=min(WIDEST, columns) - 2)

    def _get_default_metavar_for_optional(self, action):
        usual = super()._get_default_metavar_for_optional(action)
        return NUMBERS.get(getattr(action.type, "__name__", None), usual)

    def _get_help_string(self, action):
        default, words = action.default, action.help
        if default is None or isinstance(default, bool) or default == "" or "(default" in words:
            return words
        if isinstance(default, Path):
            return f"{words} (default: {shown(default)})".replace("%", "%%")
        return super()._get_help_string(action)


def shown(path):
    """A path in the repository from there, any other as it is."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def names_in(tokens):
    """The long flags among the tokens, without their values, as argparse tells them from these."""
    for token in itertools.takewhile(lambda token: token != "--", tokens):
        if token.startswith("--") and " " not in token:
            yield token.partition("=")[0]


def unrecognized(name, known):
    near = difflib.get_close_matches(name, [flag for flag in known if flag.startswith("--")], 1)
    hint = f"did you mean {near[0]}?" if near else "--help lists those there are"
    return printable(f"unrecognized argument {name}; {hint}")
