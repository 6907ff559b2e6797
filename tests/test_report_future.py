"""The report on the loss on the true future, on several samples, and without pictures."""

import csv
import json
import re

import numpy as np
import pytest
from folders import change, make_run, runs_in

import compare as compare_script
from report import curves, figures
from report.comparison import compare, table
from report.metrics import COMPARED, main_metric
from report.predict import lines, predict
from runs.measures import OF_VIDEOS

GAINS = [0.5, -1.0] * 6  # in dB
BEFORE, AFTER = [0.2] * 12, [0.19, 0.18, 0.22] * 4


@pytest.fixture
def runs(tmp_path):
    return runs_in(tmp_path)


@pytest.fixture
def report(tmp_path, script, capsys):
    """Compares a baseline with a run of the same further arguments; the texts of the report."""

    def call(before, after, *flags, **arguments):
        base = make_run(tmp_path / "base", [0] * 12, 0, futures=before, **arguments)
        run = make_run(tmp_path / "run", GAINS, futures=after, **arguments)
        assert script(compare_script, base, run, *flags, "--out", tmp_path / "report") == 0
        files = ("index.html", "table.md", "table.csv", "results.json")
        found = {name: (tmp_path / "report" / name).read_text() for name in files}
        return found | {"printed": capsys.readouterr().out}

    return call


@pytest.mark.parametrize("metric", COMPARED)
def test_what_is_better_is_declared_by_the_run(metric, runs):
    base, run = runs(("base", [0, 0], {"steps": 0}), ("run", [0, 0], {}))
    for record in base.done.values():
        record[metric] = 2.0
    for record in run.done.values():
        record[metric] = 1.0
    declared = {"lower": 1, "higher": -1}
    for better in declared:
        run.config["metrics"] = {metric: OF_VIDEOS[metric] | {"better": better}}
        gain = table(compare([base, run]), metric)[1]["gain"]
        assert gain == declared[better] * (50 if metric == "future_loss" else 1)


def test_gains_in_future_loss_are_relative(report):
    found = report(BEFORE, AFTER)
    tables = json.loads(found["results.json"])["comparisons"]["runs"]["tables"]
    base, run = tables["future_loss"][:2]
    assert run["gain"] == pytest.approx((5 + 10 - 10) / 3) and run["gain_unit"] == "%"
    assert run["low"] < run["gain"] < run["high"] and run["improved"] == pytest.approx(2 / 3)
    assert (base["mean"], run["mean"]) == pytest.approx((0.2, 0.59 / 3))
    assert run["worst"] == ["v002", "v005", "v008", "v011"]
    rows = list(csv.DictReader(found["table.csv"].splitlines()))
    assert {row["metric"] for row in rows if row["gain_unit"] == "%"} == {"future_loss"}
    for text in (found["index.html"], found["table.md"], found["printed"]):
        assert "future_loss (lower is better, gains in %)" in text and "+1.667 %" in text
    assert "gain, future_loss, %" in found["index.html"]


def test_gains_are_relative_to_the_baseline_at_the_same_seed(runs):
    found = runs(
        *((f"base_{i}", [0], {"steps": 0, "seed": i, "futures": [0.1 * i]}) for i in (1, 2)),
        *((f"run_{i}", [0], {"seed": i, "futures": [0.09 * i]}) for i in (1, 2)),
    )
    _, run = table(compare(found), "future_loss")
    assert run["gain"] == pytest.approx(10) and run["noise"] == pytest.approx(0)


def test_a_video_without_loss_has_no_relative_change(runs):
    found = runs(
        ("base", [0] * 3, {"steps": 0, "futures": [0.0, 0.2, 0.2]}),
        ("run", [1] * 3, {"futures": [0.1, 0.1, 0.0]}),
    )
    with np.errstate(all="raise"):
        base, run = table(compare(found), "future_loss")
    assert (base["videos"], run["videos"], run["gain"]) == (2, 2, 75)


