"""Whatever a sweep file, or the folder of a sweep, holds: rows, or one line that says what is
wrong."""

import importlib
import json
import shutil

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_run import ROOT
from test_sweep import THREE, write

import common
import runs
import sweep
from sweeps import rows as rows_module
from sweeps.rows import read_sweep
from sweeps.status import is_complete, status

ROW = "rows: [{name: a, script: adasteer.py}]"
BOMB = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
)
MERGED = "\n".join(
    ["a0: &a0 {x: 1}"]
    + [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 12)]
)
LIST = "{" + ", ".join(f"k{i}: [1, 2, 3, 4, 5, 6, 7, 8]" for i in range(7)) + "}"


def one_row(**changes):
    row = {"name": "a", "script": "adasteer.py"} | changes
    return f"baseline: adasteer.py\nrows:\n- {json.dumps(row)}\n"


WRONG = {
    "unbalanced quotes": (one_row(flags='--prompt "a'), "cannot be split into flags"),
    "unbalanced quotes of all": (f"baseline: adasteer.py\nshared: --prompt 'a\n{ROW}", "shared"),
    "over is a list of numbers": (one_row(over=[1, 2]), "over must say what is swept"),
    "over of a mapping": (one_row(over={"lr": {"a": "b"}}), "must be text or finite numbers"),
    "over of lists": (one_row(over={"lr": [[1]]}), "must be text or finite numbers"),
    "over of nothing": (one_row(over={"lr": []}), "no values of 'lr'"),
    "over of NaN": (one_row(over={"lr": [float("nan")]}).replace("NaN", ".nan"), "finite numbers"),
    "over of a date": (one_row(over={"lr": [5]}).replace("5", "2001-01-01"), "finite numbers"),
    "a number as key": ("baseline: adasteer.py\n5: a\n" + ROW, "unknown key '5'"),
    "a number as key of over": (one_row(over={"x": 1}).replace('"x"', "7"), "must be text, got 7"),
    "an alias within itself": (f"baseline: adasteer.py\nshared: &a [*a]\n{ROW}", "within itself"),
    "aliases of aliases": (f"{BOMB}\n{ROW}", "more than"),
    "merged aliases of aliases": (f"{MERGED}\n{ROW}", "more than"),
    "lists in lists": ("[" * 100_000, "more than"),
    "two million rows": (one_row(over=5).replace("5", LIST), "makes 2,097,152 rows"),
    "a large file": ("# " + "x" * 300_000, "larger than"),
    "an attribute": (one_row(name="{lr.__class__}", over={"lr": 1}), "'lr.__class__'"),
    "an element": (one_row(name="{lr[0]}", over={"lr": "ab"}), "'lr[0]'"),
    "a conversion": (one_row(flags="--lr {lr!r}", over={"lr": 1}), "uses 'lr'"),
    "a width": (one_row(flags="--lr {lr:9999999999}", over={"lr": 1}), "uses 'lr'"),
    "a long name": (one_row(name="a" * 300), "longer than 200 bytes"),
    "text that grows": (one_row(name="{x}" * 900, over={"x": "y" * 900}), "becomes longer than"),
    "an empty name": (one_row(name=""), "it is empty"),
    "a dot": (one_row(name="."), "begins with a dot"),
    "two dots": (one_row(name=".."), "begins with a dot"),
    "the report": (one_row(name="report"), "is a name of ours"),
    "the sweep": (one_row(name="sweep.json"), "is a name of ours"),
    "the comparison": (one_row(name="compare.py"), "is a name of ours"),
    "NUL": (one_row(flags="--prompt \0"), "control characters"),
    "an escape in a value": (one_row(over={"lr": "\x1b[31m"}), "control characters"),
    "a raw escape": (one_row() + "# \x1b[31m", "not YAML"),
    "help": (one_row(flags="--help"), "end without running"),
    "a script elsewhere": (one_row(script="../runs/cli.py"), "there is no script"),
    "a script in a folder": (one_row(script="runs/cli.py"), "there is no script"),
    "a key twice": (one_row() + "shared: a\nshared: b\n", "stands twice"),
    "no number": (one_row(over={"lr": 5}).replace("5", "!!int x"), "not YAML"),
    "no date": (one_row(over={"lr": 5}).replace("5", "2001-99-99"), "not YAML"),
    "a tag": (one_row(over={"lr": 5}).replace("5", "!!python/name:os.system"), "not YAML"),
    "flags that are a list": (one_row(flags=["--lr"]), "flags of row 1 must be text"),
}


