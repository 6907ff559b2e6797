"""A method beside its controls: what the report says can be claimed, in every case."""

import json
import re

import numpy as np
import pytest
from folders import change, make_run

import compare as compare_script
import runs as scripts
from adasteer import AdaSteer
from common.errors import UsageError
from report.beside import beside_controls
from report.comparison import compare, table
from report.curves import gains_by_frame
from report.runs import read_runs
from report.statistics import clustered_band, harmed
from runs.identity import lent

SPREAD = [0.8, 1.0, 1.2] * 4
FALLS = [2 * x for x in SPREAD]  # per cent of the loss on the true future
NOTHING = [0.3, -0.3, 0.2, -0.25] * 3
LOSS = "the loss on the true future"
BEHIND = {  # falls of a control, and the words on it as a random change
    "shows no gain (falls by 0.01 %)": [x + 0.02 for x in NOTHING],
    "shows no gain (rises by 1.0 %)": [-x for x in SPREAD],
    "gains less (falls by 1.0 %)": SPREAD,
}


@pytest.fixture
def runs(tmp_path):
    """Gives the runs base, ada and those controls whose falls or gains are given."""

    def call(falls=FALLS, random=None, other=None, gains=None, best=None, **flags):
        count, sources = len(falls), flags.pop("sources", None)
        kept = {"sources": sources, **flags}

        def made(name, falls, gains=None, **more):
            futures = [0.2 * (1 - fall / 100) for fall in falls]
            gains = gains or [0] * count
            return make_run(tmp_path / name, gains, futures=futures, **kept, **more)

        found = [made("base", [0] * count, steps=0), made("ada", falls, gains)]
        if random:
            found.append(made("random", random, control="random"))
        if other:
            found.append(made("other", other, steps=0, adapter="ada/videos", control="other"))
            config = json.loads((tmp_path / "ada" / "config.json").read_text())
            lent = {"control_of": config, "adapter_sha256": "f" * 64}
            change(found[-1] / "config.json", lambda config: config.update(lent))
        if best:
            found.append(made("best", [0] * count, best, steps=0, best_of=4))
        return read_runs(found)

    return call


@pytest.fixture
def said(runs):
    """The sentence on ada beside its controls."""

    def call(*given, **more):
        (found,) = beside_controls(compare(runs(*given, **more)))
        assert found.method == "ada"
        return found.claim.sentence

    return call


GAIN = rf"ada beside its controls: {LOSS} falls by 2\.0 % \(95 %: 1\.\d to 2\.\d\)"


@pytest.mark.parametrize("words", BEHIND)
def test_the_gain_comes_from_what_was_learned(words, said):
    sentence = said(random=BEHIND[words], other=NOTHING)
    assert re.fullmatch(
        rf"{GAIN}; a random change of the same norm {re.escape(words)}; what was learned on "
        r"another video shows no gain \(.*\); so the gain comes from what was learned on each "
        r"video\.",
        sentence,
    )


@pytest.mark.parametrize("other", [None, NOTHING])
def test_a_random_change_does_as_well(other, said):
    """Whatever the other control says."""
    random = [fall + x for fall, x in zip(FALLS, NOTHING, strict=True)]
    sentence = said(random=random, other=other)
    assert re.match(GAIN, sentence)
    assert "; it cannot be told from a random change of the same norm (falls by 2.0 %)" in sentence
    assert sentence.endswith("so nothing shows that the gain comes from what was learned.")


def test_a_random_change_does_better(said):
    sentence = said(random=[fall + 1 for fall in FALLS])
    assert "; a random change of the same norm gains more (falls by 3.0 %); so nothing" in sentence


@pytest.mark.parametrize("first", [FALLS, NOTHING])
def test_it_must_be_ahead_of_all_of_a_kind(first, runs, tmp_path):
    second = NOTHING if first is FALLS else FALLS
    flags = {"futures": [0.2 * (1 - x / 100) for x in second], "control": "random"}
    more = make_run(tmp_path / "more", [0] * 12, 0, adapter="ada/videos", **flags)
    found = runs(random=first)
    config = json.loads((tmp_path / "ada" / "config.json").read_text())
    change(more / "config.json", lambda own: own.update(control_of=config))
    (beside,) = beside_controls(compare([*found, *read_runs([more])]))
    assert len(beside.rows) == 4
    assert beside.claim.sentence.endswith("the gain comes from what was learned.")


