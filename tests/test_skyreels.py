"""The SkyReels backbone against diffusers' own transformer and sampler."""

import itertools
import json
import math

import diffusers
import pytest
import torch
from oracles import assert_near
from test_configs import changed
from toy import loss_of, make_skyreels, new, toy_clip

import adasteer
import backbones
import compare
from adasteer import AdaSteer

SCHEDULER = "scheduler/scheduler_config.json"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_skyreels(tmp_path_factory.mktemp("toy") / "SkyReels-V2-DF-1.3B-540P-Diffusers")


@pytest.fixture
def model(checkpoint):
    return backbones.load(checkpoint)


@pytest.fixture(scope="module")
def clip(checkpoint):
    return toy_clip(backbones.load(checkpoint))


@pytest.fixture(scope="module")
def theirs(checkpoint):
    """diffusers' transformer as its pipeline calls it: (latents, sigma of each, text) -> output."""
    dit = diffusers.SkyReelsV2Transformer3DModel.from_pretrained(checkpoint / "transformer").eval()

    @torch.no_grad()
    def call(latents, sigmas, text):
        prompt = text["embeds"][:, 0] * text["mask"][..., None]  # padding is zeros
        at_24_fps = {"enable_diffusion_forcing": True, "fps": [1]}
        return dit(latents, 1000 * sigmas[None], prompt, **at_24_fps, return_dict=False)[0]

    return call


@pytest.mark.parametrize("known", [0, 1, 2])
def test_velocity_is_the_transformers_own_output(model, theirs, clip, known):
    context = clip.context[:, :, :known]
    found = model.velocity(clip.target, torch.tensor([0.3]), context, clip.text)
    sigmas = torch.tensor([0.0] * known + [0.3, 0.3])
    expected = theirs(torch.cat([context, clip.target], dim=2), sigmas, clip.text)
    assert expected.abs().max() > 0.1
    assert_near(found, expected[:, :, known:], 1e-5)


def test_draws_in_a_batch_are_those_of_one_each(model, theirs, clip):
    """diffusers' own forward fails there: it adds the frame rate to frames of one batch only."""
    noisy, sigma = torch.randn(3, *clip.target.shape[1:]), torch.tensor([0.1, 0.5, 0.9])
    found = model.velocity(noisy, sigma, clip.context, clip.text)
    for each, s, v in zip(noisy, sigma, found, strict=True):
        latents = torch.cat([clip.context, each[None]], dim=2)
        expected = theirs(latents, s * torch.tensor([0, 0, 1, 1]), clip.text)
        assert_near(v[None], expected[:, :, 2:], 1e-5)
    with pytest.raises(RuntimeError, match="size of tensor"):
        dit = diffusers.SkyReelsV2Transformer3DModel.from_config(model.dit.config)
        text = clip.text["embeds"][0].expand(2, -1, -1)
        dit(noisy[:2], torch.ones(2, 2), text, enable_diffusion_forcing=True, fps=[1, 1])


def test_the_frame_rate_stays_where_the_embedding_is_steered(model, clip):
    """Of two models that differ in it alone, the difference is not lost with a vector on top."""
    method, _ = new(AdaSteer, "--groups 2", model, clip)
    with torch.no_grad():
        for vector in method.named_parameters().values():
            vector.fill_(1e-6)  # not zero: the projection is taken anew
    with method.attached():
        close = loss_of(model, clip)
    plain = loss_of(model, clip)
    with torch.no_grad():
        model.dit.fps_embedding.weight.add_(5)
    assert abs(close - plain) < 1e-5 < abs(loss_of(model, clip) - plain)
    with method.attached():
        assert_near(loss_of(model, clip), loss_of(model, clip), 0)
        assert abs(loss_of(model, clip) - close) > 1e-5


def guided(theirs, clip, latents, sigma, context, context_sigma, scale):
    sigmas = torch.tensor([context_sigma] * context.shape[2] + [float(sigma)] * latents.shape[2])
    whole, known = torch.cat([context, latents], dim=2), context.shape[2]
    negative, positive = (theirs(whole, sigmas, t) for t in (clip.negative_text, clip.text))
    return (negative + scale * (positive - negative))[:, :, known:]


def test_euler_is_the_sum_over_shifted_sigmas(checkpoint, theirs, clip, tmp_path):
    """x + (sigma' - sigma) v from 1 to 0, sigma = s u / (1 + (s - 1) u) of even u."""
    folder = changed(checkpoint, tmp_path / "euler", SCHEDULER, text=json.dumps(
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    ))  # fmt: skip
    model = backbones.load(folder)
    assert model.geometry.sampling["shift"] == 3.0
    noise = torch.randn(clip.target.shape)
    found = model.generate(clip.cond_latents, clip.text, clip.negative_text, noise, 4, 5.0, 3.0)
    u = torch.tensor([1 - i * 0.999 / 4 for i in range(4)])
    sigmas = [*(3 * u / (1 + 2 * u)).tolist(), 0.0]
    latents = noise
    for sigma, following in itertools.pairwise(sigmas):
        v = guided(theirs, clip, latents, sigma, clip.cond_latents, 0.0, 5.0)
        latents = latents + (following - sigma) * v
    assert_near(found, latents, 1e-4)


