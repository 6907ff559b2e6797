"""Full fine-tuning: a copy of every weight of the DiT moves, the weights themselves never change.

loss + l2 * |w - w0|^2 + ewc * sum(F * (w - w0)^2)        F: diagonal Fisher from the context

python full_tta.py --lr 3e-4 --steps 20
python full_tta.py --optimizer sgd --lr 1e-5 --steps 10            # the study's, see --help
"""

import torch

import common

FISHER_DRAWS = 4
EPSILON = 1e-8  # of AdamW


class FullTTA:
    """Every DiT parameter: float32 copies for AdamW, in the weights' own type for SGD."""

    @staticmethod
    def add_arguments(group):
        group.set_defaults(lr=1e-4)
        group.add_argument(
            "--optimizer", choices=("adamw", "sgd"), default="adamw",
            help="adamw: float32 copies; at 13.6B 299 GB (27 weights, 54 copies, 54 gradients, 109 "
            "moments, 54 best state): more than any one GPU has. sgd: the study's, copies in the "
            "weights' own type and no momentum, 109 GB (27 each for weights, copies, gradients, "
            "best state): with lr 1e-5 and a gradient norm clipped to 1, twenty steps move the "
            "13.6B weights by 2e-4 in all, inert at any precision",
        )  # fmt: skip
        group.add_argument(
            "--weight-decay", type=common.not_negative, default=0.01,
            help="AdamW's; with sgd added to the gradient after clipping",
        )  # fmt: skip
        group.add_argument(
            "--warm-up", type=common.at_least(0), default=2, help="steps of rising learning rate"
        )
        group.add_argument(
            "--l2-to-start", type=common.not_negative, default=0.0, metavar="W",
            help="adds W times the squared distance from the pretrained weights to the loss",
        )  # fmt: skip
        group.add_argument(
            "--ewc", type=common.not_negative, default=0.0, metavar="W",
            help="the same with each weight's Fisher information on the context latents as factor",
        )  # fmt: skip

    def __init__(self, model, clip, args):
        if args.ewc and clip.context.shape[2] < 2:
            raise common.UsageError("--ewc needs --context-latents of at least 2: one to predict")
        self.model, self.clip, self.args, self.fisher = model, clip, args, None
        names = [name for name, _ in model.dit.named_parameters()]
        self.copies = common.Masters(
            model.dit, names, torch.float32 if args.optimizer == "adamw" else None
        )
        self.weights = self.copies.values

    def named_parameters(self):
        return self.weights

    def attached(self):
        return self.copies.attached()

    def optimizer(self, args):
        weights = self.weights.values()
        if args.optimizer == "sgd":
            return torch.optim.SGD(weights, lr=args.lr, weight_decay=args.weight_decay)
        return torch.optim.AdamW(
            weights, lr=args.lr, betas=(0.9, 0.999), eps=EPSILON, weight_decay=args.weight_decay
        )

    def penalty(self):
        total = 0.0
        if self.args.ewc and self.fisher is None:
            self.fisher = self.fisher_information()
        if not self.args.ewc and not self.args.l2_to_start:
            return total
        for name, weight in self.weights.items():
            squares = (weight - self.copies.originals[name]).float().square()
            factor = self.args.l2_to_start
            if self.args.ewc:
                factor = factor + self.args.ewc * self.fisher[name]
            total = total + (factor * squares).sum()
        return total

    def fisher_information(self):
        """Mean squared gradient of the loss of predicting the context after its first latent."""
        known = self.clip.context
        problem = common.Problem(known[:, :, :1], known[:, :, 1:], self.clip.text)
        generator = common.stream(self.clip.seed, self.clip.video.id, "fisher")
        total = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in self.weights.items()}
        for sigma in common.stratified(FISHER_DRAWS, generator).split(1):
            noise = common.draw_noise(generator, problem.target)
            loss = common.flow_matching_loss(self.model, problem, sigma.to(noise.device), noise)
            gradients = torch.autograd.grad(loss, list(self.weights.values()))
            for name, gradient in zip(total, gradients, strict=True):
                total[name] += gradient.float().square() / FISHER_DRAWS
        return total


def main():
    args = common.parse_args(__doc__, FullTTA)
    run, model = common.Run(args), common.load_model(args)
    for clip in run.clips(model):
        method = FullTTA(model, clip, args)
        with method.attached():
            record = common.adapt(model, method, clip, args, run.show)
            frames = common.generate(model, clip, args, record)
        run.write(clip, record, frames, method)
    return run.exit_code()


if __name__ == "__main__":
    common.run_script(main)
