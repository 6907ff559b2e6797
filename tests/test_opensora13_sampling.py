"""What Open-Sora v1.3 does around its transformer against recorded numbers: lengths, times,
conditions, the flow's path, and whole samples."""

import pytest
import torch
from opensora13_oracles import (
    SAMPLE_LIMIT,
    attached,
    entries,
    given,
    needs_opensora13,
    network,
    tensors,
)
from oracles import assert_near

from backbones.opensora13_sampling import (
    Guidance,
    branch_inputs,
    condition,
    frame_weights,
    given_frames,
    guide_image,
    guide_text,
    latent_shape,
    latents_of,
    noisy_latents,
    sample,
    schedule,
    transform_time,
    velocity_of,
)

RUNS, REFERENCES = entries("sampling"), entries("references") or []
TIMES = entries("tables").get("timestep_transform", [])
LENGTHS = {k: v for k, v in entries("tables").items() if k.startswith("vae_latent_sizes_")}
each_run = pytest.mark.parametrize("run", RUNS)


# Lengths


@needs_opensora13
def test_lengths():
    assert LENGTHS
    for key, rows in LENGTHS.items():
        height, width = map(int, key.removeprefix("vae_latent_sizes_").split("x"))
        for row in rows:
            chunk, overlap = row["micro_frame_size"], row["temporal_overlap"]
            shape = latent_shape(row["frames"], height, width, chunk, overlap)
            assert shape == tuple(row["latent"]), row


def test_frames_that_fill_no_chunk_are_dropped():
    counts = {1: 1, 16: 0, 17: 5, 22: 5, 33: 10, 45: 10, 49: 15, 65: 20}
    assert {frames: latents_of(frames) for frames in counts} == counts


# Times


@needs_opensora13
@pytest.mark.parametrize("row", TIMES, ids=lambda row: f"{row['height']}-{row['num_frames']}")
def test_transformed_times(row):
    args = row["height"], row["width"], row["num_frames"], row["scale"]
    moved = transform_time(torch.tensor(row["t"]), *args)
    assert_near(moved, torch.tensor(row["transformed"]), 1e-3)


def test_times_of_a_picture_are_not_scaled_and_those_of_a_video_are():
    t = torch.tensor([250.0])
    assert transform_time(t, 512, 512, 1, scale=3.0) == t
    assert transform_time(t, 512, 512, 20).item() == pytest.approx(400)  # four latents: r = 2
    assert transform_time(t, 512, 512, 17, scale=1.5).item() == pytest.approx(500)


def times_of(run):
    """The recorded run's, and a last 0."""
    told, args = RUNS[run]["scheduler"], given("sampling", f"{run}.args.")
    times = schedule(told["num_sampling_steps"])
    if told["use_timestep_transform"]:
        sizes = (args[name].item() for name in ("height", "width", "num_frames"))
        times = transform_time(times, *sizes, told.get("transform_scale", 1.0))
    return times


@needs_opensora13
@each_run
def test_schedules(run):
    times = times_of(run)
    assert times[-1] == 0
    assert_near(times[:-1], tensors("sampling")[f"{run}.timesteps"], 1e-3)


# Conditions


@needs_opensora13
@pytest.mark.parametrize("row", REFERENCES, ids=lambda row: row["key"])
def test_references(row):
    values = given("references", f"{row['key']}.")
    references, expected = values["refs"], values["ref"]
    shape = (*references.shape[:2], row["target_latent_frames"], *references.shape[3:])
    told = row["cond_type"], shape, references, row["condition_frame_length"]
    mask_index, cond, cond_mask = condition(*told)
    assert mask_index == row["mask_index"]
    assert torch.equal(cond, expected)
    frames = cond_mask.amin(dim=(0, 1, 3, 4)), cond_mask.amax(dim=(0, 1, 3, 4))
    assert torch.equal(*frames) and frames[0].nonzero().flatten().tolist() == mask_index


@needs_opensora13
def test_the_condition_of_the_forwards():
    """Recorded there is the reference times the mask."""
    found = 0
    for case, told in entries("forward").items():
        if "mask_index" in told:
            values = given("forward", f"{case}.in.")
            frames, indices = values["x"].shape[2], told["mask_index"]
            kind = next(
                kind for kind in ("v2v_head", "i2v_head", "i2v_loop", "i2v_tail")
                if given_frames(kind, frames, frames, len(indices)) == indices
            )  # fmt: skip
            shown = condition(kind, values["x"].shape, values["cond"], len(indices))
            assert torch.equal(shown[1], values["cond"])
            assert torch.equal(shown[2], values["cond_mask"])
            found += 1
    assert found


def test_a_condition_gives_no_more_than_there_is_and_an_unknown_one_is_refused():
    assert given_frames("v2v_head", 4, 9, 5) == [0, 1, 2, 3]
    assert given_frames("v2v_head", 9, 3, 5) == [0, 1, 2]
    assert given_frames("i2v_loop", 1, 1, 5) == [0]
    with pytest.raises(ValueError, match="^condition must be one of None, v2v_head, .*, got t2v$"):
        given_frames("t2v", 4, 4, 5)


# The flow's path and loss


def test_the_velocity_is_the_derivative_of_the_path_and_the_opposite_of_the_networks_output():
    x0, noise = torch.randn(2, 1, 2, 3, 2, 2).double()
    ends = [noisy_latents(x0, noise, torch.tensor([t], dtype=torch.float64)) for t in (0.0, 1e3)]
    assert torch.equal(ends[0], x0) and torch.equal(ends[1], noise)
    output = torch.cat([x0 - noise, torch.randn(1, 1, 3, 2, 2)], dim=1)
    assert_near(velocity_of(output, 2), ends[1] - ends[0], 1e-12)


