"""The best of several continuations of a clip, chosen without the truth.

The verifier is the model's own flow-matching loss on a continuation, given the conditioning latents
and the prompt: what `future_loss` measures on the true future, here on what was sampled. Up to
weights over sigma it bounds the negative log-likelihood from above (Kingma and Gao 2023, Li et al.
2023, "diffusion classifier"), so the most typical continuation wins; like PSNR it favours smooth
ones. It costs DRAWS x 5 evaluations of one branch a continuation and decodes the chosen one alone.
"""

import math

from common.errors import UsageError
from common.future import finite, future_loss
from common.loss import Problem, draw_noise, random_stream
from common.stages import stage
from common.values import at_least
from devices.agreement import said_by_all
from devices.placement import within_memory

DRAWS = 2  # of noise at each sigma, the same for all continuations


def add_arguments(group):
    group.add_argument(
        "--best-of", type=at_least(2, 1024), metavar="N", changes="generation", effort=True,
        help="the best of N continuations by the model's own loss on each, which needs no truth",
    )  # fmt: skip


def check(args):
    if args.best_of is None:
        return
    if args.samples > 1:
        raise UsageError(
            f"--best-of {args.best_of}: gives one continuation; leave out --samples {args.samples}"
        )
    if not args.generate:
        raise UsageError(f"--best-of {args.best_of}: nothing is sampled with --no-generate")


def best(model, clip, found, record):
    """The one of several latents (1, C, T, h, w) after the conditioning ones that the verifier
    takes. Adds its losses, the index of the best and seconds to record; a loss that is not finite
    is None and never the best, unless all are, then the first is."""
    generator = random_stream(clip.seed, clip.video.id, "verifier noise")
    noise = draw_noise(generator, found[0], DRAWS)
    with stage(record, "verify", model.device):
        losses = [verified(model, clip, latents, noise) for latents in found]
    losses = said_by_all(losses)[0]
    order = [math.inf if loss is None else loss for loss in losses]
    chosen = order.index(min(order))
    record |= {"verifier_losses": losses, "best_sample": chosen}
    return found[chosen]


def verified(model, clip, latents, noise):
    problem = Problem(clip.cond_latents, latents, clip.text)
    return finite(within_memory(model, lambda: future_loss(model, problem, noise)).mean())
