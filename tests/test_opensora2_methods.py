"""The Open-Sora backbone and the methods on it, through their public classes, against the numbers
recorded from the official code and the draft's."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from opensora2_oracles import (
    DELTA_LIMIT,
    LOSS_LIMIT,
    OUTPUT_LIMIT,
    SAMPLE_LIMIT,
    WITH_CONDITION,
    entries,
    needs_opensora2,
    network,
    table,
    tensors,
)
from oracles import arguments, assert_near

from adasteer import AdaSteer
from backbones import opensora2, opensora2_latents
from backbones.opensora2 import OpenSora2
from backbones.opensora2_configs import RELEASED, geometry
from backbones.opensora2_dit import MMDiT
from backbones.opensora2_sampling import pack
from common import adaptation
from common.adaptation import adapt
from common.loss import Draw
from delta_c import DeltaC
from last_layer_tta import LastLayer

pytestmark = needs_opensora2
RECORDED, RUNS = entries("tta_trajectory"), entries("sampling")


def recorded_model():
    dit = network(WITH_CONDITION)
    return OpenSora2(dit, None, None, "cpu", geometry({}, dit.config))


def packed(x):
    patch = table(f"{WITH_CONDITION}/config")["patch_size"]
    return F.pixel_unshuffle(x.transpose(1, 2), patch).transpose(1, 2)


def unpacked_tokens(tokens, shape):  # as recorded -> packed latents like `shape`
    return tokens.transpose(1, 2).unflatten(2, shape[2:])


def test_a_packed_latent_holds_what_a_token_holds():
    z = tensors("released/forward")["z"]
    assert torch.equal(opensora2_latents.tokens(packed(z)), pack(z, 2))


# What the methods change


def forward(model):
    """The velocity of the recorded inputs, by a condition of nine latents."""
    values = tensors("released/forward")
    text = {"embeds": values["in.txt"], "pooled": values["in.y_vec"]}
    x = packed(values["z"])
    with model.condition("v2v_head", packed(values["ref_latents"])), torch.no_grad():
        return model.velocity(x, values["in.timesteps"], x[:, :, :0], text)


def of_kind(values, name):
    """Vectors in our order: those of the double groups, of the single ones, of the final layer."""
    end = "" if name == "B" else "1"
    kinds = [values[f"delta.{name}.{kind}{end}"] for kind in ("double", "single", "final")]
    return torch.cat([rows.view(-1, rows.shape[-1]) for rows in kinds])


def changes(values):
    """{recorded output: (method, flags, its parameters)}."""
    steady, slopes = of_kind(values, "B"), of_kind(values, "Btime")
    doubles, singles = len(values["delta.B.double"]), len(values["delta.B.single"])
    own = f"--groups {doubles},{singles} --final-layer own"
    alone = torch.zeros_like(steady)
    alone[-1] = values["delta.B.final"]
    return {
        "A": (AdaSteer, "--groups 1 --final-layer", values["delta.A"][None]),
        "B": (AdaSteer, own, steady),
        "B_final_only": (AdaSteer, own, alone),
        "Btime": (AdaSteer, f"{own} --time-slope", torch.cat([steady, slopes], dim=1)),
        "C": (DeltaC, "", values["delta.C"][None]),
        "hidden_before_final_layer": (LastLayer, "--site pre-norm", values["delta.hidden"][None]),
    }


def method_with(cls, flags, model, rows):
    method = cls(model, SimpleNamespace(), arguments(cls, flags))
    parameters = list(method.named_parameters().values())
    assert len(parameters) == len(rows)
    with torch.no_grad():
        for p, value in zip(parameters, rows, strict=True):
            p.copy_(value)
    return method


@pytest.mark.parametrize("name", changes(tensors("released/forward")) if RECORDED else [])
def test_recorded_outputs(name):
    model, values = recorded_model(), tensors("released/forward")
    plain = forward(model)
    assert_near(plain, unpacked_tokens(values["out"], plain.shape), OUTPUT_LIMIT)
    cls, flags, rows = changes(values)[name]
    with method_with(cls, flags, model, rows).attached():
        found = forward(model)
    expected = unpacked_tokens(values[f"out.{name}"], plain.shape)
    assert (expected - plain).abs().max() > 10 * OUTPUT_LIMIT
    assert_near(found, expected, OUTPUT_LIMIT)


# Trajectories


def recorded_clip():
    values = tensors("tta_trajectory")
    x0 = packed(values["x0"])
    text = {"embeds": values["txt"], "pooled": values["y_vec"]}
    return SimpleNamespace(
        context=x0[:, :, :0], target=x0, text=text, seed=1, video=SimpleNamespace(id="oracle")
    )


def recorded_draws(clip):
    values = tensors("tta_trajectory")
    pairs = zip(values["t"], values["noise"], strict=True)
    return [Draw(clip, t, packed(noise)) for t, noise in pairs]


def flags_of(name, told):
    flags = f"--steps {told['steps']} --lr {told['lr']} --weight-decay {told['weight_decay']} "
    flags += f"--warm-up {told['warmup_steps']} --eps 1e-8 "
    if name == "C":
        return DeltaC, flags
    width = table("released/config")["hidden_size"]
    flags += f"--l2 {told['delta_l2'] / width} "  # a mean over each vector
    if name == "A":
        return AdaSteer, flags + "--groups 1 --final-layer shared"
    flags += f"--groups {told['groups_double']},{told['groups_single']} --final-layer own"
    return AdaSteer, flags + (" --time-slope" if name == "Btime" else "")


def in_recorded_order(name, told, vectors):
    """One row. Ours are one vector a group; with a slope it holds offset and slope, where those of
    a kind were recorded one after the other."""
    vectors = [v.detach() for v in vectors]
    if name != "Btime":
        return torch.cat(vectors)
    cuts = [0, told["groups_double"], told["groups_double"] + told["groups_single"], len(vectors)]
    kinds = [vectors[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
    parts = [v.chunk(2)[half] for kind in kinds for half in (0, 1) for v in kind]
    return torch.cat(parts)


@pytest.mark.parametrize("recompute", [0, None])
@pytest.mark.parametrize(("name", "told"), RECORDED.items())
def test_trajectory(name, told, recompute, monkeypatch):
    """Losses, clipped gradients and vectors of every step. Clipped together, and at its own norm,
    as the draft does; ours are clipped one by one."""
    model, clip, values = recorded_model(), recorded_clip(), tensors("tta_trajectory")
    model.recompute(recompute)
    monkeypatch.setattr(adaptation, "MAX_GRAD_NORM", told["max_grad_norm"])
    cls, flags = flags_of(name, told)
    args = arguments(cls, flags)
    method, gradients, states, rates = cls(model, clip, args), [], [], []
    parameters, optimizer = method.named_parameters().values(), method.optimizer
    method.draws = lambda: recorded_draws(clip)
    method.clipped_together = lambda: [list(parameters)]

    def watched():
        made, schedule = optimizer()

        def keep(*_):
            gradients.append(in_recorded_order(name, told, [p.grad for p in parameters]))
            rates.append(made.param_groups[0]["lr"])

        made.register_step_pre_hook(keep)
        return made, schedule

    method.optimizer = watched
    with model.condition("everything", clip.target), method.attached():
        record = adapt(model, method, clip, args, show=lambda line: states.append(
            in_recorded_order(name, told, parameters)))  # fmt: skip
    penalties = record["penalties"] or [0] * told["steps"]
    losses = [sum(pair) for pair in zip(record["losses"], penalties, strict=True)]
    assert losses == pytest.approx(values[f"{name}.losses"].tolist(), rel=LOSS_LIMIT)
    assert rates == pytest.approx(values[f"{name}.lr"].tolist())
    assert_near(torch.stack(gradients), values[f"{name}.grads_after_clip"], DELTA_LIMIT)
    assert_near(torch.stack(states), values[f"{name}.delta"], DELTA_LIMIT)


def test_parameters_of_the_draft():
    """At 3072 wide and four groups a kind: one vector, 9 of them, 64 channels."""
    with torch.device("meta"):
        dit = MMDiT(**RELEASED)
    assert sum(p.numel() for p in dit.parameters()) == 11_891_390_528
    model = OpenSora2(dit, None, None, "meta", geometry({}, RELEASED))
    for cls, flags, count in (
        (AdaSteer, "--groups 1 --final-layer", 3072),
        (AdaSteer, "--groups 4,4 --final-layer own", 27_648),
        (AdaSteer, "--groups 4 --final-layer own", 27_648),
        (AdaSteer, "--groups 4,4 --final-layer own --time-slope", 2 * 27_648),
        (DeltaC, "", 64),
    ):
        method = cls(model, SimpleNamespace(), arguments(cls, flags))
        assert sum(p.numel() for p in method.named_parameters().values()) == count


# Samples


@pytest.mark.parametrize(("run", "told"), RUNS.items())
def test_sampling(run, told, monkeypatch):
    """The context's places begin with the recorded noise; ours draws its own there."""
    model, values = recorded_model(), tensors("sampling")
    z, reference = packed(values[f"{run}.z"]), packed(values[f"{run}.ref"][None])
    known = {"t2v": 0, "i2v_head": 1, "v2v_head": 9}[told["cond_type"]]
    monkeypatch.setattr(opensora2, "noise_beside", lambda x, count: z[:, :, :count])
    texts = [
        {"embeds": values[f"{run}.txt"][i : i + 1], "pooled": values[f"{run}.y_vec"][i : i + 1]}
        for i in (0, 1)
    ]
    assert told["text_osci"] == told["image_osci"]
    found = model.generate(
        reference[:, :, :known], *texts, z[:, :, known:], told["num_steps"], told["guidance"],
        guidance_img=told["guidance_img"], oscillation=told["text_osci"],
        temporal_scaling=True,  # acts where officially it does
    )  # fmt: skip
    expected = packed(values[f"{run}.out_unpacked"])[:, :, known:]
    assert_near(found, expected, SAMPLE_LIMIT)


