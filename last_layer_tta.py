"""Adaptation of what enters the last layer: the DiT runs once for each draw, never in a step.

    pre-norm         final_layer(h + delta, e)      h: the hidden state after the last block
    last-modulation  final_layer(h, e + delta)      e: the final layer's timestep embedding

--cached-draws pairs of (sigma, noise) are drawn once, and delta is learned on what the DiT left
before its last layer for each (SLOT's idea; arXiv 2505.12392).

    python last_layer_tta.py --site pre-norm --steps 20
"""

import runs  # first: it says how torch's threads wait

# isort: split
import torch

import common


class LastLayer:
    """delta (hidden,) or (width,) float32, zero at start."""

    @staticmethod
    def add_arguments(group):
        group.set_defaults(lr=1e-3)
        group.add_argument(
            "--site", choices=("pre-norm", "last-modulation"), default="pre-norm",
            help="where delta is added",
        )  # fmt: skip
        group.add_argument(
            "--cached-draws", type=common.at_least(1, 10_000), default=16, metavar="K",
            help="draws of (sigma, noise), stratified over sigma, that are learned on",
        )  # fmt: skip
        group.add_argument("--weight-decay", type=common.not_negative, default=0.01, help="AdamW's")

    @staticmethod
    def check(args):
        common.refuse_other_draws(args)

    def __init__(self, model, clip, args):
        self.model, self.clip, self.args = model, clip, args
        size = model.hidden_width if args.site == "pre-norm" else model.embedding_width
        self.delta = torch.zeros(size, device=model.device, requires_grad=True)
        self.left = None  # by the DiT before its last layer, for each draw

    def named_parameters(self):
        return {"delta": self.delta}

    def optimizer(self):
        optimizer = torch.optim.AdamW(
            [self.delta], lr=self.args.lr, betas=(0.9, 0.999), eps=1e-15,
            weight_decay=self.args.weight_decay,
        )  # fmt: skip
        return optimizer, common.constant(optimizer)

    def draws(self):
        return [common.fixed_draw(self.model, self.clip, self.args.cached_draws)] * self.args.steps

    def loss(self, draw):
        if self.left is None:  # in the first step, as if delta were zero: --adapter gives another
            given = self.delta.detach().clone()
            self.delta.data.zero_()
            try:
                self.left = [self.before_last_layer(*each) for each in draw.each()]
            finally:  # out of memory, after which it is tried again
                self.delta.data.copy_(given)
        return torch.stack([self.loss_after(*each) for each in self.left]).mean()

    def before_last_layer(self, problem, sigma, noise):
        noisy = common.add_noise(problem.target, noise, sigma)
        x, e = self.model.before_head(noisy, sigma, problem.context, problem.text)
        return x, e, noise - problem.target, noisy, sigma

    def loss_after(self, x, e, target, noisy, sigma):
        """Of the velocity that the last layer makes of x (B, T, S, hidden) and e (B, T, width)."""
        if self.args.site == "pre-norm":
            x = self.shift(self.model.depth - 1, x)
        else:
            e = self.steer(self.model.depth, e, sigma)
        return (self.model.head(x, e, noisy, sigma) - target).square().mean()

    def attached(self):
        if self.args.site == "pre-norm":
            return self.model.block_output(self.shift)
        return self.model.timestep_embedding(self.steer)

    def shift(self, i, x):  # (B, tokens, hidden) that leaves block i
        return (x + self.delta).to(x.dtype) if i == self.model.depth - 1 else x

    def steer(self, i, e, sigma):  # (B, T, width) of block i; i = depth is the final layer
        return e + self.delta if i == self.model.depth else e


def main():
    args = runs.parse_args(__doc__, LastLayer)
    run = runs.Run(args)
    if run.ends_here:  # --dry-run, or all is done
        return run.exit_code()
    model = common.load_model(args)
    with run.working(model):
        for video in run.pending():
            with run.recorded(video) as record:
                clip = run.load_clip(video)
                method = LastLayer(model, clip, args)
                with method.attached():
                    record |= common.adapt(model, method, clip, args, run.show)
                    frames = common.generate(model, clip, args, record)
                record.later(clip, frames, method)
    return run.exit_code()


if __name__ == "__main__":
    runs.run_script(main)
