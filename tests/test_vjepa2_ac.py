"""The V-JEPA 2-AC predictor against numbers recorded from the official code (oracles/vjepa2_ac),
and what its frame-causal mask promises."""

import pytest
import torch
from oracles import assert_near
from vjepa2_oracles import LOSS_LIMIT, OUTPUT_LIMIT, VARIANTS, needs_vjepa2, tensors, variant

from predictors import ActionConditionedPredictor
from predictors.rollout import TRAINING_EPS, normalise, training_losses
from predictors.vjepa2_ac import frame_causal_mask

each_variant = pytest.mark.parametrize("name", VARIANTS)
LENGTHS = {"full": None, "short": 2, "one": 1}  # frames
TINY = {"img_size": (32, 32), "embed_dim": 6, "predictor_embed_dim": 24, "num_heads": 2}
TINY |= {"action_embed_dim": 3, "depth": 2}


@pytest.mark.parametrize("sizes, expected", [
    ({}, 305_220_992),
    ({"embed_dim": 1024, "predictor_embed_dim": 384, "action_embed_dim": 2}, 43_378_816),
])  # fmt: skip
def test_parameters_of_the_released_and_the_studys_configuration(sizes, expected):
    with torch.device("meta"):
        predictor = ActionConditionedPredictor(**sizes)
    assert sum(p.numel() for p in predictor.parameters()) == expected


def inputs(name, frames=None):
    """Features, actions, states and, where recorded, extrinsics of the first frames, or all but the
    last."""
    recorded = tensors(f"predictor/{name}/forward")
    actions = recorded["actions"][:, :frames]
    count, patches = actions.shape[1], recorded["features_raw"].shape[2]
    more = [recorded[part][:, :count] for part in ("states", "extrinsics") if part in recorded]
    return recorded["features"][:, : count * patches], actions, *more


@needs_vjepa2
@each_variant
@pytest.mark.parametrize("length", LENGTHS)
def test_forward(name, length):
    expected = tensors(f"predictor/{name}/forward")[f"{length}.out"]
    assert_near(variant(name)(*inputs(name, LENGTHS[length])), expected, OUTPUT_LIMIT)


@needs_vjepa2
@each_variant
def test_what_leaves_every_block(name):
    predictor, left = variant(name), []
    for block in predictor.predictor_blocks:
        block.register_forward_hook(lambda _module, _given, out: left.append(out[0]))
    predictor(*inputs(name))
    recorded = tensors(f"predictor/{name}/forward")
    assert len(left) == sum(key.startswith("full.block") for key in recorded)
    for i, x in enumerate(left):
        assert_near(x, recorded[f"full.block{i}"], OUTPUT_LIMIT)


@needs_vjepa2
@each_variant
def test_mask(name):
    recorded = tensors(f"predictor/{name}/forward")
    count = recorded["actions"].shape[1]
    mask = frame_causal_mask(count, len(recorded["attn_mask"]) // count)
    assert torch.equal(mask, recorded["attn_mask"].bool())


@needs_vjepa2
@each_variant
def test_training_losses(name):
    recorded = tensors(f"predictor/{name}/forward")
    given = [recorded.get(part) for part in ("features_raw", "actions", "states", "extrinsics")]
    rolled = [key.removeprefix("train.sloss") for key in recorded if "train.sloss" in key]
    assert rolled
    for steps in rolled:
        found = training_losses(variant(name), *given, auto_steps=int(steps))
        assert_near(found["jloss"], recorded["train.jloss"], LOSS_LIMIT)
        assert_near(found["sloss"], recorded[f"train.sloss{steps}"], LOSS_LIMIT)
        assert_near(found["z_tf"], recorded["train.z_tf"], OUTPUT_LIMIT)
        assert_near(found["z_ar"], recorded[f"train.z_ar{steps}"], OUTPUT_LIMIT)


@needs_vjepa2
@each_variant
def test_features_are_the_normalised_ones(name):
    recorded = tensors(f"predictor/{name}/forward")
    found = normalise(recorded["features_raw"], TRAINING_EPS).flatten(1, 2)
    assert_near(found, recorded["features"], OUTPUT_LIMIT)


@needs_vjepa2
@each_variant
def test_frames_one_at_a_time_with_a_cache(name):
    """The same as all at once; so nothing that is later reaches an earlier frame."""
    predictor, given = variant(name), inputs(name)
    count, cache, found = given[1].shape[1], [], []
    for i in range(count):
        features = given[0].unflatten(1, (count, -1))[:, i]
        found.append(predictor(features, *(x[:, i : i + 1] for x in given[1:]), cache=cache))
    expected = tensors(f"predictor/{name}/forward")["full.out"]
    assert_near(torch.cat(found, dim=1), expected, OUTPUT_LIMIT)


def tiny(**more):
    torch.manual_seed(0)
    return ActionConditionedPredictor(**TINY | more)


def random_inputs(batch=2, frames=3):
    shapes = (frames * 4, 6), (frames, 3), (frames, 3), (frames, 2)
    return [torch.randn(batch, *shape) for shape in shapes]


def test_places_in_time_may_be_given_for_each_of_a_batch():
    predictor, given = tiny(), random_inputs()[:3]
    places = torch.tensor([[0, 1, 2], [3, 4, 7]])
    both = predictor(*given, frames=places)
    for i in range(2):
        alone = predictor(*(x[i : i + 1] for x in given), frames=places[i])
        torch.testing.assert_close(both[i : i + 1], alone, atol=1e-6, rtol=0)
    moved = predictor(*given, frames=torch.tensor([0, 1, 3]))
    assert (moved - predictor(*given)).abs().max() > 1e-6
    torch.testing.assert_close(predictor(*given, frames=torch.arange(3)), predictor(*given))


def test_what_is_done_in_a_frame_reaches_it_and_later_ones_alone():
    predictor, given = tiny(use_extrinsics=True), random_inputs()
    plain = predictor(*given).unflatten(1, (3, 4))
    for part in (1, 2, 3):  # actions, states, extrinsics
        other = [x.clone() for x in given]
        other[part][:, 1] += 1
        moved = (predictor(*other).unflatten(1, (3, 4)) - plain).abs().amax(dim=(0, 2, 3))
        assert moved[0] == 0 and moved[1] > 1e-6 and moved[2] > 1e-6


@pytest.mark.parametrize("part, words", [
    (0, r"features: shape must be \(2, 12, 6\), got \(2, 11, 6\)"),
    (1, r"features: shape must be \(2, 8, 6\), got \(2, 12, 6\)"),
    (2, r"states: shape must be \(2, 3, 3\), got \(2, 2, 3\)"),
    (3, r"extrinsics: shape must be \(2, 3, 2\), got \(2, 2, 2\)"),
])  # fmt: skip
def test_an_array_of_another_length_is_refused(part, words):
    given = random_inputs()
    given[part] = given[part][:, :-1]
    with pytest.raises(ValueError, match=words):
        tiny(use_extrinsics=True)(*given)


def test_extrinsics_that_are_read_must_be_given():
    with pytest.raises(ValueError, match=r"extrinsics: shape must be \(2, 3, 2\), got None"):
        tiny(use_extrinsics=True)(*random_inputs()[:3])
