"""What does adaptation learn when the condition shows the answer, as in the draft of Open-Sora's
method? On a tiny network, in some minutes of one core.

    python -m benchmarks.shown_answer ../shared/oracles/opensora_v2/released

The folder's network is trained on made-up clips, latents that drift about a centre of the clip's
own, with no latent shown or the first one (1 to 5, as the release was). Then the draft's B is
adapted to each of some new clips, under the draft's condition ("everything" is shown, the loss is
on all latents) and under the honest one (the first latent is shown, the loss is on the rest).
Prints losses of fixed draws, before and after: under the adaptation's own condition, and under the
honest one on what followed the clip. Changes are means over clips, with their standard errors.
"""

import argparse
import contextlib
import json
from pathlib import Path
from types import SimpleNamespace

from adasteer import AdaSteer  # first: it says how torch's threads wait

# isort: split
import torch
from safetensors.torch import load_file

from backbones.opensora2 import OpenSora2
from backbones.opensora2_configs import geometry
from backbones.opensora2_dit import MMDiT
from common.adaptation import adapt
from common.loss import Problem, anchored_loss, flow_matching_loss
from common.values import at_least
from runs.cli import parse_args

LATENTS, PLACES, DRIFT = 5, (2, 3), 0.8
SIGMAS, DRAWS = (0.25, 0.5, 0.75), 4
GROUPS = (2, 3)  # of 3 and 5 blocks
FLAGS = "--final-layer own --steps 20 --lr 3e-3 --warm-up 3 --weight-decay 0".split()


def load(folder):
    dit = MMDiT(**json.loads((folder / "config.json").read_text()))
    dit.load_state_dict(load_file(folder / "weights.safetensors"))
    return OpenSora2(dit, None, None, "cpu", geometry({}, dit.config))


def new_clips(count, channels, generator):
    """(count, channels, 2 * LATENTS - 1, ...): those of a clip, and what follows its last."""
    centre = torch.randn(count, channels, 1, 1, 1, generator=generator)
    x = [torch.randn(count, channels, *PLACES, generator=generator)]
    for _ in range(2 * LATENTS - 2):
        fresh = torch.randn(count, channels, *PLACES, generator=generator)
        x.append(DRIFT * x[-1] + (1 - DRIFT**2) ** 0.5 * fresh)
    return (centre + torch.stack(x, dim=2)) / 2**0.5


def train(model, text, steps, generator):
    model.dit.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.dit.parameters(), lr=1e-3)
    for step in range(steps):
        x = new_clips(16, model.latent_channels, generator)[:, :, :LATENTS]
        known = int(step % 6 > 0)
        problem = Problem(x[:, :, :known], x[:, :, known:], text)
        sigma = torch.rand(len(x), generator=generator)
        noise = torch.randn(problem.target.shape, generator=generator)
        loss = flow_matching_loss(model, problem, sigma, noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.dit.parameters(), 1.0)
        optimizer.step()
    model.dit.requires_grad_(False)


def fixed_loss(model, problem):
    noise = torch.randn(
        DRAWS, *problem.target.shape[1:], generator=torch.Generator().manual_seed(7)
    )
    return anchored_loss(model, problem, SIGMAS, noise)


def shown(model, latents, everything):
    return model.condition("everything", latents) if everything else contextlib.nullcontext()


def measured(model, whole, text, number, everything):
    """Of one clip, adapted under one of the conditions: losses (own, future), before and after."""
    x, rest = whole[:, :, :LATENTS], whole[:, :, LATENTS - 1 :]
    known = 0 if everything else 1
    clip = SimpleNamespace(
        context=x[:, :, :known], target=x[:, :, known:], text=text, seed=1,
        video=SimpleNamespace(id=str(number)),
    )  # fmt: skip
    future = Problem(rest[:, :, :1], rest[:, :, 1:], text)
    args = parse_args(None, AdaSteer, FLAGS)
    args.groups = GROUPS  # which do not fit the bundled checkpoint
    method, losses = AdaSteer(model, clip, args), []

    def measure():
        with shown(model, x, everything):
            own = fixed_loss(model, clip)
        losses.append((own, fixed_loss(model, future)))

    with method.attached():
        measure()
        with shown(model, x, everything):
            adapt(model, method, clip, args)
        measure()
    return losses


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="with config.json and weights.safetensors")
    parser.add_argument("--train-steps", type=at_least(0), default=3000)
    parser.add_argument("--clips", type=at_least(2), default=40)
    args = parser.parse_args()
    model, generator = load(args.folder), torch.Generator().manual_seed(0)
    config = model.dit.config
    text = {
        "embeds": torch.randn(1, 7, config.context_in_dim, generator=generator),
        "pooled": torch.randn(1, config.vec_in_dim, generator=generator),
    }
    train(model, text, args.train_steps, generator)
    clips = new_clips(args.clips, model.latent_channels, generator).split(1)
    for name, everything in (("everything shown", True), ("first latent shown", False)):
        found = [measured(model, clip, text, i, everything) for i, clip in enumerate(clips)]
        before, after = torch.tensor(found).unbind(1)  # (clips, 2)
        change = 100 * (after / before - 1)
        error = change.std(0) / len(clips) ** 0.5
        for i, of in enumerate(("own condition", "true future, honest")):
            print(
                f"{name}: loss under {of}: {before[:, i].mean():.3f} -> {after[:, i].mean():.3f}, "
                f"{change[:, i].mean():+.1f} % (standard error {error[i]:.1f})"
            )


if __name__ == "__main__":
    main()