def test_of_what_is_carried_over_no_impossible_control_is_asked_for(runs):
    (beside,) = beside_controls(compare(runs(random=NOTHING, carry_over=1.0)))
    assert beside.claim.sentence.endswith("on this video or on those before it.")


def test_another_videos_adaptation_does_as_well(said):
    other = [fall + x for fall, x in zip(FALLS, NOTHING, strict=True)]
    sentence = said(random=NOTHING, other=other)
    assert "it cannot be told from what was learned on another video (falls by 2.0 %)" in sentence
    assert sentence.endswith("nothing shows that it was to be learned on the video itself.")


@pytest.mark.parametrize(
    ("controls", "end"),
    [
        ({"random": NOTHING}, "on this video or on any (--control other would tell)."),
        ({"other": NOTHING}, "so the gain comes from what was learned on each video."),
        ({"other": FALLS[::-1]}, "so nothing shows that the gain comes from the video itself."),
        ({"best": [0] * 12}, "(--control random and other would tell); its PSNR gain (+0.00 dB) "
         "cannot be told from that of best (+0.00 dB), which does not adapt and takes 0.5 times as "
         "long."),
    ],
)  # fmt: skip
def test_one_control_alone(controls, end, said):
    assert said(**controls).endswith(end)


@pytest.mark.parametrize(
    ("falls", "start"),
    [(NOTHING, f"{LOSS} "), ([-fall for fall in FALLS], f"{LOSS} rises by 2.0 % (95 %: ")],
)
def test_without_a_gain_there_is_none_to_explain(falls, start, said):
    sentence = said(falls, random=[x / 2 for x in NOTHING])
    assert sentence.startswith(f"ada beside its controls: {start}")
    assert sentence.endswith("; no gain is told that could be explained.")


def test_too_few_sources(said):
    assert said(random=NOTHING, sources=[f"s{i % 7}" for i in range(12)]) == (
        "ada beside its controls: too few sources to say what a gain comes from (7; it needs 8)."
    )


@pytest.mark.parametrize(
    ("ours", "words", "theirs"),
    [(0.5, "is above", 0.1), (0.1, "is below", 0.5), (0.3, "cannot be told from", 0.3)],
)
def test_the_same_time_spent_otherwise(ours, words, theirs, said):
    gains = [ours * x for x in SPREAD]
    best = [theirs * x for x in reversed(SPREAD)]
    sentence = said(random=NOTHING, gains=gains, best=best)
    assert sentence.endswith(
        f"; its PSNR gain (+{ours:.2f} dB) {words} that of best (+{theirs:.2f} dB), which does not "
        "adapt and takes 0.5 times as long."
    )


def test_gain_and_cost_of_each(runs):
    found = runs(random=NOTHING, gains=[0.5 * x for x in SPREAD], best=[0.1 * x for x in SPREAD])
    for record in found[-1].done.values():
        record["generate_seconds"] = 2.25
    (beside,) = beside_controls(compare(found))
    base, ada, random, best = beside.rows
    assert [row["run"] for row in beside.rows] == ["base", "ada", "random", "best"]
    assert [row["seconds"] for row in beside.rows] == pytest.approx([0.5, 1.0, 1.0, 2.25])
    assert [row["control"] for row in beside.rows] == ["", "", "--control random", "--best-of 4"]
    assert ada["gains"]["future_loss"][0] == pytest.approx(2) and "psnr_db" in random["gains"]
    assert base["ahead"] == ada["gains"] and ada["ahead"] == base["gains"] == {}
    mean, low, high = best["ahead"]["psnr_db"]
    assert mean == pytest.approx(0.4) and low < mean < high
    shown = beside.readable[2]
    assert re.fullmatch(r"-0\.\d\d % \(-0\.\d\d to \+0\.\d\d\)", shown["gain, future_loss"])
    assert shown["harmed"] == "50 %"


