"""What the report says first: a sentence for each method, in every case; and the settings."""

import re
import warnings

import pytest
from folders import FLAGS, change, make_run, runs_in

import compare as compare_script
from report.comparison import compare, table
from report.metrics import COMPARED
from report.runs import read_runs
from report.settings import settings
from report.verdict import outcome, verdicts

SPREAD = [0.8, 1.0, 1.2]
LOSS = "the loss on the true future"


@pytest.fixture
def runs(tmp_path):
    return runs_in(tmp_path)


@pytest.fixture
def said(runs):
    """The sentences on a run whose losses fall by so many per cent, or that has none."""

    def call(falls, gains=None, repeated=None, sources=None):
        count = len(falls or gains)
        flags = {"sources": sources}
        before, after = {}, {}
        if falls:
            before = {"futures": [0.2] * count}
            after = {"futures": [0.2 * (1 - fall / 100) for fall in falls]}
        base, run = runs(
            ("base", [0] * count, {"steps": 0, **flags, **before}),
            ("run", gains or [0] * count, {**flags, **after}),
        )
        for record in base.done.values() if repeated else ():
            record["references"]["repeat_last"] = {"psnr_db": repeated}
        return sentences([base, run])

    return call


def sentences(found):
    return [verdict.sentence for verdict in verdicts(tables_of(found))]


def tables_of(found):
    return {metric: table(compare(found), metric) for metric in COMPARED}


def test_it_helps(said):
    (sentence,) = said([2 * x for x in SPREAD * 4], repeated=32.4)
    assert re.fullmatch(
        rf"run helps: {LOSS} falls by 2\.0 % \(95 %: 1\.\d to 2\.\d\), better on 100 % of 12 videos"
        r" of 12 sources; repeating the last frame still has .* dB more PSNR\.",
        sentence,
    )


def test_it_harms(said):
    (sentence,) = said([-5 * x for x in SPREAD * 4])
    words = rf"run harms: {LOSS} rises by 5\.0 % \(95 %: 4\.\d to 5\.\d\), better on 0 % of"
    assert re.match(words, sentence)


def test_large_numbers_are_written_out(said):
    (sentence,) = said([-1500 * x for x in SPREAD * 4])
    words = rf"run harms: {LOSS} rises by 1,500 % \(95 %: 1,\d\d\d to 1,\d\d\d\),"
    assert re.match(words, sentence)


def test_nothing_can_be_told(said):
    (sentence,) = said([3, -2, 1.2, -1] * 4, sources=[f"s{i % 8}" for i in range(16)])
    assert re.fullmatch(
        rf"run makes no difference that can be told: {LOSS} falls by 0\.3 % \(95 %: from a rise of"
        r" \d\.\d to a fall of \d\.\d\), better on 50 % of 16 videos of 8 sources\.",
        sentence,
    )


def test_nothing_moves(said):
    (sentence,) = said([0] * 9)
    assert sentence.startswith(f"run makes no difference that can be told: {LOSS} does not change")
    assert "95 %" not in sentence


@pytest.mark.parametrize("count", [1, 7])
def test_too_few_sources(said, count):
    (sentence,) = said([2] * 7, sources=[f"s{i % count}" for i in range(7)])
    assert sentence == (
        f"run: too few sources to say ({count}; an interval needs 8): {LOSS} falls by 2.0 %, "
        f"better on 100 % of 7 videos of {count} source{'s' if count > 1 else ''}."
    )


def test_without_the_loss_psnr_answers_and_says_so(said):
    (sentence,) = said(None, gains=[0.5 * x for x in SPREAD * 4])
    assert re.match(
        rf"run helps: {LOSS} was not measured in all runs; PSNR rises by 0\.50 dB \(95 %: 0\.\d\d "
        r"to 0\.\d\d\), better on 100 % of 12 videos of 12 sources\.",
        sentence,
    )


