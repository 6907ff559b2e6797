"""Imports point one way: scripts, report, sweeps, ... -> runs -> common -> backbones -> devices."""

import ast
import subprocess
from pathlib import Path

import pytest

from runs.identity import ROOT

BELOW_COMMON = {"backbones", "devices", "predictors"}
BELOW = {"runs", "common", *BELOW_COMMON}
SCRIPTS = "scripts"  # the files beside the rooms
MAY_IMPORT = {  # and each itself; a new room says here what is below it
    "devices": set(),
    "backbones": {"devices"},
    "predictors": {"backbones", "devices"},
    "common": BELOW_COMMON,
    "runs": {"common", *BELOW_COMMON},
    "report": BELOW,
    "sweeps": BELOW,
    "prepare": {"litevsr", *BELOW},
    "nano": BELOW,
    "litevsr": {SCRIPTS, "nano", *BELOW},
    SCRIPTS: {"report", "sweeps", *BELOW},
    "benchmarks": {SCRIPTS, "report", "prepare", "litevsr", "nano", *BELOW},
}
LONGEST = 250  # lines of a module that the author of a method reads


def tracked(under=""):
    listed = ["git", "ls-files", "-z", f"{under}*.py"]
    done = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True)
    return [Path(name) for name in done.stdout.split("\0") if name]


def room_of(path):
    return path.parts[0] if len(path.parts) > 1 else SCRIPTS


ROOMS = {path.parts[0].removesuffix(".py"): room_of(path) for path in tracked()}


def imported(tree):
    """Names of modules, wherever they are imported: in functions too, and by a string."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:  # else of its own room
            yield node.module
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant))


def pointing_up(room, source):
    """The imports of a room's file that its room may not have."""
    names = imported(ast.parse(source))
    rooms = [(name, ROOMS.get(name.split(".")[0])) for name in names]
    return [name for name, other in rooms if other not in {None, room, *MAY_IMPORT[room]}]


@pytest.mark.parametrize("path", [p for p in tracked() if room_of(p) != "tests"], ids=str)
def test_imports_point_one_way(path):
    room = room_of(path)
    assert room in MAY_IMPORT, f"{path}: what may {room}/ import?"
    found = pointing_up(room, (ROOT / path).read_text(encoding="utf-8"))
    assert not found, f"{path} imports {', '.join(found)}"


BAD = {
    "at the top": ("common", "from runs.results import read_json", "runs.results"),
    "a package": ("common", "import torch, runs as r", "runs"),
    "in a function": ("backbones", "def f():\n    import common.errors", "common.errors"),
    "of a name": ("devices", "from backbones import load", "backbones"),
    "a script": ("runs", "if True:\n    from adasteer import AdaSteer", "adasteer"),
    "by a string": ("runs", "importlib.import_module('report.page')", "report.page"),
    "a neighbour": ("report", "from prepare.clips import shrink", "prepare.clips"),
    "a test": ("benchmarks", "import tests.toy", "tests.toy"),
}


@pytest.mark.parametrize("case", BAD)
def test_an_import_that_points_up_is_found(case):
    room, source, name = BAD[case]
    assert pointing_up(room, source) == [name]


@pytest.mark.parametrize("room, source", [
    ("common", "import backbones\nfrom devices.placement import release\nfrom common import loss"),
    ("backbones", "from . import parts\nimport torch, common_words"),
    ("benchmarks", "from adasteer import AdaSteer\nfrom report.statistics import holm"),
])  # fmt: skip
def test_what_lies_below_may_be_imported(room, source):
    assert not pointing_up(room, source)


def test_no_room_is_named_that_is_not_there():
    assert set(MAY_IMPORT) == {room_of(path) for path in tracked()} - {"tests"}


@pytest.mark.parametrize("path", tracked("common/"), ids=str)
def test_what_the_author_of_a_method_reads_is_short(path):
    assert len((ROOT / path).read_text(encoding="utf-8").splitlines()) <= LONGEST
