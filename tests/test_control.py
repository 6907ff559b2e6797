"""Controls in place of what was learned, and the best of several continuations."""

import json
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from backbone_rows import BACKBONES
from oracles import arguments
from test_methods import METHODS
from test_run import QUICK, results
from toy import copies, new

import adasteer
import common
import lora_tta
import runs
from adasteer import AdaSteer
from common import best_of, control
from common.adaptation import adapt
from common.control import Control
from common.data import Video
from common.errors import UsageError, VideoError
from common.generation import generate
from delta_c import DeltaC
from lora_tta import LoRA
from report.runs import read_run
from runs.results import save_adapter

BIAS = torch.linspace(-0.3, 0.5, 16).view(1, 16, 1, 1, 1)
NO_TRUTH = ["--no-generate", "--sampling-steps", 1, "--future-draws", 1]


def of_video(clip, name, source=None):
    columns = {"source": source} if source else {}
    return SimpleNamespace(**vars(clip) | {"video": Video(name, Path(name), "", columns)})


def adapted(model, clip, method, flags):
    """Its record, its parameters afterwards and at the start."""
    made, args = new(method, flags, model, clip)
    start = copies(made)
    with made.attached():
        record = adapt(model, made, clip, args)
    return record, copies(made), start


@pytest.mark.parametrize("method", METHODS)
def test_a_random_change_has_the_norm_of_what_was_learned(model, clip, method):
    flags = METHODS[method][0]
    _, learned, start = adapted(model, clip, method, flags)
    record, found, _ = adapted(model, clip, method, f"{flags} --control random")
    other = adapted(model, of_video(clip, "b"), method, f"{flags} --control random")[1]
    assert record["control"] == "random" and record["kept"] == "adapted"
    for name, value in found.items():
        moved, asked = (x[name].float() - start[name].float() for x in (found, learned))
        assert float(moved.norm()) == pytest.approx(float(asked.norm()), rel=1e-3)
        assert not torch.equal(value, learned[name]) and not torch.equal(value, other[name])


@pytest.fixture
def biased(model, clip):
    """A model that is exact but for a bias, which Delta-C can learn, and videos for it."""
    following = SimpleNamespace(**vars(clip) | {"future": clip.target})
    biased = model.predicted_velocity(lambda v: v + BIAS)
    with BACKBONES["LongCatVideoTransformer3DModel"].answers(model, clip.target), biased:
        yield [of_video(following, f"v{i}") for i in range(6)]


def test_a_random_change_that_rounding_takes_is_refused(model):
    """As of weights that are learned in bfloat16: each moves by less than half of its last bit."""
    weights, args = torch.ones(4, 256, dtype=torch.bfloat16), arguments(AdaSteer, "--steps 1")
    args.control = "random"
    method = SimpleNamespace(named_parameters=lambda: {"w": weights})
    clip = SimpleNamespace(seed=1, video=SimpleNamespace(id="a"))
    control = Control(method, clip, args)
    control.begin()
    weights[0, 0] += 2**-7
    with pytest.raises(UsageError, match="rounding to torch.bfloat16 leaves 0; give --weights"):
        control.end()


def test_it_hurts_where_the_adaptation_helps(model, biased):
    closed, before, after = "--solver closed-form", [], []
    for clip in biased:
        helped = adapted(model, clip, DeltaC, closed)[0]
        record = adapted(model, clip, DeltaC, f"{closed} --control random")[0]
        assert record["future_loss_before"] == pytest.approx(float(BIAS.square().mean()), rel=1e-3)
        assert helped["future_loss"] < 1e-6 < 0.1 * record["future_loss"]
        assert record["distances"]["delta"] == pytest.approx(helped["distances"]["delta"])
        before.append(record["future_loss_before"])
        after.append(record["future_loss"])
    assert sum(after) > 1.5 * sum(before)  # |b + r|^2 is |b|^2 + |r|^2 on average


