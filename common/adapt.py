"""The adaptation loop that every method runs in, and the continuation that follows it."""

import math
import time

import torch

from common.loss import draw_noise, flow_matching_loss, stream

MAX_GRAD_NORM = 1.0


def adapt(model, method, clip, args, show=lambda line: None):
    """Runs args.steps updates of the method's parameters on the clip's target latents.

    Returns the record of the video's JSON: loss and sigma of every step (before its update),
    whether the adaptation diverged (then the initial parameters are restored), parameter count,
    norms, seconds.
    """
    started = time.perf_counter()
    parameters = list(method.parameters())
    initial = [p.detach().clone() for p in parameters]
    losses, sigmas = [], []
    if args.steps:
        optimizer = method.optimizer(args)
        for sigma, noise in draws(clip, args.steps):
            loss = take_step(model, method, optimizer, clip, sigma, noise)
            losses.append(loss)
            sigmas.append(sigma.item())
            show(f"step {len(losses)}/{args.steps} loss {loss:.4f}")
            if not math.isfinite(loss):
                break
    finite = all(map(math.isfinite, losses)) and all(p.isfinite().all() for p in parameters)
    if not finite:
        restore(parameters, initial)
    return {
        "losses": [loss if math.isfinite(loss) else None for loss in losses],
        "sigmas": sigmas,
        "diverged": not finite,
        "kept": "adapted" if args.steps and finite else "baseline",
        "adapted_parameters": sum(p.numel() for p in parameters),
        "norms": [p.detach().norm().item() for p in parameters],
        "adapt_seconds": time.perf_counter() - started,
    }


def draws(clip, steps):
    """sigma ~ U(0.001, 1) and noise of each step, the same for every method and number of steps."""
    sigmas = stream(clip.seed, clip.video.id, "adaptation sigma")
    noises = stream(clip.seed, clip.video.id, "adaptation noise")
    for _ in range(steps):
        sigma = 0.001 + 0.999 * torch.rand(1, generator=sigmas)
        yield sigma.to(clip.target.device), draw_noise(noises, clip.target)


def take_step(model, method, optimizer, clip, sigma, noise):
    """One update; returns the loss before it. A loss that is not finite changes nothing."""
    optimizer.zero_grad(set_to_none=True)
    loss = flow_matching_loss(model, clip, sigma, noise)
    if loss.isfinite():
        loss.backward()
        for group in clipped_together(method):
            torch.nn.utils.clip_grad_norm_(group, MAX_GRAD_NORM)
        optimizer.step()
    return loss.item()


def clipped_together(method):
    """Lists of parameters whose joint gradient norm is limited: all at once, unless the method says
    more."""
    return getattr(method, "clipped_together", lambda: [method.parameters()])()


@torch.no_grad()
def restore(parameters, values):
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def generate(model, clip, args, record):
    """The clip's continuation: frames (gen_frames, 3, H, W) in 0..1 on the CPU. Adds its seconds to
    record.

    The initial noise is the video's own stream, so two methods continue from the same one.
    """
    started = time.perf_counter()
    shape = list(clip.cond_latents.shape)
    shape[2] = clip.window.new_latents
    noise = torch.randn(shape, generator=stream(clip.seed, clip.video.id, "initial noise"))
    latents = model.generate(
        clip.cond_latents,
        clip.text,
        clip.negative_text,
        noise,
        steps=args.sampling_steps,
        guidance_scale=guidance_scale(model, args),
        enhance_hf=args.enhance_hf,
    )
    synchronize(model.device)
    generated = time.perf_counter()
    frames = model.decode(torch.cat([clip.cond_latents, latents], dim=2))[0].transpose(0, 1)
    frames = frames[clip.window.cond_frames :][: clip.window.gen_frames].cpu()
    record["generate_seconds"] = generated - started
    record["decode_seconds"] = time.perf_counter() - generated
    return frames


def guidance_scale(model, args):
    return model.native["guidance_scale"] if args.guidance_scale is None else args.guidance_scale


def synchronize(device):
    """Waits for the GPU, so that what is timed next does not include what came before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
