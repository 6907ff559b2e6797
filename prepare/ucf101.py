"""UCF-101 -> clips and a manifest.

    python -m prepare.ucf101 UCF-101 --out data/ucf101 --count 100

SOURCE is the unpacked data set: a folder for each class with v_<Class>_g<group>_c<clip>.avi. The
clips of a group are cuts of one video, so at most one of them is chosen.
"""

import argparse
import re
import sys
from pathlib import Path

from common.errors import UsageError
from prepare.clips import Candidate
from prepare.select import add_arguments, prepare

NAME = re.compile(r"v_(?P<action>.+)_g(?P<group>\d+)_c(?P<clip>\d+)\.avi", re.IGNORECASE)


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
            caption = template.format(action=in_words(action))
            group = f"v_{action}_g{match['group']}"
            found.append(Candidate(path.stem, path, caption, action, group))
    if not found:
        raise UsageError(
            f"SOURCE {source}: holds no <Class>/v_<Class>_g01_c01.avi; give the folder that holds "
            "UCF-101's class folders"
        )
    return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder of class folders")
    parser.add_argument(
        "--caption-template", default="A video of a person: {action}.", metavar="TEXT",
        help="caption, {action} stands for the class in words",
    )  # fmt: skip
    add_arguments(parser)
    args = parser.parse_args()
    try:
        return prepare(candidates(args.source, args.caption_template), args)
    except UsageError as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
