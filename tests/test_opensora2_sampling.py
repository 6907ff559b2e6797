"""What Open-Sora v2.0 does around its transformer against recorded numbers: packing, sizes,
schedules, conditions, the flow's path, and whole samples."""

import itertools

import pytest
import torch
from opensora2_oracles import (
    SAMPLE_LIMIT,
    VARIANTS,
    attached,
    each_variant,
    entries,
    needs_opensora2,
    network,
    table,
    tensors,
)
from oracles import assert_near

from backbones.opensora2_sampling import (
    CONDITIONS,
    SIGMA_FLOOR,
    Guidance,
    condition,
    condition_tokens,
    frame_size,
    guide,
    noisy_latents,
    pack,
    sample,
    schedule,
    shift_of,
    shown_latents,
    token_ids,
    unpack,
    velocity_target,
    with_given,
)

RUNS = entries("sampling")
SIZES = entries("schedules_and_sizes").get("sizes", [])
SCHEDULES = entries("schedules_and_sizes").get("schedules", [])
each_run = pytest.mark.parametrize("run", RUNS)


def patch_of(variant):
    return table(f"{variant}/config")["patch_size"]


# Sizes and packing


@needs_opensora2
@each_variant
def test_packing(variant):
    values, patch = tensors(f"{variant}/forward"), patch_of(variant)
    z = values["z"]
    assert torch.equal(pack(z, patch), values["in.img"])
    assert torch.equal(unpack(values["in.img"], z.shape, patch), z)
    assert torch.equal(unpack(values["out"], z.shape, patch), values["out_unpacked"])
    ids = token_ids(z.shape, patch)
    assert torch.equal(ids.expand(len(z), -1, -1), values["in.img_ids"])
    if "in.cond" in values:
        mask, reference = values["cond_masks"], values["cond_masked_ref"]
        assert torch.equal(condition_tokens(mask, reference, patch), values["in.cond"])


@needs_opensora2
def test_the_condition_of_the_forwards():
    found = 0
    for variant in VARIANTS:
        values = tensors(f"{variant}/forward")
        if "ref_latents" in values:
            given, shape = values["ref_latents"], values["z"].shape
            ways = [(k, c) for k in CONDITIONS for c in (True, False)]
            shown = (values["cond_masks"][0, 0, :, 0, 0].sum().item(), 0)
            kind, causal = next(
                way for way in ways if shown_latents(way[0], shape[2], way[1]) == shown
            )
            mask, reference = condition(kind, shape, given, causal=causal)
            assert torch.equal(mask, values["cond_masks"])
            assert torch.equal(reference, values["cond_masked_ref"])
            found += 1
    assert found


@pytest.mark.parametrize("shape", [(2, 3, 4, 6, 10), (1, 16, 1, 2, 2)])
def test_what_is_unpacked_was_packed(shape):
    x = torch.randn(shape)
    assert torch.equal(unpack(pack(x, 2), shape, 2), x)
    assert token_ids(shape, 2).shape[1] == pack(x, 2).shape[1]


@needs_opensora2
@pytest.mark.parametrize("entry", SIZES, ids=lambda e: "-".join(map(str, e.values())))
def test_sizes(entry):
    size = frame_size(entry["resolution"], entry["aspect_ratio"], entry["training"])
    assert size == tuple(entry["height_width"])


def test_a_resolution_may_be_the_height_of_16_9_and_an_unknown_ratio_is_refused():
    assert frame_size("768px", "16:9") == frame_size("576p", "16:9") == (576, 1024)
    with pytest.raises(ValueError, match="^ratio must be one of 2.39:1, .* or upright, got 7:5$"):
        frame_size("256px", "7:5")
    assert frame_size("256px", "3:4") == frame_size("256px", "4:3")[::-1]


# The flow's path


@needs_opensora2
def test_the_path_and_its_velocity():
    values, patch = tensors("tta_trajectory"), patch_of("released")
    x0 = values["x0"]
    assert torch.equal(token_ids(x0.shape, patch), values["img_ids"])
    for t, noise, x_t, target in zip(
        *(values[name] for name in ("t", "noise", "x_t", "v_target")), strict=True
    ):
        assert_near(pack(noisy_latents(x0, noise, t), patch), x_t, 1e-6)
        assert_near(pack(velocity_target(x0, noise), patch), target, 1e-6)
    cond = condition_tokens(*condition("everything", x0.shape, x0), patch)
    assert torch.equal(cond, values["cond"])


