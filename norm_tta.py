"""Norm tuning: the affine norms inside the DiT's attention move, everything else stays.

cross: those before cross-attention      qk: those of the queries and keys of all attentions

python norm_tta.py --norms all --steps 5
python norm_tta.py --norms qk --with-delta --out results/qk     # and AdaSteer's vector
"""

import runs  # first: it says how torch's threads wait

# isort: split
import contextlib

import torch

import common

KINDS = {"cross": ("cross",), "qk": ("qk",), "all": ("cross", "qk")}


class NormTTA:
    """float32 masters of the chosen norms' weights, and with --with-delta a vector (width,)."""

    @staticmethod
    def add_arguments(group):
        group.set_defaults(lr=3e-3)
        group.add_argument("--norms", choices=tuple(KINDS), default="all", help="see above")
        group.add_argument(
            "--with-delta", action="store_true",
            help="learn an AdaSteer vector with them, which reaches all blocks and the final layer",
        )  # fmt: skip
        group.add_argument("--weight-decay", type=common.not_negative, default=0.01, help="AdamW's")

    def __init__(self, model, clip, args):
        self.model, self.args = model, args
        chosen = {
            f"{path}.{norm}"
            for path in common.all_paths(model.stacks)
            for kind in KINDS[args.norms]
            for norm in model.norms.get(kind, ())
        }
        names = [n for n, _ in model.dit.named_parameters() if n.rpartition(".")[0] in chosen]
        if not names:
            raise common.UsageError(f"--norms {args.norms}: this model has none of these layers")
        # not cast: in bfloat16 a weight near 1 would move in steps of 0.008
        self.masters, self.delta = common.Masters(model, names, cast=False), None
        if args.with_delta:
            self.delta = torch.zeros(model.embedding_width, device=model.device, requires_grad=True)

    def named_parameters(self):
        return self.masters.values | ({} if self.delta is None else {"delta": self.delta})

    def optimizer(self):
        optimizer = torch.optim.AdamW(
            self.named_parameters().values(), lr=self.args.lr, betas=(0.9, 0.999), eps=1e-15,
            weight_decay=self.args.weight_decay,
        )  # fmt: skip
        return optimizer, common.constant(optimizer)

    def loss(self, draw):
        return common.flow_matching_loss(self.model, *draw, self.args.temporal_loss)

    @contextlib.contextmanager
    def attached(self):
        with self.masters.attached(), self.model.timestep_embedding(self.steer):
            yield

    def steer(self, i, e, sigma):
        return e if self.delta is None else e + self.delta


def main():
    args = runs.parse_args(__doc__, NormTTA)
    run = runs.Run(args)
    if run.ends_here:  # --dry-run, or all is done
        return run.exit_code()
    model = common.load_model(args)
    with run.working(model):
        for video in run.pending():
            with run.recorded(video) as record:
                clip = run.load_clip(video)
                method = NormTTA(model, clip, args)
                with method.attached():
                    record |= common.adapt(model, method, clip, args, run.show)
                    frames = common.generate(model, clip, args, record)
                record.later(clip, frames, method)
    return run.exit_code()


if __name__ == "__main__":
    runs.run_script(main)