def test_controls_are_no_methods(runs):
    """No verdict, no correction for them; only what they are controls of is judged."""
    found = runs(random=NOTHING, other=NOTHING, best=[0] * 12)
    alone, whole = compare(found[:2]), compare(found)
    assert [m.name for m in whole.judged] == ["ada"]
    assert whole.controls == {"random": ["ada"], "other": ["ada"], "best": ["ada"]}
    _, ada, *controls = table(whole, "future_loss")
    assert ada["p"] == table(alone, "future_loss")[1]["p"]
    assert [row["p"] for row in controls] == [None] * 3 and controls[-1]["parameters"] is None


def test_a_control_of_a_run_that_is_not_there_is_a_method(runs):
    found = runs(random=NOTHING, other=NOTHING)
    comparison = compare([found[0], *found[2:]])
    assert [m.name for m in comparison.judged] == ["random", "other"]
    assert not beside_controls(comparison)
    assert sum("of a run that is not here, and counts" in note for note in comparison.notes) == 2


def test_a_control_of_one_file_is_of_its_use(runs, tmp_path):
    """Not of a run in whose folder the file may lie."""
    (base, ada), file = runs(), tmp_path / "ada" / "start.safetensors"
    file.touch()
    words = ["--control", "random", "--adapter", str(file)]
    assert lent(scripts.parse_args(None, AdaSteer, words)) == {}
    names = []
    for name, flags in (("use", {}), ("random", {"control": "random"})):
        names.append(make_run(tmp_path / name, [0] * 12, 0, adapter=str(file), **flags))
        change(names[-1] / "config.json", lambda config: config.update(adapter_sha256="f" * 64))
    assert compare([base, ada, *read_runs(names)]).controls == {"random": ["use"]}


def test_of_several_methods_each_has_its_own(tmp_path, runs):
    found = runs(random=NOTHING, best=[0] * 12)
    more = [make_run(tmp_path / "two", [0] * 12, lr=0.1, futures=[0.19] * 12)]
    more += [make_run(tmp_path / "r2", [0] * 12, lr=0.1, control="random", futures=[0.2] * 12)]
    comparison = compare([*found, *read_runs(more)])
    assert comparison.controls == {"random": ["ada"], "best": ["ada", "two"], "r2": ["two"]}
    assert [each.method for each in beside_controls(comparison)] == ["ada", "two"]


def test_controls_at_several_seeds_are_one(tmp_path):
    names = []
    for seed in (1, 2):
        names += [make_run(tmp_path / f"base{seed}", [0] * 9, 0, seed=seed, futures=[0.2] * 9)]
        names += [make_run(tmp_path / f"ada{seed}", [0] * 9, seed=seed, futures=[0.1] * 9)]
        flags = {"adapter": f"ada{seed}/videos", "control": "other", "seed": seed}
        names += [make_run(tmp_path / f"o{seed}", [0] * 9, 0, futures=[0.2] * 9, **flags)]
        config = json.loads((names[-2] / "config.json").read_text())
        lent = {"control_of": config, "adapter_sha256": f"{seed}" * 64}
        change(names[-1] / "config.json", lambda config, lent=lent: config.update(lent))
    comparison = compare(read_runs(names))
    assert comparison.controls == {"o*": ["ada*"]} and comparison.judged[0].seeds == [1, 2]


def test_baselines_that_differ_in_more_than_time_are_refused(tmp_path, runs):
    found = runs(best=[0] * 12)
    assert compare([found[2], found[0]]).baseline.name == "best"  # none adapts: the first
    assert [m.name for m in compare([found[0], found[2]]).judged] == ["best"]
    other = make_run(tmp_path / "long", [0] * 12, steps=0, best_of=2, gen_frames=30)
    with pytest.raises(UsageError, match=r"long cannot be compared .* --gen-frames"):
        compare([*found, *read_runs([other])])
    more = make_run(tmp_path / "more", [0] * 12, best_of=4)
    with pytest.raises(UsageError, match=r"more cannot be compared .*: they differ in --best-of"):
        compare([*found, *read_runs([more])])
    assert compare([*found[::2], *read_runs([more])]).baseline.name == "best"