def finished_run(folder, names, sources, method=None, args=None):
    """The folder videos of a run with these, each with an adapter."""
    folder.mkdir(parents=True)
    for name, source in zip(names, sources, strict=True):
        record = {"id": name, "status": "done", "source": source}
        (folder / f"{name}.json").write_text(json.dumps(record))
        if method is None:
            (folder / f"{name}.safetensors").touch()
        else:
            save_adapter(folder / name, method, args)
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_another_videos_adaptation_is_taken(model, clip, method, tmp_path):
    taken, args = new(method, METHODS[method][0], model, clip)
    args.method = method.__name__
    with torch.no_grad():
        for value in taken.named_parameters().values():
            value.add_(0.1)
    folder = finished_run(tmp_path / "videos", ["a", "b"], ["one", "two"], taken, args)
    flags = f"{METHODS[method][0]} --control other --adapter {folder}".split()
    args = arguments(method, " ".join(flags))
    args.method = method.__name__
    for video, lender in (("a", "b"), ("b", "a"), ("elsewhere", None)):
        its = of_video(clip, video, {"a": "one", "b": "two"}.get(video))
        made = method(model, its, args)
        with made.attached():
            record = adapt(model, made, its, args)
        assert record["control"] == "other" and record["losses"] == []
        assert record["control_video"] == (lender or record["control_video"]) != video
        for name, value in copies(made).items():
            assert torch.equal(value, taken.named_parameters()[name])


def lend(folder, videos, seed):
    args = SimpleNamespace(control="other", adapter=folder, seed=seed)
    return {video.id: control.lender(args, video) for video in videos}


def test_another_video_is_never_of_the_same_source(tmp_path):
    names, sources = [f"v{i}" for i in range(40)], [f"s{i % 8}" for i in range(40)]
    videos = [Video(n, Path(n), "", {"source": s}) for n, s in zip(names, sources, strict=True)]
    of, folder = (
        dict(zip(names, sources, strict=True)),
        finished_run(tmp_path / "run", names, sources),
    )
    for seed in range(5):
        found = lend(folder, videos, seed)
        assert all(of[name] != of[lender] for name, lender in found.items())
        assert found == lend(folder, reversed(videos), seed)
        assert max(Counter(found.values()).values()) <= 6  # about once each, in a circle
    assert lend(folder, videos, 0) != lend(folder, videos, 1)
    lonely = Video("v", Path("v"), "", {"source": "s0"})
    few = finished_run(tmp_path / "few", ["x", "y", "z"], ["s0", "s0", "s1"])
    assert lend(few, [lonely], 0) == {"v": "z"}


def test_what_lends_nothing_is_refused(tmp_path):
    one = finished_run(tmp_path / "one", ["a", "b"], ["s", "s"])
    video = Video("a", Path("a"), "", {"source": "s"})
    with pytest.raises(UsageError, match=r"--adapter .*one: .* two sources or more .*, found 2"):
        lend(one, [video], 0)
    two = finished_run(tmp_path / "two", ["a", "b"], ["s", "t"])
    (two / "b.safetensors").unlink()
    with pytest.raises(UsageError, match="found 1"):
        lend(two, [video], 0)
    own = finished_run(tmp_path / "own", ["a", "b"], ["t", "s"])
    with pytest.raises(VideoError, match="has no adaptation of another source than s"):
        lend(own, [video], 0)  # but that of its own name


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ("--control other", "--control other: needs --adapter RUN/videos"),
        ("--control other --steps 2 --adapter x", "leave out --steps 2"),
        ("--control random --steps 0", "--control random: with --steps 0 nothing is learned"),
        ("--samples 2 --no-generate", "--samples 2: nothing is sampled with --no-generate"),
        ("--save-frames --no-generate", "--save-frames: nothing is sampled with --no-generate"),
        ("--trace-future 1 --future-draws 0", "--trace-future 1: not with --future-draws 0"),
        ("--patience 2", "--patience: says how --stop-every N checks; give that too"),
        ("--best-of 4 --samples 2", "--best-of 4: gives one continuation; leave out --samples 2"),
        ("--best-of 4 --no-generate", "--best-of 4: nothing is sampled with --no-generate"),
        ("--best-of 2", "argument --best-of: must be at least 3, got 2"),
    ],
)
def test_flags_that_make_no_sense(flags, why, script, capsys):
    assert script(adasteer, *flags.split(), "--dry-run") == 2
    said = capsys.readouterr().err
    assert why in said and said.count("\n") == 1


def test_where_a_lora_of_pefts_began_is_not_known(model, clip, tmp_path, script, capsys):
    args = arguments(LoRA)
    path = save_adapter(tmp_path / "start", LoRA(model, clip, args), args)
    flags = ["--adapter", path, "--control", "random", "--dry-run"]
    assert script(lora_tta, *flags) == 2
    assert "is peft's, which draws its start" in capsys.readouterr().err


