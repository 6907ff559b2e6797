"""Test-time adaptation of the V-JEPA 2-AC predictor: weights of its own learn from a clip.

The predictor says what later frames are in its encoder's features, from earlier ones and what was
done in them. A step follows the gradient of its mean error on true frames:

    rollout          all after the context, from predictions, through which no gradient flows
    sequential       as rollout, with a step on each frame before the next is predicted
    jump             the clip's last (--predict-frames, else all), each straight from frame 0
    sequential-jump  as jump, with a step on each frame before the next is predicted
    teacher          the same, each from the true frames before it

    python vjepa_tta.py --preset extended                           # the study's, or AdaJEPA's
    python vjepa_tta.py --carry-over 1 --out results/vjepa_carried  # goes on from clip to clip
    python vjepa_tta.py --steps 0 --out results/baseline_vjepa
"""

import runs  # first: it says how torch's threads wait

# isort: split
import torch

import common
from predictors import modes, presets, rollout, weights
from predictors.adaptation import in_place


class VJEPAAdaptation:
    """The kinds of the predictor's own weights that --adapt names, float32, in place."""

    of_latent_clips = True  # what its runs go through, in place of videos

    @staticmethod
    def add_arguments(group):
        group.add_argument(
            "--preset", choices=tuple(presets.PRESETS), default="stronger",
            help="values of these flags where they are not given: the study's rows, or AdaJEPA's",
        )  # fmt: skip
        group.add_argument(
            "--adapt", type=weights.kinds, metavar="KIND[+KIND]",
            help=f"weights that learn: {', '.join(weights.KINDS)}",
        )  # fmt: skip
        group.add_argument("--mode", choices=tuple(modes.MODES), help="see above")
        group.add_argument(
            "--steps", type=common.at_least(0, 1_000_000), metavar="N",
            help="updates per clip; 0 is the baseline; sequential: 1, for each frame",
        )  # fmt: skip
        group.add_argument("--lr", type=common.positive, metavar="X", help="learning rate")
        group.add_argument(
            "--grad-clip", type=common.not_negative, metavar="X",
            help="limit of the gradient's norm; 0: none",
        )  # fmt: skip
        group.add_argument("--optimizer", choices=("adamw", "adam"), help="betas 0.9 and 0.999")
        group.add_argument("--weight-decay", type=common.not_negative, help="AdamW's")
        group.add_argument(
            "--context-frames", type=common.at_least(1), default=1, changes="generation",
            help="true frames that a rollout begins with",
        )  # fmt: skip
        group.add_argument(
            "--predict-frames", type=common.at_least(1), metavar="K",
            help="learn from K frames: a rollout's first, the clip's last; all where not given",
        )  # fmt: skip
        group.add_argument(
            "--loss", choices=("l1", "l2", "huber"), default="l1", changes="generation",
            help="mean error of a prediction; l2 is half the squared one",
        )  # fmt: skip

    @staticmethod
    def check(args):
        decay = args.weight_decay
        if args.steps is None and "sequential" in (args.mode or ""):
            args.steps = 1
        presets.fill(args)
        if args.steps > 1 and "sequential" in args.mode:
            raise common.UsageError(
                f"--steps {args.steps}: must be 1, for each frame, or 0 with --mode {args.mode}"
            )
        if args.context_frames > 1 and args.mode not in ("rollout", "sequential"):
            raise common.UsageError(
                f"--context-frames {args.context_frames}: must be 1 with --mode {args.mode}"
            )
        if decay is not None and args.optimizer == "adam":
            raise common.UsageError(f"--weight-decay {decay}: only with --optimizer adamw")
        if args.optimizer == "adam":
            args.weight_decay = None
        elif args.weight_decay is None:  # of a preset that has Adam
            args.weight_decay = 0.01

    def __init__(self, predictor, args):
        self.predictor, self.args = predictor, args
        self.adapted = weights.of_kinds(predictor, args.adapt)

    def named_parameters(self):
        return self.adapted

    def attached(self):
        return in_place(self.adapted)

    def optimizer(self):
        if self.args.optimizer == "adam":
            optimizer = torch.optim.Adam(self.adapted.values(), lr=self.args.lr)
        else:
            optimizer = torch.optim.AdamW(
                self.adapted.values(), lr=self.args.lr, weight_decay=self.args.weight_decay
            )
        return optimizer, common.constant(optimizer)

    def draws(self, clip):
        """Predicted and true frames (1, K, N, D); a step is taken on them before the next."""
        mode, context, count = self.args.mode, self.args.context_frames, self.args.predict_frames
        if "sequential" in mode and self.args.steps:
            yield from modes.one_by_one(self.predictor, clip, mode, context, count)
        else:
            for _ in range(self.args.steps):
                yield modes.predict(self.predictor, clip, mode, context, count)

    def loss(self, draw):
        return rollout.errors(*draw)[self.args.loss].mean()


def main():
    args = runs.parse_args(__doc__, VJEPAAdaptation)
    run = runs.LatentRun(args)
    if run.ends_here:  # --dry-run, or all is done
        return run.exit_code()
    method = VJEPAAdaptation(run.load_predictor(), args)
    with method.attached(), run.working(method):
        for item in run.pending():
            with run.recorded(item) as record:
                clip = run.load_clip(item)
                record |= run.errors_before(clip)
                record |= run.adapt(clip)
                record |= run.errors_after(clip)
                record.later(clip)
    return run.exit_code()


if __name__ == "__main__":
    runs.run_script(main)
