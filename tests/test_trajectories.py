"""Every method's five steps, and the early stopping, against recorded numbers."""

import re

import pytest
import torch
from oracles import (
    FLAGS,
    arguments,
    assert_near,
    entries,
    needs_oracles,
    oracle_clip,
    oracle_method,
    oracle_model,
    recorded,
    table,
    tensors,
)

from adasteer import AdaSteer
from common import stopping
from common.adapt import adapt
from common.loss import Problem, anchored_loss, flow_matching_loss
from lora_tta import PREFIX

pytestmark = needs_oracles
BOTH = entries("tta_adasteer", "methods") + entries("tta_baselines", "methods")
METHODS = [e for e in BOTH if "split" not in e["name"]]
LOSS_LIMIT = 2e-5


def model_of(sign):
    """The `reference` target is that of a backbone whose network sign is flipped: mean((out -
    target)^2) with v = out."""
    return oracle_model(network_sign=1 if sign == "reference" else -1)


def oracle_losses(values):
    """The recorded draws in place of random ones."""

    def losses(model, clip, args):
        for sigma, noise in zip(values["sigma"], values["noise"], strict=True):
            sigma = sigma.view(1)
            yield sigma.tolist(), lambda s=sigma, n=noise: flow_matching_loss(model, clip, s, n)

    return losses


def oracle_anchor(model, values):
    problem = Problem(values["cond_latents"], values["val_latents"], oracle_clip().text)
    return lambda: anchored_loss(model, problem, (0.25, 0.5, 0.75), values["anchor_noise"][:, 0])


def test_every_recorded_method_has_its_flags():
    assert {entry["name"] for entry in METHODS} == FLAGS.keys()


@pytest.mark.parametrize("recompute", [0, 4])
@pytest.mark.parametrize("entry", METHODS, ids=lambda e: f"{e['name']}-{e['target_sign']}")
def test_trajectory(entry, recompute):
    name, sign = entry["name"], entry["target_sign"]
    values, model = tensors("tta_baselines"), model_of(sign)
    model.recompute(recompute)
    method, args = oracle_method(model, name)
    method.losses = oracle_losses(values)
    # Adam magnifies rounding where a gradient nearly vanishes, by up to its rate
    limit = 0.1 * args.lr if name.startswith("lora") else 5e-6
    with method.attached():
        record = adapt(model, method, oracle_clip(), args)
        after = oracle_anchor(model, values)()
    model.recompute(0)
    assert_near(torch.tensor(record["losses"]), torch.tensor(entry["losses"]), LOSS_LIMIT)
    assert abs(after - entry["anchor_loss_after"]) < LOSS_LIMIT
    parameters = method.named_parameters()
    for key, expected in recorded(model, name, sign).items():
        actual = parameters[key].detach()
        assert_near(actual, expected[: len(actual)], limit)
    assert record["adapted_parameters"] == entry["num_trainable_parameters"]
    if isinstance(entry["target_modules"], list):
        names = [re.sub(r"\.lora_[AB]\.weight", "", n.removeprefix(PREFIX)) for n in parameters]
        assert list(dict.fromkeys(names)) == entry["target_modules"]
    merged = {}
    for key, moved in entry.get("update_l2_per_parameter", {}).items():
        kind = re.sub(r"^blocks\.\d+\.", "blocks.*.", key)
        merged[kind] = merged.get(kind, 0) + moved**2
    for kind, square in merged.items():
        assert record["distances"][kind] == pytest.approx(square**0.5, rel=2e-2, abs=1e-7)


@pytest.mark.parametrize("sign", ["consistent", "reference"])
def test_first_gradient(sign):
    values = tensors("tta_adasteer")
    model = model_of(sign)
    for name in ("delta_a", "delta_b_g2", "delta_b_g1_dim8", "delta_b_g2_last2"):
        method, _ = oracle_method(model, name)
        with method.attached():
            flow_matching_loss(
                model, oracle_clip(), values["sigma"][:1], values["noise"][0]
            ).backward()
        expected = values[f"{name}.{sign}.grad_step1"].reshape(len(method.delta), -1)
        for vector, value in zip(method.delta, expected, strict=True):
            actual = torch.zeros_like(vector) if vector.grad is None else vector.grad
            assert_near(actual, value[: len(actual)], 2e-5)
            assert not value[len(actual) :].any()


@pytest.mark.parametrize("sign", ["consistent", "reference"])
def test_anchor_terms(sign):
    values, model, clip = tensors("early_stopping"), model_of(sign), oracle_clip("early_stopping")
    terms = table("early_stopping")["anchor_terms_at_zero_delta"][sign]
    problem = Problem(clip.context, clip.held_out, clip.text)
    for sigma, row in zip((0.25, 0.5, 0.75), terms, strict=True):
        for noise, expected in zip(values["anchor_noise"], row, strict=True):
            assert abs(anchored_loss(model, problem, (sigma,), noise) - expected) < 2e-5


@pytest.mark.parametrize(
    "entry", entries("early_stopping", "runs"), ids=lambda e: e["tensor"].removeprefix("run.")
)
def test_early_stopping_run(entry, monkeypatch):
    """Through the flags, with the study's placement of the held-out latents."""
    values, model = tensors("early_stopping"), model_of(entry["target_sign"])
    flags = f"--lr {entry['lr']} --final-layer --steps {entry['max_steps']}"
    flags += f" --stop-every {entry['check_every']} --patience {entry['patience']}"
    args, clip = arguments(AdaSteer, flags), oracle_clip("early_stopping")
    method = AdaSteer(model, clip, args)
    method.losses = oracle_losses(values)
    monkeypatch.setattr(stopping, "draw_noise", lambda *_: values["anchor_noise"][:, 0])
    with method.attached():
        stopper = stopping.early_stopping(model, clip, args, method.delta, after_context=True)
        record = adapt(model, method, clip, args, stopping=stopper)
    steps, losses = zip(*record["anchor_losses"], strict=True)
    expected_steps, expected = zip(*entry["anchor_history"], strict=True)
    assert steps == expected_steps
    assert_near(torch.tensor(losses), torch.tensor(expected), 5e-5)
    assert_near(torch.tensor(record["losses"]), torch.tensor(entry["train_losses"]), 5e-5)
    assert record["best_step"] == entry["best_step"]
    assert record["stop_step"] == (len(record["losses"]) if entry["stopped_early"] else None)
    assert_near(method.delta[0].detach(), values[entry["tensor"]], 2e-5)


@pytest.mark.parametrize(
    "row", [r for r in entries("early_stopping", "stop_table") if r["strategy"] == "patience"]
)
def test_stop_table(row):
    losses = iter(float("nan") if v is None else v for v in row["anchor_losses"])
    state = torch.zeros(1)
    stopper = stopping.EarlyStopping(
        [state], lambda: next(losses), row["check_every"], row["patience"]
    )
    for step in range(1, row["max_steps"] + 1):
        state.fill_(step)
        if stopper.ends_after(step):
            break
    stopper.restore()
    assert step == row["steps_run"] and stopper.stop_step == row["stop_step"]
    assert (stopper.stop_step is not None) == row["stopped_early"]
    assert stopper.best_step == row["best_step"] and stopper.best_loss == row["best_loss"]
    assert state.item() == row["restored_step"]
    assert len(stopper.history) == row["anchor_losses_used"]
