"""Sigmas that are spread otherwise, noise on the context, weights of the latents, and the gate."""

import math
from types import SimpleNamespace

import pytest
import torch
from oracles import arguments
from test_start import adapted, carried_state, on
from test_vjepa_carried import flat
from toy import copies, new

import adasteer
from adasteer import AdaSteer
from common.loss import all_sigmas, flow_matching_loss, noises
from common.start import Start
from common.stopping import risen


class Model:
    sigma_min = 0.1


def drawn(model, clip, flags):
    """What noises gives for three steps."""
    return list(noises(clip, new(AdaSteer, flags, model, clip)[1]))


@pytest.mark.parametrize("draws", ["", "--draws 2"])
def test_logit_normal_sigmas(draws, model, clip):
    """Half of them within the sigmoid of the quartiles, 0.675 on either side of the middle."""
    flags = f"--steps 20000 --sigmas logit-normal {draws}"
    args = new(AdaSteer, flags, model, clip)[1]
    found = (all_sigmas(Model, clip, args).flatten() - 0.1) / 0.9
    quartile = 1 / (1 + math.exp(-0.6745))
    assert 0 <= found.min() and found.max() <= 1
    for part, value in ((0.25, 1 - quartile), (0.5, 0.5), (0.75, quartile)):
        assert found.quantile(part).item() == pytest.approx(value, abs=0.01)
    even = new(AdaSteer, f"--steps 20000 {draws}", model, clip)[1]
    even = (all_sigmas(Model, clip, even).flatten() - 0.1) / 0.9
    assert even[found.argsort()].diff().min() > -1e-5  # the same draws, spread otherwise


class Asked(Model):
    """Its continuation is asked at 0.05 too, which is below what is drawn."""

    def sampling_sigmas(self, steps, shape, **options):
        return torch.linspace(1, 0.05, steps)


def of_sampler(model, clip, flags, video="toy"):
    """(steps, draws); the clip's continuation is three latents."""
    more = {"window": SimpleNamespace(new_latents=3), "video": SimpleNamespace(id=video)}
    args = arguments(AdaSteer, f"--sigmas sampler {flags}")
    return all_sigmas(model, SimpleNamespace(**vars(clip) | more), args)