def test_controls_of_a_run_are_runs_of_their_own(tmp_path, script, capsys):
    """And know which run they are controls of, whether they adapt again or take its adapters."""
    flags = [*NO_TRUTH, "--limit", 2]
    learned = ["--steps", 1, "--lr", 1e-2]
    of = {
        "run": [*learned, "--save-adapter"],
        "random": [*learned, "--control", "random"],
        "again": ["--adapter", tmp_path / "run" / "videos", "--control", "random"],
        "other": ["--adapter", tmp_path / "run" / "videos", "--control", "other"],
    }
    for name, more in of.items():
        assert script(adasteer, *flags, *more, "--out", tmp_path / name) == 0
    run, random, again, other = (read_run(tmp_path / name, name) for name in of)
    assert random.original == again.original == other.original == run.kind
    assert run.original is None and len({r.kind for r in (run, random, again, other)}) == 4
    found = results(tmp_path / "random"), results(tmp_path / "again")
    for name in found[0]:  # the same draws, whichever way
        assert found[0][name]["future_loss"] == pytest.approx(found[1][name]["future_loss"])
    lenders = {name: r["control_video"] for name, r in results(tmp_path / "other").items()}
    assert lenders == {"scene_0": "scene_1", "scene_1": "scene_0"}
    capsys.readouterr()
    assert script(adasteer, *flags, *learned, "--out", tmp_path / "random") == 2
    assert "another run (--control is random there, None here)" in capsys.readouterr().err
    (tmp_path / "run" / "videos" / "scene_1.json").unlink()  # as of a run that is under way
    assert script(adasteer, *flags, *of["again"], "--out", tmp_path / "early") == 2
    said = capsys.readouterr().err
    assert "its run has not been at scene_1 yet (1 of 2 videos); finish it first" in said


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """nano, a clip of the demo that has no truth to be read, and arguments."""
    flags = [*map(str, QUICK), "--limit", "1", "--out", str(tmp_path_factory.mktemp("best"))]
    args = runs.parse_args(None, AdaSteer, [*flags, "--best-of", "3"])
    run, model = runs.Run(args), common.load_model(args)
    with run.working(model):
        clip = run.load_clip(next(run.pending()))
    hidden = ("truth", "future", "held_out", "target", "context", "other", "preflight")
    seen = {name: value for name, value in vars(clip).items() if name not in hidden}
    return model, SimpleNamespace(**seen), args


def test_the_best_is_chosen_without_the_truth(loaded):
    """It has no truth to read; what is chosen is the continuation of that noise."""
    model, clip, args = loaded
    record, all_of_them = {}, SimpleNamespace(**vars(args) | {"best_of": None, "samples": 3})
    found, samples = generate(model, clip, args, record), generate(model, clip, all_of_them, {})
    apart = record["sample_differences"]
    assert len(apart) == 3 == len(set(apart)) and record["best_sample"] == apart.index(min(apart))
    assert found.shape[0] == 1 and torch.equal(found[0], samples[record["best_sample"]])


def test_the_best_has_the_least_error_where_the_model_is_right():
    """Of truths drawn as the samples are; its differences are those from the others."""
    generator, record, errors = torch.Generator().manual_seed(0), {}, []
    for _ in range(200):
        spread = torch.rand(5, 1, generator=generator) * 2  # some samples are further out
        *samples, truth = (spread * torch.randn(5, 1, 6, generator=generator)).split(1)
        best = best_of.nearest_to_others(samples, record)
        errors.append([float((x - truth).square().mean()) for x in (best, *samples)])
        pairs = [(samples[0] - other).square().mean() for other in samples[1:]]
        assert record["sample_differences"][0] == pytest.approx(float(sum(pairs) / 3), rel=1e-5)
    best, *each = torch.tensor(errors).mean(dim=0).tolist()
    assert best < 0.9 * min(each)


def test_a_sample_that_is_not_finite_is_not_the_best():
    record, samples = {}, [torch.full((4,), x) for x in (math.nan, 5.0, 1.0, 1.5)]
    assert best_of.nearest_to_others(samples, record) is samples[3]
    assert record["sample_differences"] == [None, *map(pytest.approx, (14.125, 8.125, 6.25))]
    assert best_of.nearest_to_others(samples[:2], record) is samples[0]
    assert record["best_sample"] == 0 and record["sample_differences"] == [None, None]