def test_a_psnr_that_says_the_opposite_is_told(said):
    (sentence,) = said([2 * x for x in SPREAD * 4], gains=[-0.4 * x for x in SPREAD * 4])
    words = r"; but PSNR falls by 0\.40 dB \(95 %: 0\.3\d to 0\.4\d\): the two "
    assert sentence.startswith("run helps") and re.search(words + r"disagree\.$", sentence)


@pytest.mark.parametrize("fall", [2, -2])
def test_a_psnr_that_agrees_or_cannot_tell_is_not_told(fall, said):
    gains = [-0.4 * x for x in SPREAD * 4] if fall < 0 else [-0.4, 0.4] * 6
    (sentence,) = said([fall * x for x in SPREAD * 4], gains=gains)
    assert ("helps" if fall > 0 else "harms") in sentence and "PSNR" not in sentence


@pytest.mark.parametrize(
    ("repeated", "words"),
    [
        (22.4, "; repeating the last frame still has 2.4 dB more PSNR."),
        (19.2, "; its PSNR is 0.80 dB above that of repeating the last frame."),
    ],
)
def test_the_last_frame_repeated_stands_beside_it(repeated, words, runs):
    base, run = runs(
        ("base", [0], {"steps": 0, "futures": [0.2]}), ("run", [0], {"futures": [0.1]})
    )
    base.done["v000"]["references"]["repeat_last"] = {"psnr_db": repeated}
    (sentence,) = sentences([base, run])
    assert sentence.endswith(words)


def test_a_sentence_for_each_method_comes_first(tmp_path, script, capsys):
    """Of what is printed, of table.md and of the page; colours only where the interval has one."""
    falls = {"good": 0.19, "unclear": None, "bad": 0.22}
    names = [make_run(tmp_path / "base", [0] * 12, 0, futures=[0.2] * 12)]
    for lr, (name, loss) in enumerate(falls.items()):
        losses = [loss] * 12 if loss else [0.19, 0.208] * 6
        names.append(make_run(tmp_path / name, [0] * 12, lr=lr, futures=losses))
    assert script(compare_script, *names, "--out", tmp_path / "report", "--show", 0) == 0
    heads = ["good helps", "unclear makes no difference", "bad harms"]
    printed = capsys.readouterr().out.splitlines()
    lines = (tmp_path / "report" / "table.md").read_text().splitlines()
    for head, one, other in zip(heads, printed, lines, strict=False):
        assert one.startswith(head) and other == f"- {one}"
    page = (tmp_path / "report" / "index.html").read_text()
    first = page.partition("<h1>")[2].partition("<nav>")[0]
    assert re.findall(r'<li class="(\w*)"><strong>(\w+)', first) == [
        ("good", "good"),
        ("", "unclear"),
        ("bad", "bad"),
    ]
    rows = page.partition("<details open>")[2].partition("</details>")[0]
    assert re.findall(r'<span class="(\w*)">([+-]\d)', rows)[::2] == [
        ("good", "+5"),
        ("", "+0"),
        ("bad", "-1"),
    ]
    assert "excludes zero" in page


def test_outcomes_of_every_table_follow_the_interval():
    rows = [(0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1), (0.0, 0.1), (None, None)]
    found = [outcome({"gain": 0.1, "low": low, "high": high}) for low, high in rows]
    assert found == ["helps", "harms", "cannot be told", "cannot be told", "too few sources"]
    assert outcome({"gain": None, "low": None, "high": None}) is None


@pytest.mark.parametrize("generate", [True, False])
def test_a_baseline_alone(generate, tmp_path, script, capsys):
    base = make_run(tmp_path / "base", [0] * 3, 0, futures=[0.2] * 3, generate=generate)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert script(compare_script, base, "--out", tmp_path / "report", "--predict") == 0
    said = capsys.readouterr()
    assert (
        said.out.startswith("Nothing to compare base with: there are no results") and not said.err
    )
    page = (tmp_path / "report" / "index.html").read_text()
    assert "<svg" not in page and "No video to show" not in page and "parameters" not in page
    assert re.findall(r"<section [^>]*><h2>([^<]*)", page)[:2] == ["result", "settings"]


