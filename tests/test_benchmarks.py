"""The benchmarks run, small and once; their numbers are for benchmarks/RESULTS.md."""

import json
import re
import sys
from dataclasses import replace

import pytest
import torch
from opensora2_oracles import OPENSORA2, needs_opensora2

import adasteer
from adasteer import AdaSteer
from benchmarks import (
    adapt_step,
    continuation,
    end_to_end,
    future_study,
    generate,
    layers,
    longcat_h200,
    model_memory,
    precision,
    scaling,
    sharded,
    shown_answer,
    start,
    stopping_study,
    vjepa_step,
)
from common.errors import UsageError
from common.loading import NANO
from common.video import write_video
from runs.identity import ROOT
from runs.lists import list_videos

TINY = ["--hidden", 64, "--depth", 3, "--side", 8, "--repeats", 1]
CASES = {
    layers: ["--repeats", 2, "--hidden", 64],
    adapt_step: TINY,
    generate: [*TINY, "--steps", 1],
    end_to_end: ["--repeats", 1, "--flags", "--steps 1 --limit 1 --sampling-steps 1"],
    vjepa_step: ["--repeats", 1, "--frames", 2],
}


def ratios(module, flags, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, flags)])
    module.main()
    said = capsys.readouterr().out
    return said, [float(x) for x in re.findall(r"ratio (\d+\.\d+)", said)]


@pytest.mark.slow
@pytest.mark.parametrize("module", CASES, ids=lambda m: m.__name__)
def test_ratios_are_printed(module, monkeypatch, capsys):
    _, found = ratios(module, CASES[module], monkeypatch, capsys)
    assert found and all(0 < x < 100 for x in found)


@pytest.mark.slow
def test_exponents_are_fitted(monkeypatch, capsys):
    flags = ["--repeats", 1, "--hidden", 64, "--only", "draws"]
    said, _ = ratios(scaling, flags, monkeypatch, capsys)
    (exponent,) = re.findall(r"draws: .* memory ~ n\^(\d\.\d+)", said)
    assert float(exponent) == pytest.approx(1, abs=0.1)


def test_bfloat16_stays_close(monkeypatch, capsys):
    flags = ["--hidden", "64", "--depth", "3", "--side", "8", "--sampling-steps", "2"]
    monkeypatch.setattr(sys, "argv", ["precision", *flags])
    precision.main()
    found = [float(x) for x in re.findall(r": (\d\.\de[+-]\d+)", capsys.readouterr().out)]
    assert len(found) == 5 and all(0 < x < 0.05 for x in found)


@pytest.mark.slow
@pytest.mark.parametrize("model", model_memory.MODELS)
def test_memory_is_predicted_by_stage(model, monkeypatch, capsys):
    """More where more is kept and for larger frames; of a real run the same bytes."""
    small, large = "64x32", "96x64"
    monkeypatch.setattr(
        sys, "argv", ["memory", "--model", model, "--small", "--sizes", small, large]
    )
    model_memory.main()
    line = r"(\S+) (.*): (\S+) GB predicted"
    found = {(s, n): float(g) for s, n, g in re.findall(line, capsys.readouterr().out)}
    stages = {name for _, name in found}
    assert len(stages) == 5 and len(found) == 10
    assert all(found[small, name] < found[large, name] for name in stages)
    all_recomputed, half = "AdaSteer step, all blocks recomputed", "AdaSteer step, half of them"
    assert found[large, "generation"] < found[large, all_recomputed] < found[large, half]


def test_what_is_counted_is_what_is_alive():
    module = torch.nn.Linear(10, 10, bias=False)  # 400 bytes
    with model_memory.Alive(module) as alive:
        x = torch.zeros(1000)
        y = x + 1
        del x
        z = torch.zeros(500)
        y.view(10, 100), module.weight.t(), z[3:]  # no memory of their own
    assert alive.now == 400 + 4000 + 2000 and alive.most == 400 + 8000


@pytest.mark.slow
def test_a_clip_of_the_study_goes_on_and_its_sign_can_be_flipped(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)  # other tests are here too
    flags = "--groups 1 --lr 5e-3 --steps 2"
    rows = [future_study.Row(AdaSteer, flags, flipped) for flipped in (False, True)]
    video = list_videos(ROOT / "nano" / "demo" / "manifest.csv")[0][0]
    given = video, ROOT / "nano" / "checkpoint"
    first = future_study.study_clip(*given, rows[:1], tmp_path / "clip.json")[rows[0].name]
    written = json.loads((tmp_path / "clip.json").read_text())
    written["rows"][rows[0].name]["future_loss"] = 7.0  # a row that is there is not run again
    (tmp_path / "clip.json").write_text(json.dumps(written))
    both = future_study.study_clip(*given, rows, tmp_path / "clip.json")
    assert both[rows[0].name]["future_loss"] == 7.0
    flipped = both[rows[1].name]
    assert flipped["losses"][0] > 2 * first["losses"][0]
    assert flipped["future_loss_before"] == first["future_loss_before"]
    assert flipped["future_loss"] > flipped["future_loss_before"]
    other = replace(video, caption="another"), given[1]
    again = future_study.study_clip(*other, rows[:1], tmp_path / "clip.json")
    assert again.keys() == {rows[0].name} and again[rows[0].name]["future_loss"] != 7.0


def test_rates_are_chosen_on_a_quarter_of_the_sources_in_any_order():
    sources = [f"source {number}" for number in range(40)]
    chosen = future_study.choosing(sources)
    assert len(chosen) == 10 and chosen == future_study.choosing([*sources[::-1], *sources])


@pytest.mark.slow
def test_the_start_is_timed(monkeypatch, capsys):
    said, _ = ratios(start, [], monkeypatch, capsys)
    assert "to the end of the first step" in said


