"""AdaSteer: a few additive vectors steer the timestep embedding of a video diffusion transformer.

    block i of L sees e + delta[floor(i * G / L)]                   (--target timestep)
    x + delta[floor(i * G / L)] leaves block i of L                 (--target hidden)

delta (G, width) is zero at the start of every video, learned on the frames before the anchor with
the flow-matching loss, active in all of sampling, and gone afterwards.

    python adasteer.py --groups 1 --steps 5                  # the bundled checkpoint and demo clips
    python adasteer.py --groups 1 --steps 0 --out results/baseline
"""

import runs  # first: it says how torch's threads wait

# isort: split
import torch
import torch.nn.functional as F

import common


class AdaSteer:
    """G float32 vectors, zero at start; each has its gradient norm clipped on its own."""

    @staticmethod
    def add_arguments(group):
        common.add_groups(group)
        group.add_argument(
            "--target", choices=("timestep", "hidden"), default="timestep",
            help="steer the timestep embedding of each block, or the hidden state that leaves it",
        )  # fmt: skip
        group.add_argument(
            "--final-layer", nargs="?", const="shared", choices=("shared", "own"), default=False,
            help="steer it too, by the last group (with --groups 1: Delta-A) or an own vector",
        )  # fmt: skip
        group.add_argument(
            "--blocks", type=common.blocks, default="all", metavar="all|last:K|I,J",
            help="blocks that are steered; the groups are laid over these",
        )  # fmt: skip
        group.add_argument(
            "--dims", type=common.at_least(1), metavar="K", help="learn the first K components only"
        )
        group.add_argument(
            "--time-slope", action="store_true",
            help="delta0 + sigma * delta1 in place of delta: twice the parameters",
        )  # fmt: skip
        group.add_argument(
            "--l2", type=common.not_negative, default=0.0, metavar="W",
            help="adds W times the squared norm of all vectors to the loss; their means: W / width",
        )  # fmt: skip
        group.add_argument("--weight-decay", type=common.not_negative, default=0.01, help="AdamW's")
        group.add_argument("--eps", type=common.positive, default=1e-15, help="AdamW's")
        group.add_argument(
            "--warm-up", type=common.at_least(0), default=0, help="steps of rising learning rate"
        )

    @staticmethod
    def check(args):
        if args.target == "hidden" and (args.final_layer or args.time_slope):
            raise common.UsageError("--final-layer and --time-slope need --target timestep")

    @staticmethod
    def fits(args, model):
        width = model.embedding_width if args.target == "timestep" else model.hidden_width
        if args.dims is not None and args.dims > width:
            raise common.MisfitError(f"--dims must be in 1..{width}, got {args.dims}")
        common.check_groups(args, model.stacks, common.chosen_blocks(args.blocks, model.depth))

    def __init__(self, model, clip, args):
        self.fits(args, model)
        self.model, self.args = model, args
        width = model.embedding_width if args.target == "timestep" else model.hidden_width
        dims = width if args.dims is None else args.dims
        size = dims * (2 if args.time_slope else 1)
        blocks = common.chosen_blocks(args.blocks, model.depth)
        groups, self.chosen = common.number_of_groups(args, clip, size, model.stacks, blocks)
        self.group_of = common.laid_over(model.stacks, blocks, groups)
        last = max(self.group_of.values()) + (args.final_layer == "own")
        if args.final_layer:
            self.group_of[model.depth] = last
        zeros = torch.zeros(last + 1, size, device=model.device)
        self.delta = [vector.clone().requires_grad_() for vector in zeros]
        self.padding = (0, width - dims)

    def named_parameters(self):
        return {f"delta.{g}": vector for g, vector in enumerate(self.delta)}

    def details(self):
        return self.chosen

    def clipped_together(self):
        return [[vector] for vector in self.delta]

    def optimizer(self):
        args = self.args
        optimizer = torch.optim.AdamW(
            self.delta, lr=args.lr, betas=(0.9, 0.999), eps=args.eps, weight_decay=args.weight_decay
        )
        return optimizer, common.warm_up(optimizer, args.warm_up)

    def loss(self, draw):
        """The flow-matching loss of the velocity noise - latents, and the penalty of --l2."""
        loss = common.flow_matching_loss(self.model, *draw, self.args.temporal_loss)
        if not self.args.l2:
            return loss
        return loss, self.args.l2 * sum(vector.square().sum() for vector in self.delta)

    def attached(self):
        if self.args.target == "hidden":
            return self.model.block_output(self.shift)
        return self.model.timestep_embedding(self.steer)

    def steer(self, i, e, sigma):
        """e (B, T, width) of block i; i = depth is the final layer. All frames, context
        included; sigma (B, T) is 0 there."""
        if i not in self.group_of:
            return e
        delta = self.delta[self.group_of[i]]
        if self.args.time_slope:
            constant, slope = delta.chunk(2)
            delta = constant + sigma[..., None] * slope
        return e + F.pad(delta, self.padding)

    def shift(self, i, x):
        """x (B, tokens, hidden) that leaves block i."""
        if i not in self.group_of:
            return x
        return (x + F.pad(self.delta[self.group_of[i]], self.padding)).to(x.dtype)


def main():
    args = runs.parse_args(__doc__, AdaSteer)
    run = runs.Run(args)
    if run.ends_here:  # --dry-run, or all is done
        return run.exit_code()
    model = common.load_model(args)
    with run.working(model):
        for video in run.pending():
            with run.recorded(video) as record:
                clip = run.load_clip(video)
                method = AdaSteer(model, clip, args)
                with method.attached():
                    record |= common.adapt(model, method, clip, args, run.show)
                    frames = common.generate(model, clip, args, record)
                record.later(clip, frames, method)
    return run.exit_code()


if __name__ == "__main__":
    runs.run_script(main)