@pytest.mark.parametrize("case", WRONG)
def test_one_line_says_what_is_wrong(case, script, tmp_path, capsys):
    text, words = WRONG[case]
    path = write(tmp_path, text)
    assert script(sweep, path, "--nano", "--local", "--out", tmp_path / "out") == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and said.out == "" and said.err[:-1].isprintable()
    assert words in said.err and "three.yaml" in said.err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", "rows: é".encode("latin-1"), b"\0\0", b""])
def test_files_that_are_no_text(content, script, tmp_path, capsys):
    path = tmp_path / "three.yaml"
    path.write_bytes(content)
    assert script(sweep, path, "--nano", "--status") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert script(sweep, tmp_path, "--nano", "--status") == 2  # a folder


def test_where_results_cannot_go(script, tmp_path, capsys):
    path = write(tmp_path, THREE)
    (tmp_path / "file").write_text("mine")
    for out, words in (("", "must not be empty"), (tmp_path / "file", "is a file")):
        for what in ("--local", "--status"):
            assert script(sweep, path, "--nano", what, "--out", out) == 2
            assert words in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_anchors_are_read_and_ten_thousand_rows_are_too_many(tmp_path):
    text = (
        "baseline: adasteer.py\nrows:\n- &a {name: 'a{n}', script: adasteer.py, over: {n: [1]}}\n"
    )
    merged = text + "- {<<: *a, name: b, over: {n: [2]}, flags: '--groups {n}'}\n"
    assert [row.name for row in read_sweep(write(tmp_path, merged), tmp_path)[0]][1:] == ["a1", "b"]
    many = text.replace("[1]", str([*range(10_001)]))
    with pytest.raises(common.UsageError, match="makes 10,001 rows; a sweep has at most 10,000"):
        read_sweep(write(tmp_path, many), tmp_path)


FLAGS = "--steps 1 --sampling-steps 1 --sampling enhance_hf=false "
FLAGS += "--gen-frames 2 --batch-end 1 --device cpu"


@pytest.fixture
def copied(tmp_path, monkeypatch, script):
    """The row of a copied script that has run, and the script."""
    place = tmp_path / "scripts"
    place.mkdir()
    for name, copy in (("adasteer.py", "adasteer.py"), ("adasteer.py", "own_variant.py")):
        shutil.copy(ROOT / name, place / copy)
    monkeypatch.syspath_prepend(place)
    monkeypatch.setattr(rows_module, "ROOT", place)
    text = f"baseline: adasteer.py\nshared: {FLAGS}\nrows: [{{name: own, script: own_variant.py}}]"
    (_, row), _ = read_sweep(write(tmp_path, text), tmp_path / "out")
    module = importlib.import_module("own_variant")
    assert script(module, *row.flags, "--out", row.out) == 0
    yield (
        row,
        place / "own_variant.py",
        lambda: read_sweep(tmp_path / "three.yaml", row.out.parent)[0],
    )
    importlib.sys.modules.pop("own_variant")


def test_a_script_edited_since_is_not_done(copied):
    row, path, again = copied
    assert is_complete(row) and status(row) == dict(done=1, running=0, skipped=0, missing=0, why="")
    path.write_text(path.read_text() + "# edited\n")
    _, row = again()
    found = status(row)
    assert not is_complete(row) and (found["done"], found["missing"]) == (0, 1)
    assert "own_variant.py was edited since" in found["why"]


