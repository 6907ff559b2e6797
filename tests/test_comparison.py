"""Which runs are compared, at which seeds, and what a reader is told of the others."""

import csv
import json

import numpy as np
import pytest
from folders import change, make_run, runs_in

import compare as compare_script
from common.errors import UsageError
from report import figures
from report.comparison import compare, table
from report.swept import swept_figures
from report.table import readable

EDITED = "f" * 64


@pytest.fixture
def runs(tmp_path):
    return runs_in(tmp_path)


@pytest.fixture
def report(tmp_path, script, capsys):
    """Calls compare.py; gives the texts of its folder and what it printed."""

    def call(*flags):
        assert script(compare_script, *flags, "--out", tmp_path / "report", "--show", 0) == 0
        files = ("index.html", "table.md", "table.csv", "results.json")
        found = {name: (tmp_path / "report" / name).read_text() for name in files}
        return found | {"printed": capsys.readouterr().out}

    return call


@pytest.mark.parametrize("metric", ["lpips", "flow_error_px", "warping_error"])
def test_an_error_that_falls_is_a_gain(metric, tmp_path, report):
    names = [
        make_run(tmp_path / "base", [0] * 9, steps=0), make_run(tmp_path / "run", [0] * 9)
    ]  # fmt: skip
    for i in range(9):
        for name, value in zip(names, (0.5, 0.4 - 0.01 * i), strict=True):
            change(name / "videos" / f"v{i:03d}.json", lambda r, v=value: r.update({metric: v}))
    found = report(*names)
    _, run = json.loads(found["results.json"])["comparisons"]["runs"]["tables"][metric]
    assert run["gain"] == pytest.approx(0.14) and run["low"] > 0
    assert run["improved"] == 1 and run["worst"] == []
    assert f"## {metric} (lower is better)" in found["table.md"]
    page = found["index.html"].partition(f"<summary>{metric} (lower is better)</summary>")[2]
    assert '<span class="good">+0.140</span>' in page.partition("</details>")[0]
    assert "psnr_db (higher is better)" in found["table.md"]
    assert "psnr_db (lower" not in found["index.html"] + found["table.md"]


def test_means_are_over_the_seeds_that_all_share(runs):
    """A seed that only the baseline has moves nothing, nor does one that only a method has."""
    found = runs(
        ("base_1", [0, 0], {"steps": 0, "seed": 1}),
        ("base_2", [0, 0], {"steps": 0, "seed": 2}),
        ("base_3", [90, None], {"steps": 0, "seed": 3}),
        ("run_1", [1, 2], {"seed": 1}),
        ("run_2", [3, 4], {"seed": 2}),
        ("other_2", [7, 8], {"seed": 2, "lr": 0.5}),
        ("other_4", [70, None], {"seed": 4, "lr": 0.5}),
    )
    for run in found[:3]:
        for record in run.done.values():
            record["references"]["repeat_last"] = {"psnr_db": 10.0 * run.seed}
    comparison = compare(found)
    base, run, other, last = table(comparison, "psnr_db")
    assert [m.seeds for m in (comparison.baseline, *comparison.methods)] == [[2]] * 3
    assert (base["mean"], run["mean"], other["mean"], last["mean"]) == (20.5, 24, 28, 20)
    assert (run["gain"], other["gain"]) == (3.5, 7.5) and run["noise"] is None
    notes = "\n".join(comparison.notes)
    assert "base_* has results of the seeds 1, 2, 3; compared at 2, which all have" in notes
    assert "run_* has results of the seeds 1, 2; compared at 2" in notes
    assert "other_* has results of the seeds 2, 4; compared at 2" in notes
    base, run = table(compare(found[:5]), "psnr_db")[:2]
    assert base["mean"] == 20.5 and run["mean"] - base["mean"] == run["gain"] == 2.5
    assert base["noise"] == 0 and run["noise"] == pytest.approx(2**0.5)


