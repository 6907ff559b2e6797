"""Does nano listen to captions? Its loss with the right one against that with another scene's."""

import torch

from common.loss import add_noise, draw_noise, stream, velocity_target
from nano import scenes

SCENES, CONTEXT, SIGMAS = 200, 1, (0.5, 0.75, 0.95)


@torch.no_grad()
def caption_differences(model):
    """Loss with the right caption minus loss with the next scene's, on scenes never trained on.

    Same sigma and noise for both; only the first latent is given, so that motion is not yet seen.
    """
    drawn = [scenes.clip(scenes.UNSEEN + i, 29) for i in range(SCENES)]
    texts = list(model.embed_each([caption for _, caption in drawn]))
    differences = []
    for i, (frames, _) in enumerate(drawn):
        latents = model.encode(frames.transpose(0, 1)[None])
        context, target = latents[:, :, :CONTEXT], latents[:, :, CONTEXT:]
        noise = draw_noise(stream(0, str(i), "caption check"), target)
        losses = []
        for row in (i, (i + 1) % SCENES):
            text, total = texts[row], 0.0
            for value in SIGMAS:
                sigma = torch.tensor([value])
                velocity = model.velocity(add_noise(target, noise, sigma), sigma, context, text)
                total += (velocity - velocity_target(target, noise)).square().mean().item()
            losses.append(total / len(SIGMAS))
        differences.append(losses[0] - losses[1])
    return differences
