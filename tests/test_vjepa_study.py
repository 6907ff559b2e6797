"""Adaptation of the V-JEPA 2-AC predictor against recorded runs of the study (oracles/vjepa2_ac):
losses, gradients, adapted tensors, predictions and statistics of each."""

import pytest
import torch
from oracles import assert_near
from vjepa2_oracles import (
    KINDS,
    LIMIT,
    LOSS_LIMIT,
    OUTPUT_LIMIT,
    RECORDED,
    SHARE,
    Study,
    clip_of,
    needs_vjepa2,
    predictor_of,
    table,
    tensors,
    values,
)

from predictors import rollout, study, weights
from predictors.rollout import teacher_forced, until

pytestmark = needs_vjepa2


@pytest.fixture(scope="module")
def again(tmp_path_factory):
    """{(kind, name): the run, done again}."""
    predictor = {k: predictor_of(tmp_path_factory.mktemp("predictors"), k) for k in KINDS}
    found = {}
    for kind, name in RECORDED:
        told = table(f"tta/{kind}_results")[name]
        found[kind, name] = Study(predictor[kind], kind, told["settings"], told["clip_order"])
    return found


each_run = pytest.mark.parametrize("kind, name", RECORDED)


def recorded(kind, name):
    return table(f"tta/{kind}_results")[name]


def near(value):
    return pytest.approx(value, abs=LOSS_LIMIT)


def near_all(found, expected):
    assert found == {key: near(expected[key]) for key in found}


@each_run
def test_losses_gradients_and_updates_of_every_step(again, kind, name):
    expected = recorded(kind, name)["adaptation_steps"]
    assert len(again[kind, name].steps) == len(expected)
    for ours, theirs in zip(again[kind, name].steps, expected, strict=True):
        near_all(ours, theirs)
        assert ours.keys() == theirs.keys()


@each_run
def test_losses_of_every_clip_and_frame(again, kind, name):
    expected = recorded(kind, name)["clips"]
    for ours, theirs in zip(again[kind, name].clips, expected, strict=True):
        assert ours["loss"] == near(theirs[f"loss_{kind}"])
        assert ours["frames"] == near(list(theirs["per_timestep_losses"].values()))
        assert ("tta" in ours) == ("tta" in theirs)
        near_all(ours.get("tta", {}), theirs.get("tta", {}))


@each_run
def test_statistics(again, kind, name):
    clips, expected = again[kind, name].clips, recorded(kind, name)["summary"]
    near_all(study.spread([clip["loss"] for clip in clips]), expected[f"{kind}_loss"])
    frames = zip(*(clip["frames"] for clip in clips), strict=True)
    for losses, theirs in zip(frames, expected["per_timestep"].values(), strict=True):
        found = study.spread(losses)
        near_all({key: found[key] for key in ("mean", "min", "max")}, theirs)
    if "tta_stats" in expected:
        near_all(study.of_run([clip["tta"] for clip in clips]), expected["tta_stats"])


@each_run
def test_what_adapts_and_where_it_ends(again, kind, name):
    told, done = recorded(kind, name), again[kind, name]
    layers = told["settings"].get("tta_adapt_layers")
    if layers:
        named = weights.of_kinds(done.method.predictor, layers)
        assert list(named) == told["adapted_parameters"]
        assert sum(p.numel() for p in named.values()) == told["n_adapted"]
        start = done.adaptation.start
        moved = {k for k, value in done.final.items() if not torch.equal(value, start[k])}
        assert moved == set(told["changed_parameters"])
    for key, expected in values(f"tta/{kind}_results", f"{name}.final.").items():
        error = (done.final[key] - expected).abs()
        assert (error <= LIMIT).float().mean() >= SHARE, key


@each_run
def test_predictions_of_the_recorded_clips(again, kind, name):
    clips = values(f"tta/{kind}_results", f"{name}.clip")
    assert clips
    for key, expected in clips.items():
        index = int(key.removesuffix(".pred_after"))
        assert_near(again[kind, name].predictions[index].flatten(1, 2), expected, OUTPUT_LIMIT)


def test_every_recorded_value_is_read():
    for kind in KINDS:
        names = [name for of_kind, name in RECORDED if of_kind == kind]
        rest = {key.split(".")[0] for key in tensors(f"tta/{kind}_results")} - set(names)
        assert names and not rest


@pytest.mark.parametrize("kind", KINDS)
def test_teacher_forcing_of_the_untouched_predictor(again, kind):
    """Recorded with the runs that adapt nothing."""
    told, config = recorded(kind, "baseline"), table(f"tta/{kind}_config")
    predictor = again[kind, "baseline"].method.predictor
    for index, clip in zip(told["clip_order"], told["clips"], strict=True):
        seen = until(clip_of(index), config["T_teacher"])
        found = teacher_forced(predictor, seen)
        true = rollout.on_device(predictor, seen)[0][:, 1:]
        assert rollout.errors(found, true)["l1"].mean().item() == near(clip["loss_teacher"])


def test_the_predictor_is_left_as_it_was(again):
    for kind in KINDS:
        predictor = again[kind, "baseline"].method.predictor
        for name, value in tensors(f"tta/{kind}_weights").items():
            assert torch.equal(predictor.get_parameter(name), value), name
            assert not predictor.get_parameter(name).requires_grad