def test_a_video_that_was_replaced_is_not_done(copied, tmp_path, script):
    row, _, _ = copied
    manifest = tmp_path / "list.csv"
    source = ROOT / "nano" / "demo" / next((ROOT / "nano" / "demo").glob("*.mp4")).name
    shutil.copy(source, tmp_path / "own.mp4")
    manifest.write_text("filename,caption\nown.mp4,a red ball moves to the left\n")
    flags = [*row.flags, "--videos", manifest, "--out", row.out.with_name("other")]
    assert script(importlib.import_module("own_variant"), *flags) == 0
    text = (
        (tmp_path / "three.yaml").read_text().replace("--steps 1", f"--videos {manifest} --steps 1")
    )
    text = text.replace("name: own", "name: other")
    (_, row), _ = read_sweep(write(tmp_path, text), row.out.parent)
    assert is_complete(row)
    with open(tmp_path / "own.mp4", "ab") as file:
        file.write(b"more")
    assert not is_complete(row) and "another file than there" in status(row)["why"]


def test_damaged_folders_have_nothing_done(copied):
    row, _, _ = copied
    (record,) = (row.out / "videos").glob("*.json")
    whole = record.read_text()
    part = json.dumps(json.loads(whole) | {"losses": None})
    damage = ["[]", "{", "", '{"id": 5}', "[" * 100_000, '{"losses": NaN}']
    for text in (*damage, part):
        record.write_text(text)
        assert not is_complete(row) and status(row)["missing"] == 1
    record.write_text(whole)
    for text in damage:
        (row.out / "config.json").write_text(text)
        assert not is_complete(row) and "config.json is damaged" in status(row)["why"]


def test_reasons_cannot_write_on_the_terminal(copied):
    row, _, _ = copied
    (record,) = (row.out / "videos").glob("*.json")
    skipped = {"id": record.stem, "status": "skipped", "reason": "\x1b[2J\r\nall done"}
    record.write_text(json.dumps(skipped))
    assert status(row)["why"] == r"\x1b[2J\r\nall done"


@pytest.mark.parametrize("text", ["[]", "{", "5", '{"groups1": 5}', '{"groups1": ["5"]}'])
def test_damaged_numbers_of_jobs(text, script, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(runs.identity.ROOT)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "jobs.json").write_text(text)
    flags = ["--nano", "--out", tmp_path / "out", "--slurm", "--dry-run"]
    assert script(sweep, write(tmp_path, THREE), *flags) == 2
    assert "jobs.json: is damaged" in capsys.readouterr().err


WORDS = st.text(max_size=12) | st.sampled_from(
    "{lr} {lr!r} {lr.__class__} {0} {} { } '{a' --lr --groups --help --out ' \" a.py adasteer.py "
    "compare.py .. . report name <<".split(" ")
)
VALUES = st.one_of(WORDS, st.none(), st.booleans(), st.integers(), st.floats())
ANY = st.recursive(
    VALUES, lambda x: st.lists(x, max_size=4) | st.dictionaries(VALUES, x, max_size=3), max_leaves=8
)
OVER = st.dictionaries(WORDS, st.lists(VALUES, max_size=3)) | ANY
ROWS = st.fixed_dictionaries(
    {"name": WORDS, "script": st.sampled_from(["adasteer.py", "delta_c.py", "compare.py"]) | WORDS},
    optional={"flags": st.lists(WORDS, max_size=4).map(" ".join), "over": OVER, "x": ANY},
)
SWEEPS = st.fixed_dictionaries(
    {"baseline": st.just("adasteer.py") | WORDS, "rows": st.lists(ROWS | ANY, max_size=3)},
    optional={"shared": st.lists(WORDS, max_size=4).map(" ".join)},
)


@settings(deadline=None, max_examples=150)
@given(
    text=st.text() | (SWEEPS | ANY).map(lambda content: yaml.safe_dump(content, allow_unicode=True))
)
@example(text="? {a: b}\n: c")
@example(text="!!binary é")
@example(text="!!timestamp x")
@example(text="rows: !!set {1, 2}")
@example(text="9" * 5000)
def test_any_content_gives_rows_or_one_line(text, tmp_path_factory):
    path = tmp_path_factory.mktemp("any") / "any.yaml"
    path.write_bytes(text.encode(errors="surrogatepass"))
    try:
        rows, _ = read_sweep(path, path.parent / "out")
    except common.UsageError as error:
        assert str(path) in str(error) and str(error).isprintable()
    else:
        assert rows and all(row.out.parent == path.parent / "out" for row in rows)