def test_a_baseline_that_is_older_than_a_flag_is_one(runs, tmp_path):
    older = runs(best=[0] * 12)[0].path / "config.json"

    def without_efforts(config):
        for said in config["flags"].values():
            said.pop("effort", None)
        config["arguments"].pop("best_of", None)

    change(older, without_efforts)
    comparison = compare(read_runs([tmp_path / name for name in ("base", "ada", "best")]))
    assert comparison.baseline.name == "base" and comparison.controls == {"best": ["ada"]}
    assert beside_controls(comparison)[0].rows[-1]["control"] == "--best-of 4"


def test_a_second_take_counts_where_there_is_one(runs):
    found = runs()
    for name in ("v001", "v004"):
        found[0].done[name]["references"]["second_take"] = {"psnr_db": 30.0 + int(name[-1])}
    *_, row = table(compare(found), "psnr_db")
    assert row["method"].startswith("(second take") and row["mean"] == 32.5
    assert row["videos"] == row["sources"] == 2


def test_harmed_is_by_more_than_the_spread_over_seeds():
    assert harmed([[-1.0, 1.0, -0.1, 0.0]]) == 0.5
    gains = [[-3.0, 1.0, -0.6, 0.5], [-3.2, 1.2, 0.4, -0.5]]  # spread 0.51
    assert harmed(gains) == 0.25


def test_the_band_is_over_sources():
    """Of columns of their own: the same draws, missing values left out."""
    rng = np.random.default_rng(0)
    sources = np.repeat(np.arange(20), 5)
    gains = rng.normal(size=(20, 1)).repeat(5, axis=0) + [[0.0, 5.0]]
    gains[0, 1] = np.nan
    mean, low, high = clustered_band(gains, sources)
    assert mean == pytest.approx(np.nanmean(gains, axis=0))
    assert np.all(low < mean) and np.all(mean < high)
    error = gains[::5, 0].std(ddof=1) / 20**0.5  # of 20 sources, not of 100 videos
    assert high[0] - low[0] == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert clustered_band(gains[:35], sources[:35])[1:] == (None, None)


@pytest.mark.parametrize(("sources", "bands"), [(12, 1), (7, 0)])
def test_gains_by_frame_have_a_band_and_controls_have_none(sources, bands, runs):
    sources = [f"s{i % sources}" for i in range(12)]
    found = runs(random=NOTHING, gains=[0.5 * x for x in SPREAD], sources=sources)
    svg = gains_by_frame(compare(found), "psnr_db")
    assert svg.count('id="FillBetweenPolyCollection') == bands
    assert ">ada<" in svg and ">random<" in svg and ">base<" not in svg


@pytest.mark.parametrize(("metric", "better"), [("psnr_db", 1), ("flow_error_px", -1)])
def test_a_gain_of_a_frame_is_above_zero_whatever_is_better(metric, better, runs):
    base, ada = runs()
    for change_of, below in ((better, False), (-better, True)):
        for run, value in ((base, 5.0), (ada, 5.0 + change_of)):
            for record in run.done.values():
                record[f"{metric}_per_frame"] = [value, value]
        ticks = gains_by_frame(compare([base, ada]), metric)
        assert (">\N{MINUS SIGN}" in ticks) is below


def test_the_report_has_it_all(tmp_path, script, capsys, runs):
    runs(random=NOTHING, other=NOTHING, gains=SPREAD, best=[0] * 12)
    names = [tmp_path / name for name in ("base", "ada", "random", "other", "best")]
    assert script(compare_script, *names, "--out", tmp_path / "report", "--show", 0) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("ada helps") and printed[1].startswith("ada beside its controls: ")
    assert not printed[2]
    found = json.loads((tmp_path / "report" / "results.json").read_text())["comparisons"]["runs"]
    assert found["claims"] == [printed[1]] and len(found["controls"]["ada"]) == 5
    text = (tmp_path / "report" / "table.md").read_text()
    assert f"- {printed[1]}" in text and "## ada beside its controls" in text
    page = (tmp_path / "report" / "index.html").read_text()
    head = page.partition("<h1>")[2].partition("<nav>")[0]
    assert re.findall(r'<li class="(\w*)"><strong>([^<]*)', head) == [
        ("good", "ada helps"), ("good", "ada beside its controls"),
    ]  # fmt: skip
    titles = re.findall(r"<section [^>]*><h2>([^<]*)", page)
    assert titles[:3] == ["result", "controls", "settings"] and "frame by frame" in titles
