"""What a flag changes is said where it is declared; runs, reports and sweeps go by it."""

import ast
import importlib
import sys

import pytest
from folders import change, make_run
from test_run import QUICK, ROOT
from test_scripts import SCRIPTS
from test_sweep import write

import adasteer
import compare as compare_script
import runs
from common.errors import UsageError
from report.comparison import compare
from report.runs import read_runs
from runs.flags import CHANGES, OURS
from sweeps import rows as rows_module
from sweeps.rows import read_sweep

FAST = [*QUICK, "--no-generate", "--limit", 1]
LAST = '        group.add_argument("--weight-decay"'
WAYS = {"unsaid": "", "generation": ', changes="generation"', "nothing": ", changes=None"}


@pytest.fixture
def declared(tmp_path, monkeypatch):
    """A function that declares --extra with these words in a copied script, and gives its
    module."""
    monkeypatch.syspath_prepend(tmp_path)

    def write_script(words, flag="--extra"):
        text = (ROOT / "adasteer.py").read_text()
        line = f'        group.add_argument("{flag}", type=float, default=1.0{words})\n'
        assert LAST in text
        (tmp_path / "my_variant.py").write_text(text.replace(LAST, line + LAST))
        sys.modules.pop("my_variant", None)
        importlib.invalidate_caches()
        return importlib.import_module("my_variant")

    yield write_script
    sys.modules.pop("my_variant", None)


def declarations(path):
    """(flag, names of the keywords) of every flag that a module declares."""
    for node in ast.walk(ast.parse(path.read_text())):
        named = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if named and node.func.attr == "add_argument" and isinstance(node.args[0], ast.Constant):
            yield node.args[0].value, {keyword.arg for keyword in node.keywords}


def test_every_shared_flag_says_what_it_changes():
    found = {
        flag: keywords
        for room in ("common", "runs")
        for path in (ROOT / room).glob("*.py")
        for flag, keywords in declarations(path)
        if flag != "-h"  # argparse's own
    }
    assert len(found) > 40 and {"--steps", "--anchor", "--out", "--videos"} <= found.keys()
    assert [flag for flag, keywords in found.items() if "changes" not in keywords] == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_argument_of_a_script_is_a_flag_of_the_table(name):
    method = getattr(importlib.import_module(name), SCRIPTS[name][0])
    args = runs.parse_args(None, method, [])
    assert args.flags.keys() == vars(args).keys() - set(OURS)
    assert {said["changes"] for said in args.flags.values()} == set(CHANGES)
    own = {flag for flag, _ in declarations(ROOT / f"{name}.py")}
    table = {said["names"][0]: said["changes"] for said in args.flags.values()}
    assert own and {table[flag] for flag in own} == {"adaptation"}


@pytest.mark.parametrize("way", WAYS)
def test_a_flag_of_a_copied_script_is_compared_as_it_says(way, declared, script, tmp_path, capsys):
    mine = declared(WAYS[way])
    folders = {"base": [0, 1], "one": [1, 1], "two": [1, 2]}  # steps and --extra
    for name, (steps, extra) in folders.items():
        flags = [*FAST, "--steps", steps, "--extra", extra, "--out", tmp_path / name]
        assert script(mine, *flags) == 0
    capsys.readouterr()
    goes_on = script(mine, *FAST, "--steps", 1, "--extra", 2, "--out", tmp_path / "one")
    base, one, two = read_runs([tmp_path / name for name in folders])
    if way == "nothing":
        assert goes_on == 0
        assert [method.name for method in compare([base, two]).methods] == ["two"]
        with pytest.raises(UsageError, match="are the same run"):
            compare([base, one, two])
        return
    assert goes_on == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith("another run (--extra is 1.0 there, 2.0 here); choose another folder")
    if way == "unsaid":
        assert [method.name for method in compare([base, one, two]).methods] == ["one", "two"]
        return
    assert [method.name for method in compare([base, one]).methods] == ["one"]
    with pytest.raises(UsageError, match=r"they differ in --extra \(1.0 there, 2.0 here\)"):
        compare([base, one, two])


def test_the_baseline_of_a_sweep_takes_what_it_depends_on(declared, tmp_path, monkeypatch):
    declared(WAYS["generation"])
    (tmp_path / "adasteer.py").write_text((ROOT / "adasteer.py").read_text())
    monkeypatch.setattr(rows_module, "ROOT", tmp_path)
    text = (
        "baseline: my_variant.py\nshared: --no-preflight --save-frames --lr 0.1 --trace-future 1\n"
        "rows: [{name: 'x{x}', script: my_variant.py, flags: '--extra {x}', over: {x: [1, 2]}}]\n"
    )
    (first, second, *rows), _ = read_sweep(write(tmp_path, text), tmp_path / "out")
    assert [first.name, second.name] == ["baseline_extra-1.0", "baseline_extra-2.0"]
    assert [row.baseline for row in rows] == [first.name, second.name]
    for base in (first, second):
        assert not base.args.preflight and base.args.save_frames
        assert (base.args.lr, base.args.trace_future) == (0.002, 0)
    other = write(tmp_path, text.replace("baseline: my_variant.py", "baseline: adasteer.py"))
    with pytest.raises(UsageError, match="row 'baseline_.*unrecognized argument --extra"):
        read_sweep(other, tmp_path / "out")


def test_a_run_that_does_not_say_is_refused(script, tmp_path, capsys):
    """As runs from before flags said it."""
    base, run = make_run(tmp_path / "base", [0], steps=0), make_run(tmp_path / "run", [1])
    change(run / "config.json", lambda config: config.pop("flags"))
    assert script(compare_script, base, run, "--out", tmp_path / "report") == 2
    said = capsys.readouterr().err
    assert "run/config.json: flags is None, not what each flag changes" in said
    assert said.count("\n") == 1
    out = tmp_path / "out"
    assert script(adasteer, *FAST, "--out", out) == 0
    change(out / "config.json", lambda config: config.pop("flags"))
    assert script(adasteer, *FAST, "--out", out) == 2
    assert "does not say what each flag changes" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "flag", "complaint"),
    [
        (', changes="all"', "--extra", "--extra: changes='all' must be one of ('generation'"),
        (', known_by="path"', "--extra", "--extra: known_by='path' must be one of ('manifest"),
        ("", "--script", "--script: script is a name of ours"),
    ],
)
def test_a_flag_that_is_declared_wrongly(words, flag, complaint, declared, script, capsys):
    assert script(declared(words, flag), "--dry-run") == 2
    said = capsys.readouterr().err
    assert complaint in said and said.count("\n") == 1
