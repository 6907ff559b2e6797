"""Schedule and sampling loop of the LongCat backbone against recorded numbers."""

import contextlib

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from oracles import (
    adapted,
    assert_near,
    entries,
    needs_oracles,
    oracle_model,
    prompt,
    table,
    tensors,
)

from backbones.sampling import guide, schedule

pytestmark = needs_oracles
SCHEDULES = entries("scheduler", "schedules")
CASES = entries("vc_generation", "cases")
PLAIN = [e for e in CASES if "adaptation" not in e]
STEERED = [e for e in CASES if "adaptation" in e]


def scheduler_of(entry):
    config = table("scheduler")["config"] | {"shift": entry["shift"]}
    return FlowMatchEulerDiscreteScheduler.from_config(config)


@pytest.mark.parametrize("entry", SCHEDULES, ids=lambda e: e["name"])
def test_schedule(entry):
    options = entry["num_inference_steps"], entry["enhance_hf"], entry["use_distill"]
    sigmas = schedule(scheduler_of(entry), *options)
    threshold = entry["refine_t_thresh"]
    if threshold is not None:  # of the refinement stage, which is not part of video continuation
        sigmas = torch.cat([torch.tensor([threshold]), sigmas[sigmas < threshold]])
    assert_near(sigmas, torch.tensor(entry["sigmas"]), 1e-6)
    assert_near(1000 * sigmas[:-1], torch.tensor(entry["timesteps"]), 1e-3)
    assert len(sigmas) == entry["num_model_evaluations"] + 1


@pytest.mark.parametrize("entry", SCHEDULES, ids=lambda e: e["name"])
def test_sigmas_before_the_shift(entry):
    """What the scheduler is given: a shift of 1 leaves it as it is."""
    plain = scheduler_of(entry | {"shift": 1.0})
    sigmas = schedule(plain, entry["num_inference_steps"], False, entry["use_distill"])
    assert_near(sigmas[:-1], torch.tensor(entry["input_sigmas"]), 1e-6)


