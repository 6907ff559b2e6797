"""Where the adaptation to a video begins, and what it leaves to the next."""

import importlib
import math
from types import SimpleNamespace

import pytest
import torch
from test_scripts import SCRIPTS
from test_vjepa_carried import flat
from toy import copies, new

from adasteer import AdaSteer
from common.adaptation import adapt
from common.loss import Draw
from common.start import Start
from common.stopping import EarlyStopping
from lora_tta import LoRA

each_method = pytest.mark.parametrize("name", SCRIPTS)


def method_of(name):
    return getattr(importlib.import_module(name), SCRIPTS[name][0])


def on(clip, start=None, name="toy", **more):
    """The clip as another video, with that start."""
    return SimpleNamespace(
        **vars(clip) | {"start": start, "video": SimpleNamespace(id=name)} | more
    )


def adapted(cls, flags, model, clip, draws=None):
    """(method, record) after an adaptation, to these draws in place of the clip's."""
    method, args = new(cls, f"--future-draws 0 {flags}", model, clip)
    if draws:
        method.draws = lambda: draws
    with method.attached():
        return method, adapt(model, method, clip, args)


@each_method
def test_keeping_all_is_one_adaptation_without_a_break(name, model, clip):
    """The same draws in one go, or half of them on each of two videos: the same to the bit, which
    parameters, moments, count of steps and schedule have to go on for."""
    cls, flags, first = method_of(name), "--carry-over 1", Start()
    draws = [Draw(clip, torch.tensor([0.5]), torch.ones_like(clip.target))] * 4
    adapted(cls, flags, model, on(clip, first), draws[:2])
    second = Start(first.leaves)
    halves, record = adapted(cls, flags, model, on(clip, second), draws[2:])
    whole, _ = adapted(cls, flags, model, on(clip, Start()), draws)
    expected = copies(whole)
    assert all(torch.equal(x, expected[key]) for key, x in copies(halves).items())
    assert record["kept"] == "adapted"
    once, _ = adapted(cls, "", model, clip, draws[2:])
    assert any(not torch.equal(x, expected[key]) for key, x in copies(once).items())


def test_the_optimiser_goes_on_from_the_step_that_is_kept(model, clip):
    """Of four the second: what goes on is as if no more had been made."""

    def left(losses):
        start, flags = Start(), "--carry-over 1 --future-draws 0"
        method, args = new(AdaSteer, flags, model, clip)
        draw = Draw(clip, torch.tensor([0.5]), torch.ones_like(clip.target))
        method.draws = lambda: [draw] * (len(losses) - 1)
        parameters = method.named_parameters().values()
        stopping = EarlyStopping(parameters, iter(losses).__next__, every=1)
        with method.attached():
            adapt(model, method, on(clip, start), args, stopping=stopping)
        return flat(start.leaves)

    assert left([3.0, 2.0, 1.0, 4.0, 5.0]) == left([3.0, 2.0, 1.0])


@each_method
def test_what_goes_on_is_shrunk_towards_the_start(name, model, clip):
    """Parameters, moments and the count of steps."""
    cls = method_of(name)
    first = Start()
    adapted(cls, "--carry-over 0.25", model, on(clip, first))
    second = on(clip, Start(first.leaves), "next")
    own, _ = new(cls, "--carry-over 0.25", model, second)
    begun, args = new(cls, "--carry-over 0.25", model, second)
    second.start.begin(model, begun, second, args)
    for key, x in copies(own).items():
        left = first.leaves["parameters"][key]
        torch.testing.assert_close(copies(begun)[key], x + 0.25 * (left - x))
    optimizer, schedule = begun.optimizer()
    second.start.resume(optimizer, schedule)
    moments = optimizer.state_dict()["state"]
    for i, before in first.leaves["optimizer"]["state"].items():
        for key, value in before.items():
            torch.testing.assert_close(moments[i][key].cpu(), 0.25 * value)


def test_near_zero_it_is_the_adaptation_of_a_video_alone(model, clip):
    first, flags = Start(), "--carry-over 1e-9"
    adapted(AdaSteer, flags, model, on(clip, first))
    alone, _ = adapted(AdaSteer, flags, model, on(clip, Start(), "next"))
    nearly, _ = adapted(AdaSteer, flags, model, on(clip, Start(first.leaves), "next"))
    torch.testing.assert_close(copies(nearly), copies(alone), atol=1e-6, rtol=0)


