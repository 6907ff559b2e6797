"""Delta-C: one number per latent channel is added to the predicted velocity.

    v + delta,  delta (channels,) zero at the start of every video

No graph through the DiT is ever built. Each step draws (sigma, noise) as everywhere, or --solver
closed-form takes the mean residual over --cached-draws draws.

    python delta_c.py --solver closed-form
    python delta_c.py --steps 20 --out results/delta_c_adamw
"""

import runs  # first: it says how torch's threads wait

# isort: split
import torch

import common

CACHED_DRAWS = 16


class DeltaC:
    """delta (channels,) float32, zero at start."""

    @staticmethod
    def add_arguments(group):
        group.set_defaults(lr=1e-3)
        group.add_argument(
            "--solver", choices=("adamw", "closed-form"), default="adamw",
            help="closed-form: the best delta on its draws; --steps other than 0 is then one step",
        )  # fmt: skip
        group.add_argument(
            "--cached-draws", type=common.at_least(1, 10_000), metavar="K",
            help="draws of (sigma, noise), stratified over sigma, that closed-form solves over "
            f"(default: {CACHED_DRAWS})",
        )  # fmt: skip
        group.add_argument("--weight-decay", type=common.not_negative, default=0.01, help="AdamW's")
        group.add_argument("--eps", type=common.positive, default=1e-15, help="AdamW's")
        group.add_argument(
            "--warm-up", type=common.at_least(0), default=0, help="steps of rising learning rate"
        )

    @staticmethod
    def check(args):
        if args.warm_up and args.solver == "closed-form":
            raise common.UsageError("--warm-up: closed-form has one step")
        if args.solver == "adamw":
            if args.cached_draws:
                raise common.UsageError("--cached-draws: adamw draws at every step")
            return
        for flag in common.given_flags(args, "lr", "eps", "weight_decay"):
            raise common.UsageError(f"{flag}: AdamW's; closed-form has no rate")
        common.refuse_other_draws(args)
        args.cached_draws = args.cached_draws or CACHED_DRAWS
        args.steps, args.stop_every = min(args.steps, 1), min(args.stop_every, 1)

    def __init__(self, model, clip, args):
        self.model, self.clip, self.args = model, clip, args
        self.delta = torch.zeros(model.latent_channels, device=model.device, requires_grad=True)

    def named_parameters(self):
        return {"delta": self.delta}

    def optimizer(self):
        args = self.args
        if args.solver == "closed-form":  # Newton's step: the loss has the Hessian 2 / channels
            optimizer = torch.optim.SGD([self.delta], lr=len(self.delta) / 2)
        else:
            optimizer = torch.optim.AdamW(
                [self.delta], lr=args.lr, betas=(0.9, 0.999), eps=args.eps,
                weight_decay=args.weight_decay,
            )  # fmt: skip
        return optimizer, common.warm_up(optimizer, self.args.warm_up)

    def clipped_together(self):
        return [] if self.args.solver == "closed-form" else [[self.delta]]

    def draws(self):
        if self.args.solver == "adamw":
            return common.draws(self.model, self.clip, self.args)
        return [common.fixed_draw(self.model, self.clip, self.args.cached_draws)] * self.args.steps

    def loss(self, draw):
        if self.args.solver == "adamw":
            return common.flow_matching_loss(self.model, *draw, self.args.temporal_loss)
        losses = [common.flow_matching_loss(self.model, *each) for each in draw.each()]
        return torch.stack(losses).mean()

    def attached(self):
        return self.model.predicted_velocity(lambda v: v + self.delta.view(1, -1, 1, 1, 1))


def main():
    args = runs.parse_args(__doc__, DeltaC)
    run = runs.Run(args)
    if run.ends_here:  # --dry-run, or all is done
        return run.exit_code()
    model = common.load_model(args)
    with run.working(model):
        for video in run.pending():
            with run.recorded(video) as record:
                clip = run.load_clip(video)
                method = DeltaC(model, clip, args)
                with method.attached():
                    record |= common.adapt(model, method, clip, args, run.show)
                    frames = common.generate(model, clip, args, record)
                record.later(clip, frames, method)
    return run.exit_code()


if __name__ == "__main__":
    runs.run_script(main)
