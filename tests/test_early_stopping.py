"""Early stopping against recorded numbers: anchor losses, whole runs, decisions, latents."""

from types import SimpleNamespace

import pytest
import torch
from oracles import (
    LIMIT,
    LOSS_LIMIT,
    arguments,
    assert_near,
    entries,
    model_of,
    needs_oracles,
    oracle_clip,
    oracle_draws,
    table,
    tensors,
)

from adasteer import AdaSteer
from backbones.configs import geometry
from common.adaptation import adapt
from common.clip import Window
from common.errors import UsageError
from common.loss import Problem, anchored_loss, flow_matching_loss
from common.stopping import EarlyStopping, held_out_problem

pytestmark = needs_oracles


@pytest.mark.parametrize("sign", ["consistent", "reference"])
def test_anchor_terms(sign):
    file, early = "early_stopping", table("early_stopping")
    values, model, clip = tensors(file), model_of(sign, file), oracle_clip(file)
    problem = Problem(clip.context, clip.held_out, clip.text)
    rows = early["anchor_terms_at_zero_delta"][sign]
    for sigma, row in zip(early["defaults"]["anchor_sigmas"], rows, strict=True):
        for noise, expected in zip(values["anchor_noise"], row, strict=True):
            assert abs(anchored_loss(model, problem, (sigma,), noise) - expected) < LOSS_LIMIT


@pytest.mark.parametrize(
    "entry", entries("early_stopping", "runs"), ids=lambda e: e["tensor"].removeprefix("run.")
)
def test_early_stopping_run(entry):
    """With the flags' settings and the study's placement of the held-out latents."""
    file, defaults = "early_stopping", table("early_stopping")["defaults"]
    values, model = tensors(file), model_of(entry["target_sign"], file)
    flags = f"--lr {entry['lr']} --final-layer --steps {entry['max_steps']}"
    flags += f" --stop-every {entry['check_every']} --patience {entry['patience']}"
    flags += f" --stop-draws {defaults['noise_draws']} --stop-sigmas "
    flags += ",".join(map(str, defaults["anchor_sigmas"]))
    args, clip = arguments(AdaSteer, flags), oracle_clip(file)
    method = AdaSteer(model, clip, args)
    method.draws = lambda: oracle_draws(values, clip)
    problem, noise = Problem(clip.context, clip.held_out, clip.text), values["anchor_noise"][:, 0]
    assert len(noise) == args.stop_draws

    def measure():  # directly after the context, as the study does
        return anchored_loss(model, problem, args.stop_sigmas, noise)

    with method.attached():
        stopper = EarlyStopping(method.delta, measure, args.stop_every, args.patience)
        record = adapt(model, method, clip, args, stopping=stopper)
    steps, losses = zip(*record["anchor_losses"], strict=True)
    expected_steps, expected = zip(*entry["anchor_history"], strict=True)
    assert steps == expected_steps
    assert_near(torch.tensor(losses), torch.tensor(expected), LOSS_LIMIT)
    assert_near(torch.tensor(record["losses"]), torch.tensor(entry["train_losses"]), LOSS_LIMIT)
    assert record["best_step"] == entry["best_step"]
    assert record["stop_step"] == (len(record["losses"]) if entry["stopped_early"] else None)
    assert_near(method.delta[0].detach(), values[entry["tensor"]], LIMIT)


@pytest.mark.parametrize(
    ("lengths", "alone", "shown"), [(None, False, 4), ((1, 4), False, 4), ((1, 9), False, 1),
                                    (None, True, 1)],
)  # fmt: skip
def test_what_is_held_out_is_predicted_as_the_model_was_made_for(lengths, alone, shown):
    """From a context of a length that it takes; the loss is of the held-out latents alone."""
    latents = torch.arange(5.0).view(1, 1, 5, 1, 1)
    clip = SimpleNamespace(
        context=latents[:, :, :1], target=latents[:, :, 1:4], held_out=latents[:, :, 4:], text={}
    )
    seen = []

    def velocity(noisy, sigma, context, text):
        seen.append((context.flatten().tolist(), noisy.shape[2]))
        target = latents[:, :, context.shape[2] :]
        return torch.where(target == 4, 1 - target, 1e3)  # of noise 1: right where it counts

    model = SimpleNamespace(
        geometry=SimpleNamespace(context_lengths=lengths, context_alone=alone), velocity=velocity
    )
    problem = held_out_problem(model, clip)
    loss = flow_matching_loss(model, problem, torch.ones(1), torch.ones_like(problem.target))
    assert seen == [(latents[:, :, :shown].flatten().tolist(), 5 - shown)] and loss == 0
    model.velocity = lambda noisy, *_: torch.ones_like(noisy)  # wrong by 4 on the one that counts
    wrong = flow_matching_loss(model, problem, torch.ones(1), torch.ones_like(problem.target))
    assert wrong == 16


@pytest.mark.parametrize("row", entries("early_stopping", "stop_table"))
def test_stop_table(row):
    """The study's `first_rise` is a patience of 1."""
    losses = iter(float("nan") if v is None else v for v in row["anchor_losses"])
    state = torch.zeros(1)
    patience = 1 if row["strategy"] == "first_rise" else row["patience"]
    stopper = EarlyStopping([state], lambda: next(losses), row["check_every"], patience)
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
    measured = [loss for _, loss in stopper.history]
    assert measured == row["anchor_losses"][: row["anchor_losses_used"]]


SPLITS = entries("early_stopping", "latent_split", "table")


@pytest.mark.parametrize(
    "row",
    [row for row in SPLITS if row["holdout_fraction"] == 0.25],  # ours is always a quarter
    ids=lambda row: f"{row['num_context_latents']}-of-{row['total_latents']}",
)
def test_latent_split(row):
    """Where nothing can be held out the study goes on without early stopping; we refuse."""
    frames = 4 * (row["total_latents"] - 1) + 1
    flags = f"--anchor {frames} --tta-frames {frames} --stop-every 1"
    flags += f" --cond-frames 1 --context-latents {row['num_context_latents']}"
    if row["val"]:
        window = Window.of(arguments(AdaSteer, flags), geometry({}, 16))
        assert (window.context_latents, window.held_out_latents) == (row["cond"], row["val"])
        assert row["cond"] + row["train"] + row["val"] == row["total_latents"]
    else:
        with pytest.raises(UsageError, match="--tta-frames"):
            arguments(AdaSteer, flags)
