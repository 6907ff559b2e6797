"""Full fine-tuning: a copy of every weight of the DiT moves, the weights themselves never change.

loss + l2 * |w - w0|^2 + ewc * sum(F * (w - w0)^2)        F: diagonal Fisher from the context

python full_tta.py --steps 20
python full_tta.py --optimizer sgd --steps 10 --out results/sgd                # the draft's
torchrun --standalone --nproc-per-node 8 full_tta.py --steps 20            # shared out over 8 GPUs

Memory at 13.6B, beside activations: AdamW on float32 copies 299 GB (weights 27, copies 54,
gradients 54, moments 109, start 54), which GPUs can share out, four or eight of 80 GB by
prediction (benchmarks/sharded.py); SGD on copies in the weights' type 109 GB (27 each); with
--stop-every the copies once more. The draft's SGD is inert: gradients of norm 1 and lr 1e-5 move
13.6B weights by at most 2e-4 in all in twenty steps, decay scales them by 1 - 2e-6.
"""

import runs  # first: it says how torch's threads wait

# isort: split
import torch

import common

FISHER_DRAWS = 4


class FullTTA:
    """Every DiT parameter: float32 copies for AdamW, in the weights' own type for SGD."""

    @staticmethod
    def add_arguments(group):
        group.set_defaults(lr=1e-5)
        group.add_argument(
            "--optimizer", choices=("adamw", "sgd"), default="adamw", help="sgd: no moments to keep"
        )
        group.add_argument(
            "--weight-decay", type=common.not_negative, default=0.01,
            help="AdamW's; with sgd added to the gradient after clipping",
        )  # fmt: skip
        group.add_argument(
            "--warm-up", type=common.at_least(0), default=2, help="steps of rising learning rate"
        )
        group.add_argument(
            "--l2-to-start", type=common.not_negative, default=0.0, metavar="W",
            help="adds W times the squared distance from the pretrained weights (54 GB at 13.6B)",
        )  # fmt: skip
        group.add_argument(
            "--ewc", type=common.not_negative, default=0.0, metavar="W",
            help="the same, by each weight's diagonal Fisher information of the context, of mean 1 "
            "(109 GB)",
        )  # fmt: skip

    @staticmethod
    def check(args):
        if args.weights == "fp8":
            raise common.UsageError("--weights fp8: not where the weights themselves are learned")
        if args.compile and args.optimizer == "adamw" and args.weights == "bf16":
            raise common.UsageError(  # torch takes each rounded copy for another program
                "--compile: copies of bfloat16 weights are compiled anew for each block and video; "
                "give --weights fp32, or --optimizer sgd"
            )
        if args.ewc and args.context_latents < 2:
            raise common.UsageError("--ewc needs --context-latents of at least 2: one to predict")

    @staticmethod
    def learns(args):
        return torch.float32 if args.optimizer == "adamw" else None

    def __init__(self, model, clip, args):
        self.model, self.clip, self.args = model, clip, args
        names = [name for name, _ in model.dit.named_parameters()]
        self.copies = common.Masters(model, names, self.learns(args))
        self.weights = self.copies.values

    def named_parameters(self):
        return self.weights

    def attached(self):
        return self.copies.attached()

    def optimizer(self):
        args, weights = self.args, self.weights.values()
        if args.ewc:  # now, while no step's graph takes memory
            self.fisher = self.fisher_information()
        options = {"lr": args.lr, "weight_decay": args.weight_decay, "foreach": False}
        if args.optimizer == "sgd":  # foreach would hold a second copy of what it computes
            optimizer = torch.optim.SGD(weights, **options)
        else:
            optimizer = torch.optim.AdamW(weights, betas=(0.9, 0.999), eps=1e-8, **options)
        return optimizer, common.warm_up(optimizer, args.warm_up)

    def loss(self, draw):
        loss = common.flow_matching_loss(self.model, *draw, self.args.temporal_loss)
        if not self.args.ewc and not self.args.l2_to_start:
            return loss
        return loss, self.distance_from_start()

    def distance_from_start(self):
        """Squared, weighted as --l2-to-start and --ewc say."""
        total = 0.0
        for name, weight in self.weights.items():
            factor = self.args.l2_to_start
            if self.args.ewc:
                factor = factor + self.args.ewc * self.fisher[name]
            moved = (weight - self.copies.originals[name].to(weight.device)).float()
            total = total + (factor * moved.square()).sum()
        return total

    def fisher_information(self):
        """Mean squared gradient, over a few draws, of the loss of predicting the context latents
        after the first; scaled to mean 1 over all weights."""
        for weight in self.weights.values():  # of an attempt that ran out of memory
            weight.grad = None
        known = self.clip.context
        problem = common.Problem(known[:, :, :1], known[:, :, 1:], self.clip.text)
        generator = common.random_stream(self.clip.seed, self.clip.video.id, "fisher")
        total = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in self.weights.items()}
        sigmas = common.stratified_sigmas(FISHER_DRAWS, generator, self.model.sigma_min)
        for sigma in sigmas.split(1):
            noise = common.draw_noise(generator, problem.target)
            loss = common.flow_matching_loss(self.model, problem, sigma.to(noise.device), noise)
            loss.backward()
            for name, weight in self.weights.items():
                total[name] += weight.grad.float().square()
                weight.grad = None
        mean = sum(f.sum() for f in total.values()) / sum(f.numel() for f in total.values())
        return {name: f / mean for name, f in total.items()}


def main():
    args = runs.parse_args(__doc__, FullTTA)
    run = runs.Run(args)
    if run.ends_here:  # --dry-run, or all is done
        return run.exit_code()
    model = common.load_model(args)
    with run.working(model):
        for video in run.pending():
            with run.recorded(video) as record:
                clip = run.load_clip(video)
                method = FullTTA(model, clip, args)
                with method.attached():
                    record |= common.adapt(model, method, clip, args, run.show)
                    frames = common.generate(model, clip, args, record)
                record.later(clip, frames, method)
    return run.exit_code()


if __name__ == "__main__":
    runs.run_script(main)
