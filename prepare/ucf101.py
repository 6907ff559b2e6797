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
from prepare.flags import add_arguments, add_lengths
from prepare.make import Candidate, one_line
from prepare.select import prepare
from prepare.ucf101_captions import CAPTIONS
from runs.parser import Parser

NAME = re.compile(
    r"v_(?P<action>.+)_g(?P<group>\d+)_c(?P<clip>\d+)\.avi", re.IGNORECASE | re.DOTALL
)
# files of HandstandPushups are called v_HandStandPushups_g01_c01.avi
WRITTEN = {action.lower(): caption for action, caption in CAPTIONS.items()}


def in_words(action):
    """'YoYo' -> 'yo yo', 'ApplyEyeMakeup' -> 'apply eye makeup', 'TaiChi' -> 'tai chi'."""
    return " ".join(re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", action)).lower()


def caption_of(action, template=None):
    """The template with the class in words; without one the sentence written for the class."""
    if template is None and action.lower() in WRITTEN:
        return WRITTEN[action.lower()]
    return (template or "A video of {action}.").replace("{action}", in_words(action))


def candidates(source, template=None):
    """Raises UsageError where no file is named as in UCF-101."""
    found = []
    for path in sorted(source.glob("*/*")):
        match = NAME.fullmatch(path.name)
        if match:
            action = match["action"]
            group = f"v_{action}_g{match['group']}"
            found.append(Candidate(path.stem, path, caption_of(action, template), action, group))
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
        help="caption in place of a written one for each class; {action} stands for it in words",
    )  # fmt: skip
    add_arguments(parser)
    add_lengths(parser)
    args = parser.parse_args()
    return prepare(candidates(args.source, args.caption_template), args)


if __name__ == "__main__":
    run_script(main)
