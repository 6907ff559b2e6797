"""What the predictor says of a clip's later frames, and the errors of it.

A clip (predictors/clips.py) has frames 0..T: features (T + 1, N, D), and for every frame but the
last what was done in it: actions (T, A), states (T, A), with some predictors extrinsics (T, A - 1).
Features, targets and every predicted frame are normalised over D. Predictions are (1, K, N, D).
"""

import dataclasses

import torch
import torch.nn.functional as F

EPS, TRAINING_EPS = 1e-6, 1e-5  # of the normalisation in the study, and in the original training


def normalise(x, eps=EPS):
    """A layer norm over the last axis, without parameters."""
    return F.layer_norm(x, x.shape[-1:], eps=eps)


def until(clip, last):
    """The clip's frames 0..last."""
    extrinsics = None if clip.extrinsics is None else clip.extrinsics[:last]
    return dataclasses.replace(
        clip, features=clip.features[: last + 1], actions=clip.actions[:last],
        states=clip.states[:last], extrinsics=extrinsics,
    )  # fmt: skip


def on_device(predictor, clip):
    """Normalised features (1, T + 1, N, D), and actions, states and extrinsics (1, T, ...)."""
    device = predictor.predictor_proj.weight.device
    given = (clip.features, clip.actions, clip.states, clip.extrinsics)
    given = [None if x is None else x[None].to(device, torch.float32) for x in given]
    return normalise(given[0]), given[1:]


def cut(conditions, start, stop):
    return [None if x is None else x[:, start:stop] for x in conditions]


def frames_to_predict(clip, context_frames, steps=None):
    """How many are predicted after the context: `steps` or, where there are fewer, all. Raises
    ValueError where there is none."""
    count = len(clip.features) - context_frames
    if count < 1:
        raise ValueError(
            f"{context_frames} frames of context leave none to predict: the clip has "
            f"{len(clip.features)}"
        )
    return count if steps is None else min(count, steps)


def rollout(predictor, clip, context_frames=1, steps=None):
    """The `steps` frames after the first `context_frames`, each predicted from these and from the
    predictions before it, through which no gradient flows.

    A frame attends to no later one. So the predictions are made frame by frame without a graph,
    each frame computed once, and where a gradient is asked for, all again in a single pass over
    what was made: the same values, and the memory of one pass.
    """
    features, conditions = on_device(predictor, clip)
    steps = frames_to_predict(clip, context_frames, steps)
    with torch.no_grad():
        frames, cache, start = features[:, :context_frames], [], 0
        while frames.shape[1] < context_frames + steps:
            stop = frames.shape[1]
            new = frames[:, start:].flatten(1, 2)
            out = predictor(new, *cut(conditions, start, stop), cache=cache)
            frames = torch.cat([frames, normalise(out[:, None, -frames.shape[2] :])], dim=1)
            start = stop
    if not torch.is_grad_enabled():
        return frames[:, context_frames:]
    given = frames[:, :-1]
    out = predictor(given.flatten(1, 2), *cut(conditions, 0, given.shape[1]))
    return normalise(out.unflatten(1, given.shape[1:3])[:, context_frames - 1 :])


def jump(predictor, clip, steps=None):
    """The last `steps` frames, each in one pass from frame 0 and what was done in it, put at the
    time before the predicted one."""
    return normalise(jumped(predictor, clip, last_frames(clip, steps)))[None]


def jumps(predictor, clip, steps=None):
    """As jump, a frame (1, 1, N, D) at a time, each with the weights of its moment."""
    for frame in last_frames(clip, steps).split(1):
        yield normalise(jumped(predictor, clip, frame))[None]


def last_frames(clip, steps):
    last = len(clip.features)
    return torch.arange(last - frames_to_predict(clip, 1, steps), last)


def jumped(predictor, clip, frames):
    """Features (K, N, D) of these frames (K,), not normalised."""
    features, conditions = on_device(predictor, clip)
    given = [features[:, 0], *cut(conditions, 0, 1)]
    given = [None if x is None else x.expand(len(frames), -1, -1) for x in given]
    return predictor(*given, frames=frames[:, None].to(features.device) - 1)


def rolled_out(predictor, clip, context_frames=1, steps=None):
    """As rollout, a frame (1, 1, N, D) at a time, each with the weights of its moment."""
    features, conditions = on_device(predictor, clip)
    frames = features[:, :context_frames]
    for _ in range(frames_to_predict(clip, context_frames, steps)):
        out = predictor(frames.flatten(1, 2), *cut(conditions, 0, frames.shape[1]))
        prediction = normalise(out[:, None, -frames.shape[2] :])
        yield prediction
        frames = torch.cat([frames, prediction.detach()], dim=1)


def teacher_forced(predictor, clip, steps=None):
    """The last `steps` frames, each predicted from the true ones before it."""
    count = frames_to_predict(clip, 1, steps)
    features, conditions = on_device(predictor, clip)
    given = features[:, :-1]
    out = predictor(given.flatten(1, 2), *conditions)
    return normalise(out.unflatten(1, given.shape[1:3])[:, -count:])


def errors(predictions, true):
    """{"l1", "l2", "huber"}: the error of each frame (K,), float32, of (1, K, N, D) both.

    Means over patches and features of |e|; of e^2 / 2; of the Huber loss with delta 1.
    """
    difference = (predictions - true).abs()[0]
    squared = difference.square() / 2
    each = {"l1": difference, "l2": squared}
    each["huber"] = torch.where(difference < 1, squared, difference - 0.5)
    return {name: value.mean(dim=(1, 2)) for name, value in each.items()}


def training_losses(predictor, features, actions, states, extrinsics=None, auto_steps=2):
    """The two losses of the original training, mean absolute errors: teacher forcing and a rollout.

    features (B, T, N, D) as the encoder gives them; actions (B, T - 1 or more, A), states and
    extrinsics (B, T - 1 or more, ...). The rollout predicts auto_steps frames, the first by teacher
    forcing, and gradients flow through it. Returns {"jloss", "sloss", "z_tf" (B, (T - 1) * N, D),
    "z_ar" (B, auto_steps * N, D)}.
    """
    h, conditions = normalise(features, TRAINING_EPS), (actions, states, extrinsics)
    count, patches = h.shape[1] - 1, h.shape[2]
    true = h[:, 1:].flatten(1, 2)
    out = predictor(h[:, :-1].flatten(1, 2), *cut(conditions, 0, count))
    z_tf = normalise(out, TRAINING_EPS)
    z = torch.cat([h[:, 0], z_tf[:, :patches]], dim=1)
    for stop in range(2, auto_steps + 1):
        out = predictor(z, *cut(conditions, 0, stop))[:, -patches:]
        z = torch.cat([z, normalise(out, TRAINING_EPS)], dim=1)
    z_ar = z[:, patches:]
    jloss = (z_tf - true).abs().mean()
    sloss = (z_ar - true[:, : z_ar.shape[1]]).abs().mean()
    return {"jloss": jloss, "sloss": sloss, "z_tf": z_tf, "z_ar": z_ar}