@pytest.mark.parametrize("known", [0, 1, 9])
def test_delta_c_without_feedback_moves_a_sample_by_its_negative(known):
    """The steps' lengths add up to -1, and the guidance passes a vector through once. What the
    network sees is held still: it answers a step as it did without the vector."""
    model, values = recorded_model(), tensors("sampling")
    run = next(iter(RUNS))
    z, reference = packed(values[f"{run}.z"]), packed(values[f"{run}.ref"][None])
    text = {"embeds": values[f"{run}.txt"][:1], "pooled": values[f"{run}.y_vec"][:1]}
    negative = {"embeds": values[f"{run}.txt"][1:2], "pooled": values[f"{run}.y_vec"][1:2]}
    given = reference[:, :, :known], text, negative, z[:, :, known:], 12, 7.5
    outputs = []
    hook = model.dit.register_forward_hook(lambda module, args, out: outputs.append(out))
    plain = model.generate(*given)
    hook.remove()
    answers = iter(outputs)
    hook = model.dit.register_forward_hook(lambda module, args, out: next(answers))
    delta = torch.linspace(-1, 1, model.latent_channels)
    with method_with(DeltaC, "", model, delta[None]).attached():
        found = model.generate(*given)
    hook.remove()
    assert_near(found, plain - delta.view(1, -1, 1, 1, 1), 1e-4)


# A condition that shows the answer


def test_with_the_answer_shown_the_loss_hears_other_things():
    """Honest: the first latent is shown, the loss is on the rest. The draft's: everything is shown.
    A change of the target's latents behind the noise reaches the network in the second alone."""
    model, clip = recorded_model(), recorded_clip()
    x, noise = clip.target, packed(tensors("tta_trajectory")["noise"][0])
    noisy, sigma = 0.5 * x + 0.5 * noise, torch.tensor([0.5])
    other = x.clone()
    other[:, :, 1:] += 1
    answers = {}
    for name, latents in (("x", x), ("other", other)):
        context = latents[:, :, :1]
        answers["honest", name] = model.velocity(noisy[:, :, 1:], sigma, context, clip.text)
        with model.condition("everything", latents):
            answers["all", name] = model.velocity(noisy, sigma, x[:, :, :0], clip.text)
    assert torch.equal(answers["honest", "x"], answers["honest", "other"])
    assert (answers["all", "x"] - answers["all", "other"]).abs().max() > 0.1