def test_a_baseline_has_no_parameters(runs):
    base, run = tables_of(runs(("base", [0], {"steps": 0}), ("run", [1], {})))["psnr_db"]
    assert base["parameters"] is None and run["parameters"] == 64


def test_settings_are_those_that_differ(runs):
    groups = {"groups": 4, "antithetic": True, "stop_sigmas": [0.25, 0.5]}
    base, first, second = settings(
        compare(
            runs(
                ("base", [0], {"steps": 0, "groups": 1, "target": "hidden", "draws": 1}),
                ("first", [1], {"groups": 1, "target": "hidden", "draws": 1, "device": "cpu"}),
                ("second", [1], {"lr": 0.25, "draws": 8, "target": "hidden", **groups}),
            )
        )
    )
    assert base["steps"] == "0" and base["seed"] == "42" and base["lr"] == base["draws"] == ""
    assert (first["steps"], first["lr"], first["draws"]) == ("5", "0.005", "1")
    assert first["other flags"] == "--groups 1"
    assert (second["lr"], second["draws"], second["script"]) == ("0.25", "8", "adasteer")
    assert second["other flags"] == "--groups 4 --antithetic --stop-sigmas 0.25,0.5"


def test_records_of_other_versions_are_read(tmp_path):
    """What a later script writes beside it is no damage, nor that an older one has no script."""
    more = {"fixed_loss_before": 0.5, "fixed_loss_after": None, "frames_moved_db": 31.0}
    for name, steps in (("base", 0), ("run", 5)):
        folder = make_run(tmp_path / name, [0], steps, futures=[0.2])
        change(folder / "videos" / "v000.json", lambda record: record.update(more))
        change(folder / "config.json", lambda config: config["arguments"].pop("script"))
    found = read_runs([tmp_path / "base", tmp_path / "run"])
    assert not any(run.damaged for run in found)
    assert [row["steps"] for row in settings(compare(found))] == ["0", "5"]


def test_settings_name_every_seed(runs):
    found = runs(
        *((f"base_{seed}", [0], {"steps": 0, "seed": seed}) for seed in (1, 2)),
        *((f"run_{seed}", [1], {"seed": seed}) for seed in (1, 2)),
    )
    base, run = settings(compare(found))
    assert base["seed"] == run["seed"] == "1, 2" and "other flags" not in run


def test_flags_that_are_off_by_name_are_spelt_as_they_are_typed(runs):
    assert FLAGS["preflight"]["names"] == ["--no-preflight"]
    found = runs(
        ("base", [0], {"steps": 0, "preflight": True}),
        ("run", [1], {"preflight": False}),
        ("other", [1], {"preflight": True}),
    )
    _, run, other = settings(compare(found))
    assert run["other flags"] == "--no-preflight" and other["other flags"] == ""


def test_no_figure_has_tex_or_empty_panels(tmp_path, script):
    """Distances over many decades need a logarithmic scale, whose labels are numbers."""
    names = [make_run(tmp_path / "base", [0] * 4, 0, futures=[0.2] * 4)]
    for lr, scale in enumerate((1e-6, 1.0, 1e4)):
        name = make_run(tmp_path / f"run{lr}", [1] * 4, lr=lr, futures=[0.1] * 4)
        for i, path in enumerate(sorted(name.glob("videos/*.json"))):
            moved = {"d": scale * (i + 1)}
            change(path, lambda r, d=moved: r.update(distances=d))
            change(path, lambda r: r.pop("target_values"))
        names.append(name)
    assert script(compare_script, *names, "--out", tmp_path / "report", "--show", 0) == 0
    page = (tmp_path / "report" / "index.html").read_text()
    assert "mathdefault" not in page and "$" not in "".join(re.findall(r"<text[^>]*>[^<]*", page))
    learned = page.partition('<section id="0-what-was-learned">')[2].partition("</section>")[0]
    assert re.search(r"<text[^>]*>0\.1</text>|<text[^>]*>1</text>", learned)
    assert "values per parameter" not in page
