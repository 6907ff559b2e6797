"""Delta-C and its relatives at the last layer: no graph through the DiT is ever built.

    output           v + delta                      one number per latent channel
    pre-norm         final_layer(h + delta, e)      h: the hidden state after the last block
    last-modulation  final_layer(h, e + delta)      e: the final layer's timestep embedding

For `output` each step draws (sigma, noise) as everywhere, or --solver closed-form takes the mean
residual over --cached-draws draws. The other two run the DiT once for each of those draws, and
learn on what it left before its last layer (SLOT's idea; arXiv 2505.12392).

    python delta_c.py --solver closed-form
    python delta_c.py --site pre-norm --lr 1e-2 --steps 20
"""

import runs  # first: it says how torch's threads wait

# isort: split
import torch

import common

CACHED_DRAWS = 16


class DeltaC:
    """delta (channels,), (hidden,) or (width,) float32, zero at start."""

    @staticmethod
    def add_arguments(group):
        group.set_defaults(lr=1e-3)
        group.add_argument(
            "--site", choices=("output", "pre-norm", "last-modulation"), default="output",
            help="where delta is added",
        )  # fmt: skip
        group.add_argument(
            "--solver", choices=("adamw", "closed-form"), default="adamw",
            help="closed-form: of the output alone; --steps other than 0 is then one step",
        )  # fmt: skip
        group.add_argument(
            "--cached-draws", type=common.at_least(1, 10_000), metavar="K",
            help="draws of (sigma, noise), stratified over sigma, that are solved over; not for "
            f"the output with adamw (default: {CACHED_DRAWS})",
        )  # fmt: skip
        group.add_argument("--weight-decay", type=common.not_negative, default=0.01, help="AdamW's")

    @staticmethod
    def check(args):
        if args.solver == "closed-form" and args.site != "output":
            raise common.UsageError(f"--solver closed-form needs --site output, not {args.site}")
        if args.solver == "adamw" and args.site == "output":
            if args.cached_draws:
                raise common.UsageError("--cached-draws: the output with adamw draws at every step")
            return
        if args.draws > 1 or args.context == "varying" or args.temporal_loss:
            raise common.UsageError(
                "--draws, --context varying and --temporal-loss are for draws at every step; here "
                "--cached-draws are drawn once"
            )
        args.cached_draws = args.cached_draws or CACHED_DRAWS

    def __init__(self, model, clip, args):
        self.model, self.args = model, args
        size = {
            "output": model.latent_channels,
            "pre-norm": model.hidden_width,
            "last-modulation": model.embedding_width,
        }[args.site]
        self.delta = torch.zeros(size, device=model.device, requires_grad=True)
        if args.solver == "closed-form":
            self.solve = self.mean_residual
        elif args.site != "output":
            self.losses = self.cached_losses

    def named_parameters(self):
        return {"delta": self.delta}

    def optimizer(self, args):
        return torch.optim.AdamW(
            [self.delta], lr=args.lr, betas=(0.9, 0.999), eps=1e-15, weight_decay=args.weight_decay
        )

    def attached(self):
        if self.args.site == "output":
            return self.model.predicted_velocity(lambda v: v + self.delta.view(1, -1, 1, 1, 1))
        if self.args.site == "pre-norm":
            return self.model.block_output(self.before_norm)
        return self.model.timestep_embedding(self.before_modulation)

    def before_norm(self, i, x):  # (B, tokens, hidden); on the last block's output
        return (x + self.delta).to(x.dtype) if i == self.model.depth - 1 else x

    def before_modulation(self, i, e, sigma):  # (B, T, width); i = depth is the final layer
        return e + self.delta if i == self.model.depth else e

    def draws(self, clip):
        """K pairs of sigma (1,) and noise, the same for every site."""
        generator = common.random_stream(clip.seed, clip.video.id, "cached draws")
        for sigma in common.stratified_sigmas(self.args.cached_draws, generator).split(1):
            yield sigma.to(clip.target.device), common.draw_noise(generator, clip.target)

    def mean_residual(self, model, clip, args):
        """The least-squares delta over all draws: the mean of what the velocity lacks."""
        residuals, sigmas = [], []
        with torch.no_grad():
            for sigma, noise in self.draws(clip):
                noisy = common.add_noise(clip.target, noise, sigma)
                velocity = model.velocity(noisy, sigma, clip.context, clip.text)
                residuals.append(noise - clip.target - velocity)
                sigmas += sigma.tolist()
            residual = torch.cat(residuals)
            self.delta.copy_(residual.mean((0, 2, 3, 4)))
        return residual.square().mean().item(), sigmas

    def cached_losses(self, model, clip, args):
        """For each step the sigmas of all draws and their joint loss on what the DiT left before
        its last layer; taken before the first update, while delta is zero."""
        cache = []
        for sigma, noise in self.draws(clip):
            noisy = common.add_noise(clip.target, noise, sigma)
            x, e = model.before_head(noisy, sigma, clip.context, clip.text)
            cache.append((x, e, noise - clip.target, sigma))
        sigmas = [sigma.item() for *_, sigma in cache]
        for _ in range(args.steps):
            yield sigmas, lambda: torch.stack([self.cached_loss(*entry) for entry in cache]).mean()

    def cached_loss(self, x, e, velocity_target, sigma):
        if self.args.site == "pre-norm":
            x = self.before_norm(self.model.depth - 1, x)
        else:
            e = self.before_modulation(self.model.depth, e, sigma)
        velocity = self.model.head(x, e, velocity_target.shape)
        return (velocity - velocity_target).square().mean()


def main():
    args = runs.parse_args(__doc__, DeltaC)
    run, model = runs.Run(args), common.load_model(args)
    for clip in run.clips(model):
        method = DeltaC(model, clip, args)
        with method.attached():
            record = common.adapt(model, method, clip, args, run.show)
            frames = common.generate(model, clip, args, record)
        run.write(clip, record, frames, method)
    return run.exit_code()


if __name__ == "__main__":
    runs.run_script(main)