def test_euler_example():
    """The example has latents of its own shape; a step is the same for every value, so they are
    laid into as many frames as they need."""
    example = table("scheduler")["step_example"]
    (entry,) = [e for e in SCHEDULES if e["name"] == example["schedule"]]
    model = oracle_model(scheduler=scheduler_of(entry))
    values, steps = tensors("vc_generation"), example["steps"]

    def laid_out(numbers):
        shape = [1, model.latent_channels, -(-len(numbers) // (4 * model.latent_channels)), 2, 2]
        out = torch.zeros(shape)
        out.flatten()[: len(numbers)] = torch.tensor(numbers)
        return out

    given = {step["step_index"]: laid_out(step["model_output"]) for step in steps}
    latents, sigmas = [laid_out(steps[0]["sample"])], []

    def see_sigma(i, e, sigma):
        sigmas.append(sigma[0, -1].item())
        return e

    def recorded_output(v):
        return given.get(len(latents) - 1, torch.zeros_like(v))

    with model.predicted_velocity(recorded_output), model.timestep_embedding(see_sigma):
        model.generate(
            values["cond_latents"][..., :2, :2], prompt("vc_generation"), None, latents[0],
            steps=entry["num_inference_steps"], guidance_scale=1.0,
            enhance_hf=entry["enhance_hf"], distilled=entry["use_distill"],
            on_step=lambda v, after: latents.append(after),
        )  # fmt: skip
    sigmas = sigmas[model.depth + 1 :: model.depth + 1]  # once an evaluation; first the cache's
    assert [step["step_index"] for step in steps] == list(range(len(steps)))
    for i, step in enumerate(steps):
        assert_near(latents[i], laid_out(step["sample"]), 1e-6)
        assert_near(latents[i + 1], laid_out(step["prev_sample"]), 1e-6)
        assert abs(1000 * sigmas[i] - step["timestep"]) < 1e-3


def sample(entry, method=None):
    """The final latents and what every evaluation saw: the sigmas of its frames, its branches
    (negative, then positive), what the Euler step got, and the latents after it."""
    values = tensors("vc_generation")
    config = {"shift": table("vc_generation")["scheduler_shift"]}
    model = oracle_model(entry["text_tokens_zero_pad"], scheduler=scheduler_of(config))
    noise = values["initial_latents"][:, :, entry["num_cond_latents"] :]
    sigmas, branches, after = [], [], []

    def see_sigma(i, e, sigma):
        if i == 0 and sigma.any():  # not in the pass that fills the cache
            sigmas.append(sigma)
        return e

    def see_branches(v):
        branches.append(v)
        return v

    with contextlib.ExitStack() as stack:
        if method:
            stack.enter_context(method(model).attached())
        stack.enter_context(model.timestep_embedding(see_sigma))
        stack.enter_context(model.predicted_velocity(see_branches))  # after the method's
        final = model.generate(
            values["cond_latents"], prompt("vc_generation"), prompt("vc_generation", "negative_"),
            noise, steps=entry["num_inference_steps"], guidance_scale=entry["guidance_scale"],
            enhance_hf=entry["enhance_hf"], distilled=entry["use_distill"],
            use_cache=entry["use_kv_cache"], on_step=lambda v, latents: after.append((v, latents)),
        )  # fmt: skip
    return final, sigmas, branches, after


def negative_scale(branches, guided, scale):
    """a of guided = a * u + scale * (p - a * u), which the sampler does not show."""
    frames = guided.shape[2]
    u, p = (part[:, :, -frames:].double() for part in branches.split(1))
    left = guided.double() - scale * p
    return ((left * u).sum() / (u * u).sum() / (1 - scale)).float()


def check_sampling(entry, method=None):
    values, name, context = tensors("vc_generation"), entry["name"], entry["num_cond_latents"]
    final, sigmas, branches, after = sample(entry, method)
    assert len(after) == len(sigmas) == len(branches) == entry["num_model_evaluations"]
    assert_near(torch.stack([s[0, -1] for s in sigmas]), values[f"{name}.sigmas"][:-1], 1e-6)
    assert_near(1000 * torch.stack([s[0, -1] for s in sigmas]), values[f"{name}.timesteps"], 1e-3)
    assert values[f"{name}.sigmas"][-1] == 0
    assert_near(-branches[0], values[f"{name}.step0.dit_output"], 2e-5)
    assert_near(after[0][0], values[f"{name}.step0.scheduler_model_output"], 1e-4)
    assert_near(after[0][1], values[f"{name}.step0.latents_after"], 1e-4)
    if f"{name}.noise_latents_after_each_step" in values:
        latents = torch.stack([latents for _, latents in after])
        assert_near(latents, values[f"{name}.noise_latents_after_each_step"], 2e-4)
    whole = torch.cat([values["cond_latents"], final], dim=2)
    assert whole.shape[2] == context + final.shape[2]
    assert_near(whole, values[f"{name}.final_latents"], 2e-4)
    assert (f"{name}.st_star" in values) == (entry["guidance_scale"] > 1)
    if entry["guidance_scale"] > 1:
        pairs = zip(branches, (v for v, _ in after), strict=True)
        found = torch.stack([negative_scale(*pair, entry["guidance_scale"]) for pair in pairs])
        assert_near(found, values[f"{name}.st_star"].flatten(), 2e-5)


@pytest.mark.parametrize("entry", PLAIN, ids=lambda e: e["name"])
def test_sampling(entry):
    check_sampling(entry)


@pytest.mark.parametrize("entry", STEERED, ids=lambda e: e["name"])
def test_sampling_with_an_adapter(entry):
    """The adapter acts in the pass that fills the cache too."""
    check_sampling(entry, lambda model: adapted(model, entry["adaptation"]))


@pytest.mark.parametrize("entry", CASES, ids=lambda e: e["name"])
def test_guidance_of_recorded_branches(entry):
    """Where the loop before it is wrong, this one still tells whether the guidance is."""
    values, name, scale = tensors("vc_generation"), entry["name"], entry["guidance_scale"]
    v = -values[f"{name}.step0.dit_output"]
    expected = values[f"{name}.step0.scheduler_model_output"]
    guided = guide(v, scale) if scale > 1 else v
    assert_near(guided[:, :, -expected.shape[2] :], expected, 2e-5)