def test_a_number_in_the_name_that_only_one_seed_is_like_stays(runs):
    found = [
        (f"dark-3_{name}_seed{seed}", [0.5] * 8, {"seed": seed, "steps": steps})
        for name, steps in (("base", 0), ("ada", 5))
        for seed in (1, 3)
    ]
    comparison = compare(runs(*found))
    assert comparison.baseline.name == "dark-3_base_seed*"
    assert [method.name for method in comparison.methods] == ["dark-3_ada_seed*"]


def test_a_seed_without_results_is_none(runs):
    found = runs(
        ("base_1", [0, 0], {"steps": 0, "seed": 1}),
        ("base_2", [None, None], {"steps": 0, "seed": 2}),
        ("run_1", [1, 2], {"seed": 1}),
        ("run_2", [7, 8], {"seed": 2}),
    )
    comparison = compare(found)
    assert table(comparison, "psnr_db")[1]["gain"] == pytest.approx(1.5)
    assert "base_2 lacks 2 videos: too short" in comparison.notes


def test_no_common_seed_is_refused(runs):
    found = runs(
        ("base_1", [0], {"steps": 0, "seed": 1}),
        ("base_2", [0], {"steps": 0, "seed": 2}),
        ("run", [1], {"seed": 1}),
        ("other", [1], {"seed": 2, "lr": 0.5}),
    )
    with pytest.raises(UsageError, match="base_. has 1, 2; run has 1; other has 2"):
        compare(found)


def test_a_copied_script_is_another_method(runs):
    """`cp adasteer.py my_variant.py`, with the class left as it is called."""
    found = runs(
        ("base", [0, 0], {"steps": 0}),
        ("run", [1, 1], {}),
        ("mine", [-1, -1], {"script": "my_variant", "script_sha256": EDITED}),
    )
    comparison = compare(found)
    gains = {row["method"]: row["gain"] for row in table(comparison, "psnr_db")}
    assert (gains["run"], gains["mine"]) == (1, -1)
    assert "edited" not in "\n".join(comparison.notes)


def test_an_edited_script_is_another_method(runs):
    """Never a further seed of the one before."""
    mine = {"script": "mine"}
    found = runs(
        *((f"base_{i}", [0, 0], {"steps": 0, "seed": i}) for i in (1, 2)),
        *((f"run_{i}", [1, 1], mine | {"seed": i}) for i in (1, 2)),
        *(
            (f"new/run_{i}", [-1, -1], mine | {"seed": i, "script_sha256": EDITED})
            for i in (1, 2)
        ),
    )  # fmt: skip
    comparison = compare(found)
    gains = {m.name: comparison.gains(m, "psnr_db", ["v000"])[0] for m in comparison.methods}
    assert len(gains) == 2 and sorted(gains.values()) == [-1, 1]
    assert "run_* and new/run_*: mine.py was edited between" in "\n".join(comparison.notes).replace(
        "runs_/", ""
    )
    with pytest.raises(UsageError, match="run_1 has 1; .*run_2 has 2; .*mine.py was edited"):
        compare([*found[:3], found[5]])


def test_versions_of_one_name_are_told_apart(runs):
    """Seeds 1 and 2 before the edit, 3 and 1 after it: both would be called run_*."""
    found = runs(
        ("base", [0], {"steps": 0, "seed": 1}),
        ("run_1", [1], {"seed": 1}),
        ("run_2", [1], {"seed": 2}),
        ("run_3", [2], {"seed": 3, "script_sha256": EDITED}),
        ("run_11", [2], {"seed": 1, "script_sha256": EDITED}),
    )
    found[4] = found[4].__class__(**{**vars(found[4]), "name": "run_1"})
    methods = compare(found).methods
    assert [m.name for m in methods] == ["run_*", "run_1 run_3"]