def test_future_loss_leads(report):
    samples = {"kernel_score": 0.01, "energy_score": 0.1}
    found = report(BEFORE, AFTER, samples=samples)
    order = re.findall(r"^## (\w+)", found["table.md"], re.MULTILINE)
    assert order[:5] == ["future_loss", "kernel_score", "energy_score", "psnr_db", "ssim"]
    page = found["index.html"]
    assert re.findall(r"<details open><summary>(\w+)", page) == ["future_loss"]
    assert "\n\nfuture_loss (" in found["printed"] and "psnr_db" not in found["printed"]
    assert "gain, psnr_db" not in page.replace(">gain, psnr_db</text>", "", 1)  # two answers
    videos = page.partition('<section id="0-videos">')[2]
    assert re.search('<td data-value="5[.][^>]*>[+]5.000</td><td data-value="0.2">0.200<', videos)


def test_without_it_in_every_run_psnr_leads(runs, report):
    whole, other, without = runs(
        ("a", [0] * 2, {"steps": 0, "futures": [0.2] * 2}),
        ("b", [1] * 2, {"futures": [0.1] * 2}),
        ("c", [1] * 2, {"lr": 1}),
    )
    assert main_metric(compare([whole, other])) == "future_loss"
    assert main_metric(compare([whole, other, without])) == "psnr_db"
    assert main_metric(compare([whole, other]), compare([whole, without])) == "psnr_db"
    found = report(None, None)
    assert "<details open><summary>psnr_db (higher is better)" in found["index.html"]
    assert "gain, psnr_db" in found["index.html"] and "+" in found["printed"]
    assert "lost its spread" in found["printed"] and "both better" not in found["index.html"]


def test_the_spread_stands_beside_the_kernel_score(tmp_path, report):
    found = report(BEFORE, AFTER, samples={"kernel_score": 0.01, "sample_variance": 0.004})
    assert (
        "| spread_ratio |" in found["table.md"] and found["table.md"].count("| spread_ratio") == 1
    )
    for path in tmp_path.glob("run/videos/*.json"):
        change(path, lambda record: record.update(sample_variance=0.003))
    _, run = table(compare_again(tmp_path), "kernel_score")
    assert run["spread_ratio"] == pytest.approx(0.75)
    assert table(compare_again(tmp_path), "psnr_db")[1]["spread_ratio"] is None
    for path in tmp_path.glob("base/videos/*.json"):
        change(path, lambda record: record.update(sample_variance=0))
    assert table(compare_again(tmp_path), "kernel_score")[1]["spread_ratio"] is None


def compare_again(folder):
    return compare(compare_script.read_runs([folder / "base", folder / "run"]))


def test_psnr_says_what_it_is(report):
    found = report(BEFORE, AFTER)
    for text, head in (
        (found["table.md"], "## psnr_db"),
        (found["index.html"], "<summary>psnr_db"),
    ):
        assert "lost its spread" in text.partition(head)[2][:200]


def test_two_answers_are_counted(runs):
    """Videos by quadrant: the true future is predicted better or not, PSNR gains or not."""
    found = runs(
        ("base", [0] * 7, {"steps": 0, "futures": [0.2] * 7}),
        ("run", [1, 1, 1, 1, -1, -1, -1], {"futures": [0.1, 0.3, 0.3, 0.3, 0.1, 0.1, 0.3]}),
        ("other", [1] * 7, {"lr": 1, "futures": [0.1] * 7}),
    )
    svg = figures.one_against_other(compare(found))
    for words in ("1 both better", "2 future_loss only", "3 psnr_db only", "1 neither"):
        assert svg.count(f">{words}<") == 1
    assert svg.count(">7 both better<") == 1 and ">gain, future_loss, %<" in svg
    for record in found[0].done.values():
        record["psnr_db"] = None
    assert figures.one_against_other(compare(found)) is None