@pytest.mark.slow
def test_the_released_size_in_small_and_resumed(tmp_path, monkeypatch, capsys):
    flags = ["--small", "--device", "cpu", "--repeats", 1, "--out", tmp_path]
    said, found = ratios(longcat_h200, flags, monkeypatch, capsys)
    assert len(found) == 4 and "LoRA r=1 step" in said
    rows = json.loads((tmp_path / "longcat.json").read_text())
    assert rows["AdaSteer step, 0 recomputed"]["tflops"] > 0
    placed = rows["AdaSteer step, as placed"]
    assert placed["offload"] == "none" and placed["compiled"] is False
    _, again = ratios(longcat_h200, flags, monkeypatch, capsys)
    assert again == found  # nothing was measured twice


@pytest.mark.slow
@needs_opensora2
def test_what_is_learned_when_the_answer_is_shown(monkeypatch, capsys):
    """Four lines of losses; the honest one on the future is the same before either adaptation."""
    flags = ["--train-steps", "2", "--clips", "2"]
    monkeypatch.setattr(sys, "argv", ["shown_answer", str(OPENSORA2 / "released"), *flags])
    shown_answer.main()
    lines = capsys.readouterr().out.splitlines()
    pairs = [re.search(r": (\d\.\d+) -> (\d\.\d+), ", line).groups() for line in lines]
    assert len(lines) == 4 and all(before != after for before, after in pairs)
    assert pairs[1][0] == pairs[3][0] and pairs[0][0] != pairs[2][0]


def test_what_a_checkpoint_is_judged_by(script, tmp_path, capsys):
    out = tmp_path / "numbers.json"
    flags = ["--scenes", 2, "--sampling-steps", 1, 2, "--samples", 2, "--out", out]
    assert script(continuation, NANO, *flags) == 0
    said, rows = capsys.readouterr().out, json.loads(out.read_text())["own scenes"]
    losses = [sum(r[f"loss_{s}"] for s in continuation.SIGMAS) / 5 for r in rows]
    share = sum(losses) / sum(row["zero"] for row in rows)
    assert f"loss / loss of predicting zero: {share:.4f}" in said and share < 0.3
    gain = sum(row["psnr_1"] - row["psnr_repeated"] for row in rows) / 2
    assert f"in 1 steps: {sum(r['psnr_1'] for r in rows) / 2:.2f} dB, {gain:+.2f}" in said
    assert f"energy score {sum(r['energy_score_2'] for r in rows) / 2:.5f}\n" in said
    write_video(tmp_path / "still.mp4", torch.full((29, 3, 64, 64), 0.5), 24)
    write_video(tmp_path / "short.mp4", torch.rand(9, 3, 64, 64), 24)
    assert script(continuation, NANO, "--scenes", 0, "--videos", tmp_path) == 2
    end = capsys.readouterr()
    assert "left out: " in end.out and "has 9 frames" in end.out.replace(" of 9 announced", "")
    assert "moving clips: none that moves; give more --scenes, or other --videos" in end.err


@pytest.mark.slow
def test_where_early_stopping_stops(script, tmp_path, monkeypatch, capsys):
    """Of what the records say: the changes at the chosen, the last and the best step."""
    flags = ["--no-generate", "--limit", 2, "--steps", 4, "--stop-every", 2, "--patience", 9]
    assert script(adasteer, *flags, "--trace-future", 2, "--out", tmp_path / "run") == 0
    records = [json.loads(p.read_text()) for p in (tmp_path / "run" / "videos").glob("*.json")]
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["stopping_study", str(tmp_path / "run")])
    stopping_study.main()
    said = capsys.readouterr().out
    found = {line.split(":")[0].strip(): line for line in said.splitlines()}
    shown = {"held-out latents": [r["future_loss"] for r in records]}
    shown["last"] = [r["future_losses"][-1][1] for r in records]
    for name, losses in shown.items():
        pairs = zip(losses, records, strict=True)
        mean = sum(100 * (x / r["future_loss_before"] - 1) for x, r in pairs) / 2
        assert f"{mean:+.2f} % (too few sources)" in found[name]
    assert "best in hindsight" in found and "of 2 videos" in said
    assert script(adasteer, *flags, "--out", tmp_path / "untraced") == 0
    monkeypatch.setattr(sys, "argv", ["stopping_study", str(tmp_path / "untraced")])
    with pytest.raises(UsageError, match="needs --stop-every N --trace-future N"):
        stopping_study.main()


@pytest.mark.slow  # seven processes are started
def test_what_each_process_holds_falls_as_one_over_their_number(monkeypatch, capfd):
    flags = ["--hidden", "64", "--depth", "3", "--side", "8", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", ["sharded", *flags])
    sharded.main()
    said = capfd.readouterr().out
    state = [float(x) for x in re.findall(r"processes: step .* s, state (\S+) MB", said)]
    falls = [state[0] / x for x in state]  # but for vectors, which are small
    assert falls == pytest.approx([1, 2, 4], rel=0.04)
    ratios = [float(x) for x in re.findall(r"predicted ratio (\d\.\d+)", said)]
    assert ratios == pytest.approx([1] * 3, abs=0.02)


def test_adamw_of_the_large_model_needs_a_node(capsys):
    """By the shapes of its weights: 22 bytes a parameter, shared out, and what is gathered."""
    sharded.table()
    said = capsys.readouterr().out
    fits = {
        name: words for name, words in re.findall(r"(\w+ on \d): \d+ GB, (fits|does not)", said)
    }
    assert [fits[f"adamw on {n}"] for n in (1, 2, 4, 8)] == ["does not"] * 2 + ["fits"] * 2
    assert fits["sgd on 1"] == "does not" and fits["sgd on 2"] == "fits"
