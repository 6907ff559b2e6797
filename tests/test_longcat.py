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
    tensors,
)

from backbones.sampling import schedule

pytestmark = needs_oracles


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
STEERED = [e for e in entries("vc_generation", "cases") if "adaptation" in e]


@pytest.mark.parametrize("entry", PLAIN, ids=lambda e: e["name"])
def test_sampling(entry):
    check_sampling(entry)


@pytest.mark.parametrize("entry", STEERED, ids=lambda e: e["name"])
def test_sampling_with_an_adapter(entry):
    """State after step 5; the adapter acts in the pass that fills the cache too."""
    name = entry["name"].removeprefix("vc_")
    check_sampling(entry, lambda model: adapted(model, name, "consistent"))