@pytest.mark.parametrize("count", [1, 4, 5, 9])
def test_two_answers_of_many_methods(count, runs):
    found = runs(
        ("base", [0], {"steps": 0, "futures": [0.2]}),
        *((f"run{i}", [1], {"lr": i, "futures": [0.1]}) for i in range(count)),
    )
    assert figures.one_against_other(compare(found)).count("1 both better") == count


@pytest.fixture
def panels(monkeypatch):
    """The axes of the learning curves by title."""

    def call(comparison):
        figure = curves.learning_curves(comparison)
        return {axis.get_title(): axis for axis in figure.axes} if figure else {}

    monkeypatch.setattr(curves, "as_svg", lambda figure: figure)
    return call


def points(axis, marker):
    kept = [line for line in axis.lines if line.get_marker() == marker]
    return [list(map(tuple, line.get_xydata())) for line in kept]


def test_learning_curves(runs, panels):
    base, run = runs(
        ("base", [0] * 2, {"steps": 0, "futures": [0.2] * 2}),
        ("run", [0] * 2, {"steps": 3, "futures": [0.1, 0.2]}),
    )
    run.done["v000"]["stop_step"] = 2
    run.done["v001"]["anchor_losses"] = [[0, 0.7], [2, 0.6]]
    held_in, held_out, future = panels(compare([base, run])).values()
    (means,) = points(held_in, ".")
    assert means == [(1, 0.5), (3, pytest.approx(0.4))]
    assert points(held_out, ".") == [[(0, pytest.approx(0.6)), (2, pytest.approx(0.5))]]
    assert points(held_out, "o") == [[(2, pytest.approx(0.5))]]
    (means,) = points(future, ".")
    assert means == [(0, 0.2), (2, pytest.approx(0.175)), (4, pytest.approx(0.15))]
    run.done["v000"]["stop_step"] = None
    run.done["v000"]["anchor_losses"].append([4, None])
    _, held_out, _ = panels(compare([base, run])).values()
    assert len(points(held_out, ".")[0]) == 2 and points(held_out, "o") == []
    assert points(future, "o") == [[(2, pytest.approx(0.175))]]


def test_a_stopped_video_goes_on_with_what_was_kept(runs, panels):
    """Else the mean would be that of the videos left over."""
    base, run = runs(
        ("base", [0] * 2, {"steps": 0, "futures": [0.2] * 2}),
        ("run", [0] * 2, {"futures": [0.1, 0.1]}),
    )
    run.done["v000"] |= {
        "stop_step": 2, "anchor_losses": [[0, 0.2], [1, 0.1], [2, 0.3]],
        "future_losses": [[1, 0.15], [2, 0.4]], "future_loss": 0.15,
    }  # fmt: skip
    run.done["v001"] |= {
        "anchor_losses": [[i, 0.9] for i in range(4)],
        "future_losses": [[i, 0.9] for i in range(1, 4)],
    }
    _, held_out, future = panels(compare([base, run])).values()
    assert points(held_out, ".")[0][-2:] == [(2, pytest.approx(0.6)), (3, pytest.approx(0.5))]
    assert points(future, ".")[0][-2:] == [(2, pytest.approx(0.65)), (3, pytest.approx(0.525))]


def test_learning_curves_without_data_are_left_out(runs, panels):
    base, run = runs(("base", [0], {"steps": 0}), ("run", [0], {"futures": [0.1]}))
    record = run.done["v000"]
    record["anchor_losses"] = []
    assert list(panels(compare([base, run]))) == ["draws of each update (held in)", "true future"]
    record["future_losses"] = []
    assert len(panels(compare([base, run]))) == 1
    record["losses"] = []
    assert panels(compare([base, run])) == panels(compare([base])) == {}