def test_weights_have_mean_1():
    weights = frame_weights(6, [0, 2], 0.25).flatten()
    assert weights.tolist() == [0.25, 1.375, 0.25, 1.375, 1.375, 1.375]
    assert frame_weights(3, []).flatten().tolist() == [1, 1, 1]
    assert weights.mean() == 1


# Guidance and sampling


def test_guidance_oscillates_and_grows_along_the_latents():
    plain = Guidance(7.5, 3.0)
    assert {plain.at(i, 25, 5) for i in range(25)} == {(7.5, 3.0)}
    both = plain._replace(text_oscillation=True, image_oscillation=True)
    assert [both.at(i, 25, 5) for i in (9, 10, 11, 12, 13)] == [
        (7.5, 3.0), (7.5, 3.0), (1.0, 1.0), (7.5, 3.0), (1.0, 1.0),
    ]  # fmt: skip
    assert both._replace(image_oscillation=False).at(11, 25, 5) == (1.0, 3.0)
    growing = both._replace(weighting=True)
    rows = [growing.at(step, 5, 3)[1].flatten().tolist() for step in (0, 2, 4)]
    assert rows == [[1, 2, 3], [1, 1.5, 2], [1, 1, 1]]
    assert growing.at(11, 25, 3) == (1.0, 1.0)


def test_guidance_of_one_is_the_prompts_velocity():
    v = torch.randn(3, 2, 2, 3, 4, 4)
    assert_near(guide_text(v[0], v[1], 1.0), v[0], 1e-6)
    assert_near(guide_text(v[0], v[1], 1.0, rescale=True), v[0], 1e-6)
    assert_near(guide_image(*v, 1.0, 1.0), v[0], 1e-6)
    assert_near(guide_image(*v, 0.0, 1.0), v[1], 1e-6)
    assert_near(guide_image(*v, 0.0, 0.0), v[2], 1e-6)


def test_rescaling_takes_the_deviation_of_each_sample_back():
    v = torch.randn(2, 2, 2, 3, 4, 4)
    guided, rescaled = (guide_text(*v, 6.0, rescale) for rescale in (False, True))
    for prompt, before, after in zip(v[0], guided, rescaled, strict=True):
        expected = 0.7 * prompt.std() + 0.3 * before.std()
        assert after.std().item() == pytest.approx(expected.item(), rel=1e-5)


def guidance_of(told):
    scheduler, more = told["scheduler"], told["sample"]
    both = scheduler.get("use_oscillation_guidance", False)
    return Guidance(
        text=scheduler["cfg_scale"],
        image=more.get("image_cfg_scale", scheduler["cfg_scale"]),
        text_oscillation=more.get("use_oscillation_guidance_for_text", both),
        image_oscillation=more.get("use_oscillation_guidance_for_image", both),
        weighting=scheduler.get("scale_image_weight", False),
        lowest=scheduler.get("initial_image_scale", 1.0),
        rescale=scheduler.get("use_flaw_fix", False),
    )


def arguments_of(dit, run):
    """The network's, of all branches, but for latents and time."""
    values, mask_index = given("sampling", f"{run}."), RUNS[run]["mask_index"]
    reference, mask = values["ref"], torch.zeros_like(values["ref"])
    mask[:, :, mask_index] = 1
    text = values["y"], values["mask"], dit.y_embedder.y_embedding
    args = given("sampling", f"{run}.args.", ("fps", "height", "width"))
    return branch_inputs(*text, mask_index, reference * mask, mask) | args


def branches_of(dit, run):
    """The canonical velocities of latents at a time."""
    more = arguments_of(dit, run)

    @torch.no_grad()
    def branches(latents, t):
        x = latents.repeat(len(more["y"]) // len(latents), 1, 1, 1, 1)
        out = dit(x, t.expand(len(x)), **more)
        return velocity_of(out, latents.shape[1]).split(len(latents))

    return branches


@needs_opensora13
@each_run
def test_sampling(run):
    dit, values = network(), given("sampling", f"{run}.")
    known = {
        "num_sampling_steps", "cfg_scale", "use_timestep_transform", "transform_scale",
        "scale_image_weight", "initial_image_scale", "use_oscillation_guidance", "use_flaw_fix",
    }  # fmt: skip
    assert RUNS[run]["scheduler"].keys() <= known
    latents = sample(branches_of(dit, run), values["z"], times_of(run), guidance_of(RUNS[run]))
    assert_near(latents, values["out"], SAMPLE_LIMIT)


@needs_opensora13
@each_run
def test_one_branch_after_the_other_gives_the_same(run):
    """The samples of a batch do not meet in the text."""
    dit, z, t = network(), tensors("sampling")[f"{run}.z"], times_of(run)[1]
    more = arguments_of(dit, run)
    per_branch = ("y", "mask", "cond", "cond_mask", "y_null")
    together = branches_of(dit, run)(z, t)
    assert len(together) == len(more["y"]) > 1
    for n, expected in enumerate(together):
        one = {k: v[n : n + 1] if k in per_branch else v for k, v in more.items()}
        assert_near(velocity_of(dit(z, t.view(1), **one), z.shape[1]), expected, 1e-4)


@needs_opensora13
def test_a_site_acts_in_sampling():
    run = next(iter(RUNS))
    values, dit, times, seen = given("sampling", f"{run}."), network(), times_of(run), []

    def embedding(i, e, sigma):
        seen.extend(sigma[:1, 0].tolist() if i == 0 else [])
        return e + 0.1

    with attached(dit, "timestep_embedding", embedding):
        out = sample(branches_of(dit, run), values["z"], times, guidance_of(RUNS[run]))
    assert seen == pytest.approx((times[:-1] / 1000).tolist())
    assert (out - values["out"]).abs().max() > 10 * SAMPLE_LIMIT