def test_other_code_below_the_scripts_is_noted(runs):
    found = runs(("base", [0, 0], {"steps": 0}), ("run", [1, 1], {}))
    assert "source_sha256" not in "\n".join(compare(found).notes)
    found[1].done["v001"]["source_sha256"] = "1" * 64
    notes = "\n".join(compare(found).notes)
    assert "was not the same (source_sha256): base eeee" in notes
    assert f"run {'1' * 12} and {'e' * 12}" in notes
    found[1].done["v001"].pop("source_sha256")
    found[1].config["source_sha256"] = "2" * 64
    assert f"run {'2' * 12}" in "\n".join(compare(found).notes)


def test_lpips_of_other_weights_is_not_compared(tmp_path, report):
    names = [make_run(tmp_path / "base", [0], steps=0), make_run(tmp_path / "run", [1])]
    for name in names:
        change(name / "videos" / "v000.json", lambda record: record.update(lpips=0.2))
    for name, digest in zip(names, "xy", strict=True):
        change(name / "config.json", lambda c, d=digest: c.update(lpips_sha256=d * 64))
    found = report(*names)
    tables = json.loads(found["results.json"])["comparisons"]["runs"]["tables"]
    assert tables["lpips"] == [] and len(tables["psnr_db"]) == 2
    assert "lpips is not compared: the runs have different weights" in found["printed"]
    assert "<p>lpips: the runs have different weights" in found["index.html"]
    change(names[0] / "config.json", lambda config: config.update(lpips_sha256=None))
    tables = json.loads(report(*names)["results.json"])["comparisons"]["runs"]["tables"]
    assert len(tables["lpips"]) == 2


def bars(svg):
    """Error bars in a figure."""
    return svg.count("LineCollection")


@pytest.mark.parametrize("sources", [7, 8])
def test_few_sources_have_no_interval_anywhere(sources, runs):
    clusters = [f"s{i % sources}" for i in range(16)]
    gains = list(np.random.default_rng(0).normal(1, 0.5, 16))
    found = runs(
        ("base", [0] * 16, {"steps": 0, "sources": clusters}),
        ("run", gains, {"sources": clusters}),
    )
    comparison = compare(found)
    base, run = readable(table(comparison, "psnr_db"))
    assert base["sources"] == run["sources"] == sources and base["95 %"] == ""
    assert float(run["p"]) == pytest.approx(2 / 2**sources, rel=1e-2)
    assert run["smallest p"] == run["p"]
    rows = [{"name": "run", "template": "run{a}", "over": {"a": 1}}]
    rows.append(rows[0] | {"name": "other", "over": {"a": 2}})
    drawn = [figures.quality_against_cost(comparison, "psnr_db")]
    other = compare(runs_again(found, "other"))
    drawn += [svg for _, svg in swept_figures({"a": comparison, "b": other}, rows, "psnr_db")]
    assert len(drawn) == 2
    if sources < 8:
        assert run["95 %"] == "too few" and [bars(svg) for svg in drawn] == [0, 0]
    else:
        assert " to " in run["95 %"] and all(bars(svg) for svg in drawn)


def runs_again(found, name):
    base, run = found
    return [base, run.__class__(**{**vars(run), "name": name})]


def test_tables_say_how_many_sources_and_what_p_asks(tmp_path, report, capsys, script):
    names = [
        make_run(tmp_path / "base", [0] * 4, steps=0), make_run(tmp_path / "run", [1, 2, 3, 4])
    ]  # fmt: skip
    found = report(*names)
    _, run = json.loads(found["results.json"])["comparisons"]["runs"]["tables"]["psnr_db"]
    assert run["sources"] == 4 and run["smallest_p"] == run["p"] == 0.125 and run["low"] is None
    rows = list(csv.DictReader(found["table.csv"].splitlines()))
    assert {row["sources"] for row in rows} == {"4"}
    for text in (found["index.html"], found["table.md"], found["printed"]):
        assert "too few" in text and "symmetrically" in text and "where the mean" in text
    assert script(compare_script, "--help") == 0
    assert "symmetrically" in capsys.readouterr().out
