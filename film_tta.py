"""FiLM: corrections to each block's modulation.

    block i of L modulates with m + gamma[floor(i * G / L)],  m = (shift, scale, gate) twice

gamma is zero at the start of every video. 48 times the parameters of AdaSteer at 13.6B: six values
for each of the 4096 channels in place of one for each of the 512 of the embedding.

    python film_tta.py --groups 1 --mode full --steps 5
"""

import runs  # first: it says how torch's threads wait

# isort: split
import torch

import common

MODES = {"full": ("shift", "scale", "gate"), "shift-scale": ("shift", "scale"), "scale": ("scale",)}


class FiLM:
    """G float32 vectors of parts * hidden, zero at start."""

    @staticmethod
    def add_arguments(group):
        group.set_defaults(lr=3e-4)
        common.add_groups(group)
        group.add_argument("--mode", choices=tuple(MODES), default="full", help="what is corrected")
        group.add_argument("--weight-decay", type=common.not_negative, default=0.01, help="AdamW's")

    @staticmethod
    def fits(args, model):
        common.check_groups(args, model.stacks, range(model.depth))

    def __init__(self, model, clip, args):
        self.model, self.args, kinds = model, args, MODES[args.mode]
        self.parts = [part for part in model.modulation_parts if part.split(".")[-1] in kinds]
        size = len(self.parts) * model.hidden_width
        blocks = range(model.depth)
        groups, self.chosen = common.number_of_groups(args, clip, size, model.stacks, blocks)
        self.group_of = common.laid_over(model.stacks, blocks, groups)
        zeros = torch.zeros(1 + max(self.group_of.values()), size, device=model.device)
        self.gamma = [vector.clone().requires_grad_() for vector in zeros]

    def details(self):
        return self.chosen

    def named_parameters(self):
        return {f"gamma.{g}": vector for g, vector in enumerate(self.gamma)}

    def optimizer(self):
        args = self.args
        optimizer = torch.optim.AdamW(
            self.gamma, lr=args.lr, betas=(0.9, 0.999), eps=1e-15, weight_decay=args.weight_decay
        )
        return optimizer, common.constant(optimizer)

    def loss(self, draw):
        return common.flow_matching_loss(self.model, *draw, self.args.temporal_loss)

    def attached(self):
        return self.model.modulation(self.correct)

    def correct(self, i, m):
        """m, {"attn.shift": (B, T, hidden), ...} of block i."""
        gamma = self.gamma[self.group_of[i]].chunk(len(self.parts))
        return m | {part: m[part] + value for part, value in zip(self.parts, gamma, strict=True)}


def main():
    args = runs.parse_args(__doc__, FiLM)
    run = runs.Run(args)
    if run.ends_here:  # --dry-run, or all is done
        return run.exit_code()
    model = common.load_model(args)
    with run.working(model):
        for video in run.pending():
            with run.recorded(video) as record:
                clip = run.load_clip(video)
                method = FiLM(model, clip, args)
                with method.attached():
                    record |= common.adapt(model, method, clip, args, run.show)
                    frames = common.generate(model, clip, args, record)
                record.later(clip, frames, method)
    return run.exit_code()


if __name__ == "__main__":
    runs.run_script(main)