def test_videos_that_follow_each_other_have_one_random_start(model, clip):
    starts = {
        flags: [copies(new(LoRA, flags, model, on(clip, name=x))[0]) for x in ("a", "b")]
        for flags in ("", "--carry-over 0.5", "--reptile 0.5")
    }
    same = {
        flags: all(torch.equal(a[key], b[key]) for key in a) for flags, (a, b) in starts.items()
    }
    assert same == {"": False, "--carry-over 0.5": True, "--reptile 0.5": True}


def left_by(offset):
    """A state with these vectors."""
    return {"parameters": {"delta.0": torch.full((16,), float(offset))}}


def test_reptile_moves_a_start_by_a_share_of_each_adaptation(model, clip):
    flags, begun = "--reptile 0.25", Start(left_by(0.3))
    method, record = adapted(AdaSteer, flags, model, on(clip, begun))
    ended = method.named_parameters()["delta.0"].detach()
    expected = 0.3 + 0.25 * (ended - 0.3)
    torch.testing.assert_close(begun.leaves["parameters"]["delta.0"], expected)
    assert begun.leaves.keys() == {"parameters"}  # each video has a new optimiser
    assert record["distances"]["delta.0"] == pytest.approx(float((ended - 0.3).norm()))


def carried_state(model, clip, offset):
    """What a video leaves, with these vectors in place of what it learned."""
    first = Start()
    adapted(AdaSteer, "--carry-over 1", model, on(clip, first))
    return first.leaves | left_by(offset)


@pytest.mark.parametrize("offset, reset", [(30.0, True), (0.0, False), (math.nan, True)])
def test_back_to_the_start_where_what_came_is_worse(offset, reset, model, clip):
    start = Start(carried_state(model, clip, offset))
    flags = "--carry-over 1 --reset-on-degradation --stop-draws 64"
    method, record = adapted(AdaSteer, flags, model, on(clip, start, "next"))
    found = record["degradation"]
    assert found["reset"] is reset
    if math.isfinite(offset):
        assert reset == (found["rise"] > found["standard_error"])
    else:
        assert found["rise"] is None
    alone, _ = adapted(AdaSteer, "--carry-over 1", model, on(clip, Start(), "next"))
    fresh = torch.equal(copies(method)["delta.0"], copies(alone)["delta.0"])
    assert fresh is reset  # without a reset the optimiser is an old one


def test_without_the_flag_what_came_is_kept_however_bad(model, clip):
    start = Start(carried_state(model, clip, 30.0))
    method, record = adapted(AdaSteer, "--carry-over 1", model, on(clip, start, "next"))
    assert "degradation" not in record and record["norms"]["delta.0"] > 50


def test_an_adaptation_that_diverges_leaves_what_was_there(model, clip):
    left = carried_state(model, clip, 0.1)
    start, before, steps = Start(left), flat(left), []

    class Diverging(AdaSteer):
        def loss(self, draw):
            steps.append(draw)
            return super().loss(draw) * (math.nan if len(steps) > 1 else 1)

    Diverging.__module__ = AdaSteer.__module__
    method, record = adapted(Diverging, "--carry-over 0.5", model, on(clip, start, "next"))
    assert record["diverged"] and record["kept"] == "carried" and flat(start.leaves) == before
    torch.testing.assert_close(copies(method)["delta.0"], torch.full((16,), 0.05))
    assert record["fixed_loss_online"] == record["fixed_loss_after"]


def test_the_three_losses_are_of_the_model_as_it_is_as_it_came_and_adapted(model, clip):
    future = {"future": clip.target + 0.5, "preflight": {"loss": 1.25}}
    flags = "--carry-over 1 --future-draws 1 --lr 0.1"
    start = Start(carried_state(model, clip, 0.5))
    _, record = adapted(AdaSteer, flags, model, on(clip, start, **future))
    assert record["fixed_loss_before"] == 1.25
    for kind in ("future_loss", "fixed_loss"):
        after = record["future_loss" if kind == "future_loss" else "fixed_loss_after"]
        assert len({record[f"{kind}_before"], record[f"{kind}_online"], after}) == 3
    _, alone = adapted(AdaSteer, flags, model, on(clip, None, **future))
    assert (
        alone["future_loss_before"] == alone["future_loss_online"] == record["future_loss_before"]
    )
    assert alone["fixed_loss_online"] == 1.25