@pytest.mark.parametrize("draws", [1, 4])
@pytest.mark.parametrize("steps", [2, 8, 51])
def test_the_sampler_s_sigmas_come_in_turn(steps, draws, clip):
    """As many draws in a row as it has sigmas are all of these, and four are never all high or all
    low; a longer run begins with the same ones, another video does not."""
    asked = [s for s in torch.linspace(1, 0.05, steps).tolist() if s >= Asked.sigma_min]
    found = of_sampler(Asked(), clip, f"--steps 60 --draws {draws} --sampling-steps {steps}")
    assert found.shape == (60, draws)
    flat = found.flatten()
    for turn in flat.unfold(0, len(asked), 1):
        assert sorted(turn.tolist(), reverse=True) == pytest.approx(asked)
    if len(asked) > 4:
        middle = asked[len(asked) // 2]
        few = flat.unfold(0, 4, 1)
        assert ((few <= middle).any(1) & (few >= middle).any(1)).all()
        assert not (few == few[0]).all(1)[1:4].any()
    fewer = of_sampler(Asked(), clip, f"--steps 3 --draws {draws} --sampling-steps {steps}")
    assert torch.equal(fewer, found[:3])


def test_where_they_begin_is_the_video_s_own(clip):
    firsts = [of_sampler(Asked(), clip, "", str(i))[0, 0].item() for i in range(20)]
    assert len({*firsts}) > 10


def test_they_are_of_this_run_s_sampling_and_pairs_share_them(model, clip):
    flags = "--sampling-steps 5 --sampling enhance_hf=false"
    found = of_sampler(model, clip, f"--steps 5 --draws 2 --antithetic {flags}")
    assert torch.equal(found[:, 0], found[:, 1])
    asked = model.sampling_sigmas(5, (5, 4, 6), enhance_hf=False)
    assert found[:, 0].sort(descending=True).values.tolist() == asked.tolist()


def test_noise_on_the_context_is_the_steps_own(model, clip):
    plain, noisy = drawn(model, clip, ""), drawn(model, clip, "--context-noise 0.5")
    contexts = [problem.context for problem, _ in noisy]
    assert not torch.equal(contexts[0], contexts[1])
    for (problem, noise), (_, other) in zip(noisy, plain, strict=True):
        assert torch.equal(noise, other) and torch.equal(problem.target, clip.target)
        added = 2 * problem.context - clip.context  # as (1 - 0.5) context + 0.5 noise
        assert added.std().item() == pytest.approx(1, abs=0.2)


def test_later_latents_weigh_more(model, clip):
    (problem, noise), *_ = drawn(model, clip, "--recency 0.7")
    weights = problem.weights.flatten()
    assert weights.mean().item() == pytest.approx(1)
    torch.testing.assert_close(
        weights[1:] / weights[:-1], torch.full((len(weights) - 1,), 0.7).exp()
    )
    with torch.no_grad():
        sigma = torch.tensor([0.5])
        found = flow_matching_loss(model, problem, sigma, noise)
        each = model.velocity(0.5 * clip.target + 0.5 * noise, sigma, clip.context, clip.text) - (
            noise - clip.target
        )
    expected = (weights * each.square().mean((0, 1, 3, 4))).mean()
    torch.testing.assert_close(found, expected)


class Harmful(AdaSteer):
    """It climbs."""

    def loss(self, draw):
        return -super().loss(draw)


Harmful.__module__ = AdaSteer.__module__


def gated(cls, model, clip, flags, start=None):
    """Its gate looks at the very latents that it learns from."""
    return adapted(cls, flags, model, on(clip, start, held_out=clip.held_out[:, :, :0]))


def test_a_gate_keeps_what_lowers_the_loss_and_nothing_else(model, clip):
    kept, record = gated(AdaSteer, model, clip, "--gate 0 --lr 0.01 --steps 10 --draws 4")
    assert record["gate"]["rise"] < 0 and record["kept"] == "adapted"
    plain, other = gated(AdaSteer, model, clip, "--lr 0.01 --steps 10 --draws 4")
    assert "gate" not in other and torch.equal(copies(kept)["delta.0"], copies(plain)["delta.0"])
    for cls, limit, sign in ((AdaSteer, 1e6, -1), (Harmful, 0, 1)):
        flags = f"--gate {limit} --lr 0.01 --steps 10 --draws 4"
        method, refused = gated(cls, model, clip, flags)
        assert refused["kept"] == "baseline" and sign * refused["gate"]["rise"] > 0
        assert not copies(method)["delta.0"].any() and len(refused["losses"]) == 10
        assert refused["fixed_loss_after"] == refused["fixed_loss_before"]


def test_a_gate_asks_what_is_held_out(model, clip):
    others = [clip.held_out, clip.held_out.flip(-1), torch.zeros_like(clip.held_out)]
    flags = "--gate 0 --lr 0.01"
    records = [adapted(AdaSteer, flags, model, on(clip, held_out=x))[1] for x in others]
    assert len({tuple(record["losses"]) for record in records}) == 1
    assert len({record["gate"]["rise"] for record in records}) == 3


def test_the_standard_error_is_that_of_the_mean_over_draws():
    generator = torch.Generator().manual_seed(0)
    level, spread = torch.tensor([[-0.05], [-0.2], [0.6]]), torch.tensor([[0.1], [0.3], [0.05]])
    before = torch.rand(4000, 3, 5, generator=generator)
    after = before + level + spread * torch.randn(before.shape, generator=generator)
    found = torch.tensor(
        [risen(b, a) for b, a in zip(before.tolist(), after.tolist(), strict=True)]
    )
    rises, errors = found.T
    assert rises.mean().item() == pytest.approx(level.mean().item(), abs=0.003)
    assert errors.square().mean().sqrt().item() == pytest.approx(rises.std().item(), rel=0.05)
    assert risen([[0.5, 0.5], [0.2, 0.2]], [[0.75, 0.75], [0.7, 0.7]])[1] == 0


def test_what_a_gate_refuses_does_not_go_on(model, clip):
    start = Start()
    _, record = gated(AdaSteer, model, clip, "--gate 1e6 --carry-over 1", start)
    assert record["kept"] == "baseline" and start.leaves is None
    left = carried_state(model, clip, 0.1)
    start, before = Start(left), flat(left)
    gated(AdaSteer, model, clip, "--gate 1e6 --carry-over 1", start)
    assert flat(start.leaves) == before


def test_a_gate_holds_latents_out(script, tmp_path, capsys):
    assert script(adasteer, "--gate", 1, "--context-latents", 7, "--out", tmp_path) == 2
    assert "--gate holds out a target latent and needs one more" in capsys.readouterr().err
    assert script(adasteer, "--gate", 1, "--stop-draws", 1, "--out", tmp_path) == 2
    assert "--gate 1: --stop-draws 1 has no standard error; give 2" in capsys.readouterr().err
    assert script(adasteer, "--gate", 1, "--adapter", "nano", "--out", tmp_path) == 2
    assert "--gate 1: with --adapter and --steps 0, its default" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--sigmas", "sampler"], ["--recency", 1]])
def test_a_method_with_draws_of_its_own_refuses_them(flags, script, tmp_path, capsys):
    import last_layer_tta

    assert script(last_layer_tta, *flags, "--out", tmp_path) == 2
    said = capsys.readouterr().err
    assert (
        f"{flags[0]} are for draws at every step" in said and f"leave {flags[0]} {flags[1]}" in said
    )