def test_the_velocity_is_the_derivative_of_the_path():
    x0, noise = torch.randn(2, 1, 2, 3, 2, 2).double()
    ends = [noisy_latents(x0, noise, torch.tensor([t], dtype=torch.float64)) for t in (0.0, 1.0)]
    assert_near(ends[1] - ends[0], velocity_target(x0, noise), 1e-12)
    assert_near(ends[0], x0 + SIGMA_FLOOR * noise, 1e-12)
    assert_near(ends[1], noise, 1e-12)


# Conditions


def recorded_conditions():
    keys = {tuple(key.split(".")[:2]) for key in tensors("conditions") if "." in key}
    return sorted(keys)


@needs_opensora2
def test_conditions():
    values = tensors("conditions")
    assert {kind for kind, _ in recorded_conditions()} <= CONDITIONS.keys()
    for kind, autoencoder in recorded_conditions():
        # the first reference, and for a picture at the end the last
        tail = values["ref_b"] if kind.startswith("i2v") else values["ref_a"]
        given = values["z"].shape, values["ref_a"], tail, autoencoder == "causal"
        mask, reference = condition(kind, *given)
        assert torch.equal(mask, values[f"{kind}.{autoencoder}.masks"])
        assert torch.equal(reference, values[f"{kind}.{autoencoder}.masked"])


def test_a_condition_shows_no_more_than_there_is():
    assert shown_latents("v2v_head", 4) == (4, 0)
    assert shown_latents("i2v_head", 1) == (0, 0)
    mask, reference = condition("t2v", (1, 2, 3, 4, 4))
    assert not mask.any() and not reference.any()
    with pytest.raises(ValueError, match="^condition i2v_head needs latents to show"):
        condition("i2v_head", (1, 2, 3, 4, 4))
    with pytest.raises(ValueError, match="^condition must be one of t2v, .*, got v2v$"):
        condition("v2v", (1, 2, 3, 4, 4))


@pytest.mark.parametrize("kind", CONDITIONS)
def test_given_pictures_replace_what_was_sampled_and_given_videos_do_not(kind):
    latents, given = torch.randn(1, 2, 20, 4, 4), torch.randn(1, 2, 20, 4, 4)
    out = with_given(latents, kind, given, given)
    changed = (out != latents).flatten(3).any(-1).flatten(0, 1).any(0)
    expected = torch.zeros(20, dtype=torch.bool)
    if kind.startswith("i2v"):
        expected[0], expected[-1] = kind != "i2v_tail", kind != "i2v_head"
    assert torch.equal(changed, expected)
    assert torch.equal(out[:, :, expected], given[:, :, expected])


# Schedule and guidance


def alpha_of(entry):
    if not entry.get("shift", True):
        return 1.0
    return entry.get("shift_alpha") or shift_of(entry["image_seq_len"], entry["latent_frames"])


@needs_opensora2
@pytest.mark.parametrize("entry", SCHEDULES, ids=lambda e: f"{e['num_steps']}-{e['latent_frames']}")
def test_schedules(entry):
    times = schedule(entry["num_steps"], alpha_of(entry))
    assert_near(times, torch.tensor(entry["timesteps"]), 1e-6)


def test_shift():
    assert shift_of(256, 1) == 1 and shift_of(4096, 1) == 3
    assert shift_of(252, 17) == pytest.approx(4.115, abs=1e-3)


def test_guidance_oscillates_and_grows_along_the_latents():
    plain = Guidance(7.5, 3.0, text_oscillation=False, image_oscillation=False)
    assert {plain.at(i, 25, 5) for i in range(25)} == {(7.5, 3.0)}
    both = Guidance(7.5, 3.0)
    assert [both.at(i, 25, 5) for i in (9, 10, 11, 12, 13)] == [
        (7.5, 3.0), (7.5, 3.0), (1.0, 1.0), (7.5, 3.0), (1.0, 1.0),
    ]  # fmt: skip
    assert Guidance(7.5, 3.0, image_oscillation=False).at(11, 25, 5) == (1.0, 3.0)
    growing = both._replace(temporal=True)
    _, first = growing.at(0, 4, 3)
    _, third = growing.at(2, 4, 3)
    assert first.flatten().tolist() == [1, 2, 3] and third.flatten().tolist() == [1, 1.5, 2]
    assert growing.at(11, 25, 3) == (1.0, 1.0)


