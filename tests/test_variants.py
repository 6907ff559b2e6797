"""A researcher's copy of a script: what is changed in it runs, what is misspelt is said."""

import importlib
import json
import sys

import pytest
import torch
from toy import new

import adasteer
import common
from common.adaptation import adapt
from common.method import refuse_misspelt
from film_tta import FiLM
from full_tta import FullTTA
from lora_tta import LoRA
from runs.identity import ROOT

L1 = """    def loss(self, draw):
        noisy = common.add_noise(draw.problem.target, draw.noise, draw.sigma)
        velocity = self.model.velocity(noisy, draw.sigma, draw.problem.context, draw.problem.text)
        return (velocity - (draw.noise - draw.problem.target)).abs().mean()

    def attached(self):"""


@pytest.fixture
def variant(tmp_path, monkeypatch):
    """A function that gives adasteer.py as the module variant.py, with one place changed."""

    def load(before, after):
        text = (ROOT / "adasteer.py").read_text()
        assert text.count(before) == 1
        (tmp_path / "variant.py").write_text(text.replace(before, after))
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "variant", raising=False)
        return importlib.import_module("variant")

    return load


def test_a_copy_with_another_loss_runs(variant, script, tmp_path):
    """An L1 loss in place of its own, and nothing else changed."""
    text = (ROOT / "adasteer.py").read_text()
    start, stop = text.index("    def loss(self"), text.index("    def attached(self):")
    module = variant(text[start:stop] + "    def attached(self):", L1)
    flags = ["--limit", 1, "--steps", 2, "--lr", 1e-2, "--no-generate"]
    found = []
    for each in (adasteer, module):
        out = tmp_path / each.__name__
        assert script(each, *flags, "--out", out) == 0
        (path,) = (out / "videos").glob("*.json")
        found.append(json.loads(path.read_text()))
    squared, absolute = (record["losses"] for record in found)
    assert absolute[0] != squared[0] and absolute[1] != squared[1]
    assert found[0]["future_loss_before"] == found[1]["future_loss_before"]
    assert found[0]["future_loss"] != found[1]["future_loss"]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("def loss(self", "def losses(self", r"has no loss; it needs loss\(draw\)"),
        ("def clipped_together", "def clip_together", "mean clipped_together"),
        ("def details(self)", "def detail(self)", "mean details"),
        ("def named_parameters", "def parameters", "has no named_parameters"),
    ],
)
def test_misspelt_names_are_refused(variant, before, after, message):
    with pytest.raises(common.UsageError, match=message):
        refuse_misspelt(variant(before, after).AdaSteer)


@pytest.mark.parametrize("name", ["penality", "scheduler", "Solve"])
def test_what_nothing_calls_is_no_part_of_a_method(name):
    cls = type("Mine", (adasteer.AdaSteer,), {name: lambda self: 0.0, "__module__": __name__})
    with pytest.raises(common.UsageError, match=rf"Mine\.{name} is no part of a method"):
        refuse_misspelt(cls)


@pytest.mark.parametrize("cls", [adasteer.AdaSteer, FiLM, FullTTA, LoRA])
def test_helpers_that_a_method_calls_may_have_any_name(cls):
    refuse_misspelt(cls)


HELPED = """
import functools
import torch
from adasteer import AdaSteer


class Site:
    def __call__(self, method):
        return method.by_a_class()


def decorated(function):
    return lambda self: function(self)


class Mine(torch.nn.Module, AdaSteer):
    class Inner:
        def read(self, method):
            return method.by_a_nested_class(), method.rate

    @functools.cached_property
    def rate(self):
        return self.by_a_property()

    @decorated
    def attached(self):
        return Site(), self.Inner().read(self), getattr(self, "by_a_text"), self.by_a_closure()

    def by_a_class(self): ...
    def by_a_nested_class(self): ...
    def by_a_property(self): ...
    def by_a_text(self): ...
    def by_a_closure(self): ...
"""


def test_a_helper_may_be_called_in_any_way(tmp_path, monkeypatch):
    """And a class of another package may have what it likes, as torch's Module has `register_*`."""
    (tmp_path / "helped.py").write_text(HELPED)
    monkeypatch.syspath_prepend(tmp_path)
    refuse_misspelt(importlib.import_module("helped").Mine)


@pytest.mark.parametrize(
    "change",
    [lambda loss: loss.expand(2), lambda loss: (loss, 0.0), lambda loss: (loss, loss, loss)],
    ids=["of each draw", "no tensor", "three"],
)
def test_a_loss_that_is_no_scalar_is_said(model, clip, change):
    class Mine(adasteer.AdaSteer):
        def loss(self, draw):
            return change(super().loss(draw))

    method, args = new(Mine, "", model, clip)
    with method.attached(), pytest.raises(common.UsageError, match=r"loss\(draw\) must give a"):
        adapt(model, method, clip, args)


def test_a_method_with_its_own_draws_sees_those(model, clip):
    class Twice(adasteer.AdaSteer):
        def draws(self):
            (first,) = common.draws(model, clip, common_args)
            return [first] * 2

    _, common_args = new(adasteer.AdaSteer, "--steps 1", model, clip)
    method, args = new(Twice, "", model, clip)
    with method.attached():
        record = adapt(model, method, clip, args)
    assert len(record["losses"]) == 2 and record["sigmas"][0] == record["sigmas"][1]
    assert torch.isfinite(torch.tensor(record["losses"])).all()


def test_an_optimiser_without_its_schedule_is_one_line(model, clip):
    class Alone(adasteer.AdaSteer):
        def optimizer(self):
            return torch.optim.SGD(self.delta, lr=0.1)

    method, args = new(Alone, "", model, clip)
    with method.attached(), pytest.raises(common.UsageError, match="common.constant.*gave SGD"):
        adapt(model, method, clip, args)
