"""Rollouts, jumps and errors of a predictor: what they promise, on random weights."""

import pytest
import torch
import torch.nn.functional as F

from predictors import ActionConditionedPredictor, modes, rollout
from predictors.clips import LatentClip

TINY = {"img_size": (32, 48), "embed_dim": 6, "predictor_embed_dim": 24, "num_heads": 2}
TINY |= {"action_embed_dim": 3, "depth": 2}
FRAMES = 6


@pytest.fixture
def predictor():
    torch.manual_seed(0)
    found = ActionConditionedPredictor(**TINY)
    with torch.no_grad():  # far from where a training starts, so that each part is seen
        for parameter in found.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return found


@pytest.fixture
def clip():
    torch.manual_seed(1)
    shapes = (FRAMES, 6, 6), (FRAMES - 1, 3), (FRAMES - 1, 3)
    return LatentClip("a", "a", "", *(torch.randn(shape) for shape in shapes))


def plain_rollout(predictor, clip, context, steps):
    """As it is described: each frame by a pass of its own over all before it."""
    frames = rollout.normalise(clip.features)[None]
    frames, found = frames[:, :context], []
    for stop in range(context, context + steps):
        given = frames.flatten(1, 2), clip.actions[None, :stop], clip.states[None, :stop]
        found.append(rollout.normalise(predictor(*given)[:, None, -6:]))
        frames = torch.cat([frames, found[-1].detach()], dim=1)
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("context, steps", [(1, 5), (1, 2), (3, 3), (5, 1)])
def test_a_rollout_and_its_gradient_are_those_of_a_pass_for_each_frame(
    predictor, clip, context, steps
):
    gradients = []
    for make in (plain_rollout, rollout.rollout):
        predictor.zero_grad()
        made = make(predictor, clip, context, steps)
        (made - torch.arange(6)).abs().mean().backward()
        gradients.append([p.grad.clone() for p in predictor.parameters() if p.grad is not None])
        with torch.no_grad():
            torch.testing.assert_close(make(predictor, clip, context, steps), made)
    for ours, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-6, rtol=1e-4)
    assert any(gradient.abs().max() > 1e-4 for gradient in gradients[0])


def test_fewer_frames_than_asked_for_are_all(predictor, clip):
    assert rollout.rollout(predictor, clip, 2, 99).shape == (1, FRAMES - 2, 6, 6)
    assert rollout.jump(predictor, clip, 99).shape == (1, FRAMES - 1, 6, 6)
    assert rollout.teacher_forced(predictor, clip).shape == (1, FRAMES - 1, 6, 6)


@pytest.mark.parametrize("mode", modes.MODES)
def test_a_clip_without_a_frame_to_predict_is_refused(predictor, clip, mode):
    with pytest.raises(
        ValueError, match="1 frames of context leave none to predict: the clip has 1"
    ):
        modes.predict(predictor, rollout.until(clip, 0), mode)


@torch.no_grad()
@pytest.mark.parametrize("mode", modes.MODES)
def test_predictions_lie_beside_their_true_frames(predictor, clip, mode):
    predictions, true = modes.predict(predictor, clip, mode, 1, 3)
    assert predictions.shape == true.shape == (1, 3, 6, 6)
    first = 1 if mode in ("rollout", "sequential") else FRAMES - 3
    expected = rollout.normalise(clip.features[first : first + 3])
    torch.testing.assert_close(true[0], expected)


@torch.no_grad()
@pytest.mark.parametrize("mode", ["sequential", "sequential-jump"])
def test_frames_one_by_one_are_those_at_once_where_no_step_is_taken(predictor, clip, mode):
    pairs = modes.one_by_one(predictor, clip, mode, 1, 4)
    found = [torch.cat(parts, dim=1) for parts in zip(*pairs, strict=True)]
    for ours, together in zip(found, modes.predict(predictor, clip, mode, 1, 4), strict=True):
        torch.testing.assert_close(ours, together)


@torch.no_grad()
def test_modes_read_what_they_say(predictor, clip):
    """A change of the true frame 2: of what it moves in the predictions of frames 1..5."""
    features = clip.features.clone()
    features[2] = features[2].flip(0)
    other = LatentClip("b", "b", "", features, clip.actions, clip.states)
    moved = {}
    for mode in ("rollout", "jump", "teacher"):
        change = modes.predict(predictor, other, mode)[0] - modes.predict(predictor, clip, mode)[0]
        moved[mode] = (change.abs().amax(dim=(0, 2, 3)) > 1e-5).tolist()
    assert moved == {
        "rollout": 5 * [False],
        "jump": 5 * [False],
        "teacher": [False, False, True, True, True],
    }


def test_the_first_frames_of_a_clip(clip):
    seen = rollout.until(clip, 3)
    assert torch.equal(seen.features, clip.features[:4])
    assert torch.equal(seen.actions, clip.actions[:3]) and len(seen.states) == 3
    assert seen.id == clip.id and seen.extrinsics is None


def test_errors_are_the_named_losses():
    torch.manual_seed(0)
    predictions, true = 2 * torch.randn(1, 3, 4, 5), torch.randn(1, 3, 4, 5)
    found = rollout.errors(predictions, true)
    for i in range(3):
        pair = predictions[0, i], true[0, i]
        assert found["l1"][i].item() == pytest.approx(F.l1_loss(*pair).item())
        assert found["l2"][i].item() == pytest.approx(F.mse_loss(*pair).item() / 2)
        assert found["huber"][i].item() == pytest.approx(F.huber_loss(*pair).item())