def test_unipc_is_the_papers_second_order(checkpoint, theirs, clip, tmp_path):
    """UniPC's predictor of the clean latents over lambda = log(alpha / sigma), alpha = 1 - sigma:
    steps of order 1, 2 and, to sigma 0, 1."""
    off = {"disable_corrector": [0, 1, 2]}
    model = backbones.load(changed(checkpoint, tmp_path / "off", SCHEDULER, **off))
    x = torch.randn(clip.target.shape)
    found = model.generate(clip.cond_latents, clip.text, clip.negative_text, x, 3, 6.0, 8.0)
    sigmas = [1 - 1e-6, *(8 * u / (1 + 7 * u) for u in (0.667, 0.334))]
    lambdas, clean = [math.log((1 - sigma) / sigma) for sigma in sigmas], []
    for i, sigma in enumerate(sigmas):
        v = guided(theirs, clip, x, sigma, clip.cond_latents, 0.0, 6.0)
        clean.append(x - sigma * v)
        if i == 2:
            break
        following, h = sigmas[i + 1], lambdas[i + 1] - lambdas[i]
        towards = clean[i]
        if i:
            towards = towards + h / (lambdas[i] - lambdas[i - 1]) * (clean[i] - clean[i - 1]) / 2
        x = following / sigma * x - (1 - following) * math.expm1(-h) * towards
    assert_near(found, clean[-1], 1e-4)


def test_sampling_is_diffusers_scheduler_on_diffusers_transformer(model, theirs, clip):
    noise = torch.randn(clip.target.shape)
    found = model.generate(clip.cond_latents, clip.text, clip.negative_text, noise, 5, 6.0, 4.0)
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=4.0
    )
    scheduler.set_timesteps(5)
    latents = noise
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas[:-1], strict=True):
        v = guided(theirs, clip, latents, sigma, clip.cond_latents, 0.0, 6.0)
        latents = scheduler.step(v, t, latents, return_dict=False)[0]
    assert_near(found, latents, 1e-4)


@pytest.mark.parametrize(("steps", "shift"), [(200, 8.0), (20, 100.0)])
def test_every_sigma_is_visited_where_timesteps_coincide(model, clip, steps, shift):
    """diffusers keeps UniPC's timesteps as whole numbers: the first ones are all 999 here."""
    seen = []
    hook = model.dit.register_forward_pre_hook(lambda _, args: seen.append(args[1][0, -1].item()))
    model.generate(clip.cond_latents, clip.text, None, clip.target, steps, 1.0, shift)
    hook.remove()
    u = torch.linspace(1, 0.001, steps + 1, dtype=torch.float64)[:-1]
    expected = 1000 * shift * u / (1 + (shift - 1) * u)
    assert int(expected[1]) == 999
    assert seen == pytest.approx(expected.tolist(), rel=1e-5)


def test_noise_on_the_context(model, clip):
    """Of the stated sigma, at its timestep, another in each step and the same for both branches;
    decided by the initial noise."""

    def seen(noise):
        given = []
        hook = model.dit.register_forward_pre_hook(lambda _, args: given.append(args[:2]))
        model.generate(
            clip.cond_latents, clip.text, clip.negative_text, noise, 3, 6.0, context_noise=0.02
        )
        hook.remove()
        return given

    noise = torch.randn(clip.target.shape)
    calls = seen(noise)
    assert len(calls) == 6
    assert all((t[:, :2] == 20).all() and (t[:, 2:] > 20).all() for _, t in calls)
    added = [(x[:, :, :2] - 0.98 * clip.cond_latents) / 0.02 for x, _ in calls]
    assert all(0.8 < n.std() < 1.2 for n in added)
    assert all(torch.equal(*each) for each in zip(added[::2], added[1::2], strict=True))
    assert not torch.equal(added[0], added[2]) and not torch.equal(added[2], added[4])
    again, other = seen(noise), seen(noise + 1)
    assert torch.equal(again[0][0], calls[0][0])
    assert not torch.equal(other[0][0][:, :, :2], calls[0][0][:, :, :2])


def test_what_the_scheduler_file_says_of_the_shift(checkpoint, tmp_path):
    """1 is diffusers' default, and means that nothing was said."""
    assert backbones.geometry(checkpoint).sampling["shift"] == 8.0
    stated = changed(checkpoint, tmp_path / "stated", SCHEDULER, flow_shift=5.0)
    assert backbones.geometry(stated).sampling["shift"] == 5.0


def test_it_is_not_compared_with_another_model(checkpoint, script, tmp_path, capsys):
    flags = ["--no-generate", "--limit", 1, "--no-preflight", "--anchor", 33, "--gen-frames", 12]
    assert script(adasteer, *flags, "--steps", 0, "--out", tmp_path / "nano") == 0
    more = ["--checkpoint", checkpoint, "--cond-frames", 13]
    assert script(adasteer, *flags, *more, "--steps", 1, "--out", tmp_path / "skyreels") == 0
    capsys.readouterr()
    folders = tmp_path / "nano", tmp_path / "skyreels"
    assert script(compare, *folders, "--out", tmp_path / "report") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "they differ in checkpoint_sha256" in said
