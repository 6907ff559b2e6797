"""UCF-101 -> clips and a manifest.

    python -m prepare.ucf101 UCF-101 --out data/ucf101 --count 100

SOURCE is the unpacked data set: a folder for each class with v_<Class>_g<group>_c<clip>.avi. The
clips of a group are cuts of one video, so at most one of them is chosen.
"""

import argparse
import re
from pathlib import Path

from runs.exits import run_script  # first: signals, and how torch's threads wait

# isort: split
from common.errors import UsageError
from prepare.clips import Candidate, one_line
from prepare.flags import add_arguments
from prepare.select import prepare
from runs.parser import Parser

NAME = re.compile(
    r"v_(?P<action>.+)_g(?P<group>\d+)_c(?P<clip>\d+)\.avi", re.IGNORECASE | re.DOTALL
)


def in_words(action):
    """'YoYo' -> 'yo yo', 'ApplyEyeMakeup' -> 'apply eye makeup', 'TaiChi' -> 'tai chi'."""
    return " ".join(re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", action)).lower()


def candidates(source, template):
    """Raises UsageError where no file is named as in UCF-101."""
    found = []
    for path in sorted(source.glob("*/*")):
        match = NAME.fullmatch(path.name)
        if match:
            action = match["action"]
            caption = template.replace("{action}", in_words(action))
            group = f"v_{action}_g{match['group']}"
            found.append(Candidate(path.stem, path, caption, action, group))
    if not found:
        raise UsageError(
            f"SOURCE {source}: holds no <Class>/v_<Class>_g01_c01.avi; give the folder that holds "
            "UCF-101's class folders"
        )
    return found


def template(text):
    """A text with {action}, which becomes one line of the manifest."""
    if set("{}") & set(text.replace("{action}", "")):
        raise argparse.ArgumentTypeError(f"may have no braces but those of {{action}}, got {text}")
    if one_line(text) != text or not text:
        raise argparse.ArgumentTypeError("must be one line of text in UTF-8")
    return text


def main():
    parser = Parser(__doc__, "%(prog)s SOURCE --out DIR [flags]")
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder of class folders")
    parser.add_argument(
        "--caption-template", type=template, metavar="TEXT",
        default="A video of a person: {action}.",
        help="caption, {action} stands for the class in words",
    )  # fmt: skip
    add_arguments(parser)
    args = parser.parse_args()
    return prepare(candidates(args.source, args.caption_template), args)


if __name__ == "__main__":
    run_script(main)
