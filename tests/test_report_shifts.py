"""The tables of a sweep on several shifts: methods down, shifts across."""

import json

import pytest
from folders import change, make_run

from report.across import Across, across
from report.beside import beside_controls
from report.comparison import compare, table
from report.markup import shifts_table
from report.metrics import COMPARED, main_metric
from report.rows import read_row
from report.runs import read_runs
from report.swept import swept_figures
from runs.measures import of_videos

CARRIED = "report_clean_carried (carried over)"
NOTHING, SOME = [0.3, -0.3, 0.2, -0.25] * 3, [0.8, 1.0, 1.2] * 4
MUCH = [2 * x for x in SOME]
FALLS = {  # in per cent of the loss on the true future: of a method, its controls, carried over
    "ada": (MUCH, NOTHING, SOME, SOME), "film": (MUCH, NOTHING, MUCH[::-1], NOTHING),
    "norms": (MUCH, MUCH[::-1], MUCH[1:] + MUCH[:1], SOME), "lora": (NOTHING, NOTHING, SOME, SOME),
}  # fmt: skip
BEATS = {"ada": "random, other", "film": "random, not other", "norms": "no control"}


@pytest.fixture
def sweep(tmp_path):
    """Makes the folder of a sweep with these falls by shift; gives what across() takes."""

    def call(**by_shift):
        rows, found = [], {}
        for shift, falls in by_shift.items():
            base = f"report_{shift}_baseline"
            own = [(base, [0] * 12, {"steps": 0})]
            for i, (name, (alone, random, other, carried)) in enumerate(falls.items()):
                of, lr = f"report_{shift}_{name}", {"lr": 1e-3 * (i + 1)}
                lent = {"adapter": f"{of}/videos", "steps": 0} | lr
                own += [(of, alone, lr), (f"{of}_carried", carried, lr | {"carry_over": 1.0})]
                own += [(f"{of}_random", random, lent | {"control": "random"})]
                own += [(f"{of}_other", other, lent | {"control": "other"})]
            for name, fall, flags in own:
                futures = [0.2 * (1 - x / 100) for x in fall]
                run = make_run(tmp_path / name, [0] * 12, futures=futures, generate=False, **flags)
                config = {"manifest_sha256": shift}
                control_of = name.rpartition("_")[0] if "control" in flags else None
                if control_of:
                    text = (tmp_path / control_of / "config.json").read_text()
                    config |= {"control_of": json.loads(text), "adapter_sha256": name}
                change(run / "config.json", lambda old, new=config: old.update(new))
                over = {"control": flags["control"]} if control_of else {}
                rows.append({
                    "name": name, "baseline": base, "over": over, "template": "{control}",
                    "shift": shift, "control_of": control_of,
                })  # fmt: skip
            runs = [read_row(tmp_path, row) for row in rows if row["shift"] == shift]
            found[base] = compare(runs)
        tables = {n: {main_metric(c): table(c, main_metric(c))} for n, c in found.items()}
        return found, tables, {n: beside_controls(c) for n, c in found.items()}, rows

    return call


@pytest.mark.slow  # bootstraps of many pairs: ten seconds
def test_methods_down_shifts_across(sweep):
    (told,) = across(*sweep(clean=FALLS, **{"dark-3": {"ada": FALLS["norms"]}}))
    names = [f"{name}{end}" for name in FALLS for end in ("", "_carried (carried over)")]
    assert [row["method"] for row in told.readable] == names
    assert list(told.readable[0]) == ["method", "clean, 12 sources", "dark-3, 12 sources"]
    shown = {row["method"]: row["clean, 12 sources"] for row in told.readable}
    for name, beats in BEATS.items():
        assert shown[name].startswith("+2.00 % (+1.") and shown[name].endswith(f", beats {beats}")
    assert "beats" not in shown["lora"] and shown["lora"].startswith("-0.01 % (-0.")
    assert "beats" not in shown["ada_carried (carried over)"]
    assert told.cells["ada"]["dark-3"]["beats"] == [] and "dark-3" not in told.cells["film"]
    assert told.readable[2]["dark-3, 12 sources"] == ""


def test_what_was_carried_over_is_shown_before_adapting_to_a_video_too(tmp_path):
    """Of it alone: of the others, controls too, there is no such score."""
    rows, found = [], []
    for name, loss, online, flags in (
        ("baseline", 0.2, 0.2, {"steps": 0}), ("alone", 0.19, 0.2, {"lr": 1e-3}),
        ("carried", 0.19, 0.195, {"lr": 1e-3, "carry_over": 1.0}),
        ("random", 0.21, 0.21, {"steps": 0, "control": "random", "adapter": "x/videos"}),
    ):  # fmt: skip
        name = f"report_clean_{name}"
        run = make_run(tmp_path / name, [0] * 12, futures=[loss] * 12, generate=False, **flags)
        said = of_videos([], "carry_over" in flags)
        change(run / "config.json", lambda old, new=said: old.update(metrics=new))
        for path in (run / "videos").glob("*.json"):
            change(path, lambda old, new=online: old.update(future_loss_online=new))
        rows.append({"name": name, "shift": "clean", "template": name})
        found.append(run)
    comparison = compare(read_runs(found))
    tables = {metric: table(comparison, metric) for metric in comparison.metrics.values()}
    for metric in tables:
        if metric == "future_loss_online":
            assert [row["method"] for row in tables[metric] if row["gain"]] == [CARRIED]
    after, before = across({"a": comparison}, {"a": tables}, {"a": []}, rows)
    assert after.metric == "future_loss" and before.metric == "future_loss_online"
    assert before.cells.keys() == {"carried (carried over)"} < after.cells.keys()
    assert before.cells["carried (carried over)"]["clean"]["gain"] == pytest.approx(2.5)
    assert "The number of cells, 1, is" in before.about


def test_the_pages_cells_have_the_colour_of_the_gain():
    ends = {"sources": 12, "beats": None, "level": None}
    cells = {
        "a<b": {
            "clean": ends
            | {"gain": 2, "low": 1, "high": 3, "beats": ["random"], "level": ["other"]}
        },
        "film": {"clean": ends | {"gain": -2, "low": -3, "high": -1}},
        "lora": {"dark-3": ends | {"gain": 2, "low": -1, "high": 3}},
    }
    metric = next(m for m in COMPARED if m == "future_loss")
    html = shifts_table(Across(metric, cells))
    good = "+2.00 % (+1.00 to +3.00)<br>beats random, not other"
    assert f'a&lt;b</td><td><span class="good">{good}</span></td><td></td>' in html
    assert '<span class="bad">-2.00 % (-3.00 to -1.00)</span>' in html
    assert '<td></td><td><span class="">+2.00 % (-1.00 to +3.00)</span></td>' in html


def test_controls_are_no_figure_and_without_shifts_there_is_no_table(sweep):
    comparisons, tables, controls, rows = sweep(clean={"ada": FALLS["ada"]})
    for plain in ([row | {"shift": ""} for row in rows], [{"name": row["name"]} for row in rows]):
        assert across(comparisons, tables, controls, plain) == []
    metric = next(iter(tables["report_clean_baseline"]))
    assert swept_figures(comparisons, rows, metric) == []
    counted = [row | {"control_of": None} for row in rows]
    assert len(swept_figures(comparisons, counted, metric)) == 1