def test_guidance_of_one_is_the_first_branch():
    v = torch.randn(3, 2, 3, 4, 4)
    assert_near(guide(v, 1.0, 1.0), v[:1], 1e-6)
    assert_near(guide(v, 0.0, 1.0), v[1:2], 1e-6)
    assert_near(guide(v, 0.0, 0.0), v[2:], 1e-6)


def guidance_of(told):
    return Guidance(
        told["guidance"], told["guidance_img"], told["text_osci"], told["image_osci"],
        told["scale_temporal_osci"] and "i2v" in told["cond_type"],
    )  # fmt: skip


def condition_of(run, told):
    values = tensors("sampling")
    given = values[f"{run}.ref"][None]
    return condition(told["cond_type"], values[f"{run}.z"].shape, given, given)


@needs_opensora2
@each_run
def test_what_a_sample_starts_from(run):
    values, told, patch = tensors("sampling"), RUNS[run], patch_of("released")
    mask, reference = condition_of(run, told)
    assert torch.equal(mask, values[f"{run}.masks"])
    assert torch.equal(reference, values[f"{run}.masked_ref"])
    frames, height, width = values[f"{run}.z"].shape[2:]
    alpha = shift_of(height * width / patch**2, frames)
    assert_near(schedule(told["num_steps"], alpha), values[f"{run}.timesteps"], 1e-6)


def branches_of(dit, run, told, seen=None):
    """The three velocities of latents at a time; each call's packed ones go into `seen`."""
    values, patch = tensors("sampling"), dit.config.patch_size
    shape = values[f"{run}.z"].shape
    cond = condition_tokens(*condition_of(run, told), patch)
    txt = values[f"{run}.txt"]
    given = {
        "img_ids": token_ids(shape, patch), "txt": txt, "txt_ids": torch.zeros(1, txt.shape[1], 3),
        "y_vec": values[f"{run}.y_vec"], "cond": torch.cat([cond, cond, 0 * cond]),
    }  # fmt: skip

    @torch.no_grad()
    def branches(latents, t):
        img = pack(latents, patch).expand(3, -1, -1)
        out = dit(img, timesteps=t.expand(3), **given)
        if seen is not None:
            seen.append((t.item(), out))
        return unpack(out, (3, *shape[1:]), patch)

    return branches


@needs_opensora2
@each_run
def test_samples(run):
    values, told, dit, seen = tensors("sampling"), RUNS[run], network(), []
    times = values[f"{run}.timesteps"]
    noise, branches = values[f"{run}.z"], branches_of(dit, run, told, seen)
    out = sample(branches, noise, times, guidance_of(told))
    assert_near(out, values[f"{run}.out_unpacked"], SAMPLE_LIMIT)
    assert_near(pack(out, dit.config.patch_size), values[f"{run}.out"], SAMPLE_LIMIT)
    assert [t for t, _ in seen] == times[:-1].tolist()


@needs_opensora2
@each_run
def test_adding_to_every_branch_shifts_a_sample_by_its_negative_once(run):
    """Option C without feedback: the steps add up to -1, and guidance passes it through once."""
    told, dit = RUNS[run], network()
    values, guidance = tensors("sampling"), guidance_of(RUNS[run])
    noise, times = values[f"{run}.z"], values[f"{run}.timesteps"]
    branches = branches_of(dit, run, told)
    recorded = []
    plain = sample(lambda x, t: recorded.append(branches(x, t)) or recorded[-1], noise, times,
                   guidance)  # fmt: skip
    replay = iter(recorded)
    delta = torch.randn(1, noise.shape[1], 1, 1, 1)
    shifted = sample(lambda x, t: next(replay) + delta, noise, times, guidance)
    assert_near(shifted, plain - delta, 1e-4)


@needs_opensora2
def test_a_site_acts_in_sampling():
    run, told = next(iter(RUNS.items()))
    values, dit = tensors("sampling"), network()
    given = values[f"{run}.z"], values[f"{run}.timesteps"], guidance_of(told)
    plain, times = sample(branches_of(dit, run, told), *given), []

    def embedding(i, e, sigma):
        times.extend(sigma[:1, 0].tolist() if i == 0 else [])
        return e + 0.1

    with attached(dit, "timestep_embedding", embedding):
        steered = sample(branches_of(dit, run, told), *given)
    assert times == given[1][:-1].tolist()
    assert (steered - plain).abs().max() > 10 * SAMPLE_LIMIT
    assert all(a > b for a, b in itertools.pairwise(times))
