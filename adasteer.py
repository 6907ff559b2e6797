"""AdaSteer: a few additive vectors steer the timestep embedding of a video diffusion transformer.

    block i of L sees e + delta[floor(i * G / L)]

delta (G, width) is zero at the start of every video, learned on the frames before the anchor with
the flow-matching loss, active in all of sampling, and gone afterwards.

    python adasteer.py --groups 1 --steps 5                  # the bundled checkpoint and demo clips
    python adasteer.py --groups 1 --steps 0 --out results/baseline
"""

import torch

import common


class AdaSteer:
    """G float32 vectors, zero at start; each has its gradient norm clipped on its own."""

    @staticmethod
    def add_arguments(parser):
        parser.add_argument(
            "--groups", type=int, default=1, help="vectors: consecutive blocks share one"
        )
        parser.add_argument(
            "--final-layer",
            action="store_true",
            help="the last group also reaches the final layer (with --groups 1: Delta-A)",
        )
        parser.add_argument(
            "--weight-decay", type=common.not_negative, default=0.01, help="of AdamW"
        )

    def __init__(self, model, clip, args):
        if not 1 <= args.groups <= model.depth:
            raise common.UsageError(f"--groups must be in 1..{model.depth}, got {args.groups}")
        self.model, self.args = model, args
        zeros = torch.zeros(args.groups, model.embedding_width, device=model.device)
        self.delta = [vector.clone().requires_grad_() for vector in zeros]

    def parameters(self):
        return self.delta

    def clipped_together(self):
        return [[vector] for vector in self.delta]

    def optimizer(self, args):
        return torch.optim.AdamW(
            self.delta, lr=args.lr, betas=(0.9, 0.999), eps=1e-15, weight_decay=args.weight_decay
        )

    def attached(self):
        return self.model.timestep_embedding(self.steer)

    def steer(self, i, e, sigma):
        """e (B, T, width) of block i; i = depth is the final layer. All frames, context
        included."""
        depth = self.model.depth
        if i == depth and not self.args.final_layer:
            return e
        return e + self.delta[min(i, depth - 1) * self.args.groups // depth]


def main():
    args = common.parse_args(__doc__, AdaSteer)
    run, model = common.Run(args), common.load_model(args)
    for clip in run.clips(model):
        method = AdaSteer(model, clip, args)
        with method.attached():
            record = common.adapt(model, method, clip, args, run.show)
            frames = common.generate(model, clip, args, record)
        run.write(clip, record, frames)
    return run.exit_code()


if __name__ == "__main__":
    common.run_script(main)
