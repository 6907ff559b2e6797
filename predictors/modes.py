"""Ways to predict a clip's frames and to learn from it: predictions beside the true frames."""

from predictors import rollout

MODES = {
    "rollout": "all from predictions, through which no gradient flows",
    "sequential": "as rollout, with a step on each frame before the next is predicted",
    "jump": "the clip's last, each straight from frame 0",
    "sequential-jump": "as jump, with a step on each frame before the next is predicted",
    "teacher": "the clip's last, each from the true frames before it",
}


def predict(predictor, clip, mode, context_frames=1, steps=None):
    """Predicted and true frames (1, K, N, D), normalised, by the weights as they are.

    K is `steps` or, where there are fewer, all: the first after the context in a rollout, else the
    clip's last. Raises ValueError where there is none.
    """
    if mode in ("rollout", "sequential"):
        predictions, first = rollout.rollout(predictor, clip, context_frames, steps), context_frames
    else:
        make = rollout.teacher_forced if mode == "teacher" else rollout.jump
        predictions = make(predictor, clip, steps)
        first = len(clip.features) - predictions.shape[1]
    true = rollout.on_device(predictor, clip)[0]
    return predictions, true[:, first : first + predictions.shape[1]]


def one_by_one(predictor, clip, mode, context_frames=1, steps=None):
    """As predict, a frame at a time, each with the weights of its moment."""
    true = rollout.on_device(predictor, clip)[0]
    if mode == "sequential":
        frames, first = rollout.rolled_out(predictor, clip, context_frames, steps), context_frames
    else:
        frames = rollout.jumps(predictor, clip, steps)
        first = len(clip.features) - rollout.frames_to_predict(clip, 1, steps)
    for i, prediction in enumerate(frames, first):
        yield prediction, true[:, i : i + 1]
