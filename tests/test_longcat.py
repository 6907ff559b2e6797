"""Schedule, sampling loop and AdaSteer on the LongCat backbone against recorded numbers."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from oracles import assert_near, entries, needs_oracles, oracle_model, prompt, tensors

from adasteer import AdaSteer
from backbones.sampling import schedule
from common.adapt import take_step
from common.loss import flow_matching_loss

pytestmark = needs_oracles
RATES = {"delta_a": 1e-2, "delta_a_lr1e-1": 1e-1}


def new_adasteer(model, name, cls=AdaSteer):
    """The method of a recorded trajectory: delta_a..., or delta_b_g<G>..."""
    groups = int(name[9]) if name.startswith("delta_b") else 1
    args = SimpleNamespace(
        groups=groups, final_layer=name.startswith("delta_a"), weight_decay=0.01,
        lr=RATES.get(name, 1e-2),
    )  # fmt: skip
    return cls(model, None, args)


# without the refinement stage, which is not part of video continuation
SCHEDULES = [e for e in entries("scheduler", "schedules") if e["refine_t_thresh"] is None]


@pytest.mark.parametrize("entry", SCHEDULES, ids=lambda e: e["name"])
def test_schedule(entry):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=entry["shift"])
    steps, enhance_hf = entry["num_inference_steps"], entry["enhance_hf"]
    sigmas = schedule(scheduler, steps, enhance_hf, entry["use_distill"])
    assert_near(sigmas, torch.tensor(entry["sigmas"]), 1e-6)
    assert_near(1000 * sigmas[:-1], torch.tensor(entry["timesteps"]), 1e-3)


def sample(entry, method=None):
    values, seen = tensors("vc_generation"), []
    model = oracle_model(entry["text_tokens_zero_pad"])
    noise = values["initial_latents"][:, :, entry["num_cond_latents"] :]
    with method(model).attached() if method else contextlib.nullcontext():
        final = model.generate(
            values["cond_latents"], prompt("vc_generation"), prompt("vc_generation", "negative_"),
            noise, steps=entry["num_inference_steps"], guidance_scale=entry["guidance_scale"],
            enhance_hf=entry["enhance_hf"], distill=entry["use_distill"],
            use_cache=entry["use_kv_cache"], on_step=lambda v, latents: seen.append((v, latents)),
        )  # fmt: skip
    return final, seen


def check_sampling(entry, method=None):
    values, name = tensors("vc_generation"), entry["name"]
    final, seen = sample(entry, method)
    assert len(seen) == entry["num_model_evaluations"]
    assert_near(seen[0][0], values[f"{name}.step0.scheduler_model_output"], 1e-4)
    assert_near(seen[0][1], values[f"{name}.step0.latents_after"], 1e-4)
    if f"{name}.noise_latents_after_each_step" in values:
        after = torch.stack([latents for _, latents in seen])
        assert_near(after, values[f"{name}.noise_latents_after_each_step"], 2e-4)
    expected = values[f"{name}.final_latents"][:, :, entry["num_cond_latents"] :]
    assert_near(final, expected, 2e-4)


PLAIN = [e for e in entries("vc_generation", "cases") if "adaptation" not in e]
STEERED = [e for e in entries("vc_generation", "cases") if "vc_delta_a" in e["name"]]
STEERED += [e for e in entries("vc_generation", "cases") if "vc_delta_b" in e["name"]]


@pytest.mark.parametrize("entry", PLAIN, ids=lambda e: e["name"])
def test_sampling(entry):
    check_sampling(entry)


@pytest.mark.parametrize("entry", STEERED, ids=lambda e: e["name"])
def test_sampling_with_adasteer(entry):
    name = entry["name"].removeprefix("vc_")
    delta = tensors("tta_adasteer")[f"{name}.consistent.delta.step5"]

    def method(model):
        steered = new_adasteer(model, name)
        steered.delta = list(delta.reshape(-1, delta.shape[-1]))
        return steered

    check_sampling(entry, method)


@pytest.mark.parametrize("site", ["delta_c", "film_full_g2"])
def test_sampling_with_the_other_sites(site):
    """The velocity and modulation sites, with adapters of methods that come later."""
    values = tensors("tta_baselines")
    (entry,) = [e for e in entries("vc_generation", "cases") if e["name"] == f"vc_{site}"]

    def method(model):
        adapter = values[f"{site}.consistent.{'delta.step5' if site == 'delta_c' else 'final'}"]
        if site == "delta_c":  # recorded on the raw output: minus the velocity
            context = model.predicted_velocity(lambda v: v - adapter.view(1, -1, 1, 1, 1))
        else:
            context = model.modulation(lambda i, m: m + adapter.view(2, -1)[i * 2 // model.depth])
        return SimpleNamespace(attached=lambda: context)

    check_sampling(entry, method)


class FirstDims(AdaSteer):
    """delta_dim 8: the first components of each vector are trained, the others stay 0."""

    def steer(self, i, e, sigma):
        mask = (torch.arange(e.shape[-1]) < 8).to(e)
        return e if i == self.model.depth else e + mask * self.delta[0]


class LastBlocks(AdaSteer):
    """target_blocks last_2 of 4: the map of blocks to groups is unchanged."""

    def steer(self, i, e, sigma):
        return super().steer(i, e, sigma) if i >= 2 else e


VARIANTS = {"delta_b_g1_dim8": FirstDims, "delta_b_g2_last2": LastBlocks}


@pytest.mark.parametrize("recompute", [0, 4])
@pytest.mark.parametrize(
    "entry", entries("tta_adasteer", "methods"), ids=lambda e: f"{e['name']}-{e['target_sign']}"
)
def test_adasteer_trajectory(entry, recompute):
    """Losses, gradient and vectors of five steps. The `reference` target is that of a backbone
    whose network sign is flipped: mean((out - target)^2) with v = out."""
    values, name, sign = tensors("tta_adasteer"), entry["name"], entry["target_sign"]
    model = oracle_model(network_sign=1 if sign == "reference" else -1)
    model.recompute(recompute)
    method = new_adasteer(model, name, VARIANTS.get(name, AdaSteer))
    clip = SimpleNamespace(
        target=values["train_latents"], context=values["cond_latents"], text=prompt("tta_adasteer")
    )
    with method.attached():
        optimizer = method.optimizer(method.args)
        for step in range(5):
            sigma, noise = values["sigma"][step : step + 1], values["noise"][step]
            if step == 0:
                flow_matching_loss(model, clip, sigma, noise).backward()
                check_gradient(method.delta, values[f"{name}.{sign}.grad_step1"])
            loss = take_step(model, method, optimizer, clip, sigma, noise)
            assert abs(loss - entry["losses"][step]) < 2e-5
            recorded = values[f"{name}.{sign}.delta.step{step + 1}"]
            trained = torch.stack(method.delta).detach()[:, : recorded.shape[-1]]
            assert_near(trained, recorded.reshape(trained.shape), 5e-6)
    model.recompute(0)


def check_gradient(delta, expected):
    expected = expected.reshape(len(delta), -1)
    for vector, value in zip(delta, expected, strict=True):
        if vector.grad is None:
            assert not value.any()
        else:
            assert_near(vector.grad[: len(value)], value, 2e-5)
            assert not vector.grad[len(value) :].any()


@pytest.mark.parametrize("sign", ["consistent", "reference"])
def test_anchor_loss_after_adaptation(sign):
    """The loss on held-out latents directly after the context, at fixed sigmas and draws."""
    values = tensors("tta_adasteer")
    model = oracle_model(network_sign=1 if sign == "reference" else -1)
    (entry,) = [
        e for e in entries("tta_adasteer", "methods")
        if e["name"] == "delta_a" and e["target_sign"] == sign
    ]  # fmt: skip
    clip = SimpleNamespace(
        target=values["val_latents"], context=values["cond_latents"], text=prompt("tta_adasteer")
    )
    method = new_adasteer(model, "delta_a")
    for step, expected in ((0, entry["anchor_loss_before"]), (5, entry["anchor_loss_after"])):
        if step:
            method.delta = [values[f"delta_a.{sign}.delta.step{step}"]]
        with method.attached(), torch.no_grad():
            losses = [
                flow_matching_loss(model, clip, torch.tensor([sigma]), noise)
                for sigma in (0.25, 0.5, 0.75)
                for noise in values["anchor_noise"]
            ]
        assert abs(torch.stack(losses).mean().item() - expected) < 2e-5