def test_parts_of_the_future(runs, monkeypatch):
    found = runs(
        ("base", [0] * 2, {"steps": 0, "futures": [0.2] * 2}),
        ("run", [0] * 2, {"futures": [0.1, 0.3]}),
    )
    for record in found[1].done.values():
        record["future_loss_per_latent"] = [0.05, 0.2, None]
        record["future_loss_per_sigma"] = None
    monkeypatch.setattr(curves, "as_svg", lambda figure: figure)
    (frames,) = curves.parts_of_the_future(compare(found)).axes
    assert points(frames, ".") == [[(1, pytest.approx(50)), (2, pytest.approx(0))]]
    for record in found[1].done.values():
        record["future_loss_per_latent"], record["future_loss_per_sigma"] = None, [0.3] * 5
    (levels,) = curves.parts_of_the_future(compare(found)).axes
    assert [x for x, _ in points(levels, ".")[0]] == [0.1, 0.25, 0.5, 0.75, 0.9]
    for record in found[1].done.values():
        record["future_loss"] = None
    assert curves.parts_of_the_future(compare(found)) is None


@pytest.mark.parametrize(("count", "bands"), [(8, 2), (7, 0)])
def test_parts_of_the_future_have_bands_over_sources(count, bands, runs):
    changes = [0.01 * i for i in range(count)]
    found = runs(
        ("base", [0] * count, {"steps": 0, "futures": [0.2] * count}),
        ("run", [0] * count, {"futures": [0.2 - change for change in changes]}),
    )
    svg = curves.parts_of_the_future(compare(found))
    assert svg.count('id="FillBetweenPolyCollection') == bands


@pytest.mark.filterwarnings("error")
def test_runs_without_pictures(report):
    found = report(BEFORE, AFTER, "--predict", generate=False)
    order = re.findall(r"^## (\w+)", found["table.md"], re.MULTILINE)
    assert order == ["future_loss", "settings"]
    page = found["index.html"]
    for words in ("side by side", "No video to show", "cannot be shown", "both better", "mp4"):
        assert words not in page
    assert page.count("ot measured") == 1 and "kernel_score, energy_score, psnr_db, ssim" in page
    assert found["table.md"].count("ot measured") == 1
    headings = re.findall(r"<section [^>]*><h2>([^<]*)</h2>(.{9})", page, re.DOTALL)
    assert [name for name, _ in headings][:3] == ["result", "settings", "learning"]
    result = json.loads(found["results.json"])["comparisons"]["runs"]["predictions"]["run"]
    assert "preflight loss" in result["features"] and "motion" not in result["features"]


def test_predictions_are_of_the_main_metric(runs):
    generator = np.random.default_rng(0)
    losses = list(0.2 + 0.02 * generator.normal(size=20))
    found = runs(
        ("base", [0] * 20, {"steps": 0, "futures": [0.2] * 20, "generate": False}),
        ("run", [0] * 20, {"futures": losses, "generate": False}),
    )
    comparison = compare(found)
    result = predict(comparison, comparison.methods[0], main_metric(comparison))
    always = result["rules"]["always"]["gain"]
    assert always == pytest.approx(100 * np.mean((0.2 - np.array(losses)) / 0.2))
    shown = lines(result)
    assert shown[0]["gain"] == f"{always:+.3f} %" and all(" %" in row["95 %"] for row in shown)


def test_sweeps_draw_future_loss(tmp_path, script):
    make_run(tmp_path / "base", [0] * 2, 0, futures=[0.2] * 2)
    rows = [{"name": "base", "baseline": None, "over": {}, "template": "base"}]
    for lr in (1, 2):
        make_run(tmp_path / f"run{lr}", [-1] * 2, lr=lr, futures=[0.1 * lr] * 2)
        rows.append({"name": f"run{lr}", "over": {"lr": lr}, "template": "run{lr}"})
    (tmp_path / "sweep.json").write_text(json.dumps({"rows": rows}))
    assert script(compare_script, "--sweep", tmp_path, "--out", tmp_path / "report") == 0
    page = (tmp_path / "report" / "index.html").read_text()
    assert "gain, future_loss, %" in page.partition('<section id="swept-0">')[2].partition("<h1")[0]
