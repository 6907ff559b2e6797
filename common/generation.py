"""The continuation of a clip."""

import argparse

import torch

from common import best_of
from common.errors import MisfitError, UsageError
from common.loss import random_stream
from common.stages import stage
from common.values import at_least, finite
from devices import parallel
from devices.placement import within_memory

STEPS, DISTILLED_STEPS = 50, 16
DISTILLED_MOST = 50  # steps of the schedule that the weights were distilled on


def add_arguments(group):
    group.add_argument(
        "--sampling-steps", type=at_least(1, 10_000), metavar="N", changes="generation",
        effort=True,
        help=f"of the schedule (default: {STEPS}, of distilled weights {DISTILLED_STEPS})",
    )  # fmt: skip
    group.add_argument(
        "--samples", type=at_least(1, 1024), default=1, metavar="N", changes="generation",
        help="continuations of each clip; from 2 on their mean and spread are scored too",
    )  # fmt: skip
    group.add_argument(
        "--no-generate", dest="generate", action="store_false", changes="generation",
        help="no continuation: the loss on the true future alone, in a fraction of the time",
    )  # fmt: skip
    group.add_argument(
        "--guidance-scale", type=finite, changes="generation",
        help="1 or less: none; by default the checkpoint's own, of distilled weights none",
    )  # fmt: skip
    group.add_argument(
        "--negative-prompt", default="", metavar="TEXT", changes="generation",
        help="for the guidance",
    )  # fmt: skip
    group.add_argument(
        "--sampling", nargs="+", action="extend", metavar="KEY=VALUE", changes="generation",
        help="options of the continuation that this model has; no loss depends on them but by "
        "--sigmas sampler. --dry-run prints them, with their defaults",
    )  # fmt: skip


def fill(args, geometry):
    """What is asked of sampling, with the defaults of the model, or those of its distilled weights
    in place of what is not given. Raises UsageError."""
    best_of.check(args)
    if args.samples > 1 and not args.generate:
        raise UsageError(f"--samples {args.samples}: nothing is sampled with --no-generate")
    given = args.sampling or ()
    args.sampling = sampling_options(given, geometry.sampling, geometry.sampling_ranges)
    distilled = args.sampling.get("distilled", False)
    args.sampling_steps = args.sampling_steps or (DISTILLED_STEPS if distilled else STEPS)
    if distilled:
        fill_distilled(args, given)
    scale = args.guidance_scale
    if args.parallel == "guidance" and scale is not None and scale <= 1:
        raise UsageError("--parallel guidance: without guidance there is one branch; take context")


def fill_distilled(args, given):
    """As fill; given are the KEY=VALUEs."""
    if not args.lora:
        raise UsageError(
            "--sampling distilled=true: needs the distilled weights, --lora "
            "FOLDER/lora/cfg_step_lora.safetensors of LongCat's release"
        )
    if args.sampling["enhance_hf"] and any(text.startswith("enhance_hf=") for text in given):
        raise UsageError(
            "--sampling enhance_hf=true: the distilled schedule has no such steps; leave it out"
        )
    if args.sampling_steps > DISTILLED_MOST:
        raise UsageError(
            f"--sampling-steps {args.sampling_steps}: the distilled schedule has at most "
            f"{DISTILLED_MOST}"
        )
    args.sampling["enhance_hf"] = False
    args.guidance_scale = 1.0 if args.guidance_scale is None else args.guidance_scale


def sampling_options(given, own, ranges):
    """The model's `own` options with their defaults, and what the KEY=VALUEs in `given` say in
    place of these, each within its range if it has one. Raises UsageError."""
    options = dict(own)
    for text in given or ():
        key, _, value = text.partition("=")
        if key not in own:
            known = " ".join(f"{k}={as_text(v)}" for k, v in own.items()) or "none"
            raise MisfitError(f"--sampling {text}: this model has no {key}; known are {known}")
        options[key] = as_typed(f"--sampling {text}", value, type(own[key]))
        low, high = ranges.get(key, (None, None))
        if low is not None and not low <= options[key] <= high:
            raise UsageError(f"--sampling {text}: must be from {low:g} to {high:g}")
    return options


def as_text(value):
    return str(value).lower() if isinstance(value, bool) else str(value)


def as_typed(flag, text, kind):
    """The text as a value of that kind. Raises UsageError."""
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        return finite(text) if kind is float else kind(text)
    except (KeyError, ValueError, argparse.ArgumentTypeError) as error:
        words = {bool: "true or false", int: "a whole number", float: "a finite number"}
        raise UsageError(f"{flag}: must be {words[kind]}") from error


def generate(model, clip, args, record):
    """args.samples continuations of the clip: frames (samples, gen_frames, 3, H, W) in 0..1 on the
    CPU; with --best-of the chosen one, None with --no-generate. Adds its seconds to record.

    The initial noise of each is the video's own stream, so two methods continue from the same ones,
    and the first does not depend on how many there are.
    """
    if not args.generate:
        return None
    count = args.best_of or args.samples
    names = ["initial noise", *(f"initial noise {i}" for i in range(1, count))]
    if args.best_of:
        found = [sampled(model, clip, args, record, name) for name in names]
        return decoded(model, clip, best_of.nearest_to_others(found, record), record)[None]
    found = (sampled(model, clip, args, record, name) for name in names)
    return torch.stack([decoded(model, clip, latents, record) for latents in found])


def sampled(model, clip, args, record, name):
    """Latents (1, C, T, h, w) that follow the conditioning ones, from the noise of that stream."""
    shape = list(clip.cond_latents.shape)
    shape[2] = clip.window.new_latents
    noise = torch.randn(shape, generator=random_stream(clip.seed, clip.video.id, name))
    with stage(record, "generate", model.device), parallel.sampling(args.parallel):
        return within_memory(
            model,
            lambda: model.generate(
                clip.cond_latents,
                clip.text,
                clip.negative_text,
                noise,
                steps=args.sampling_steps,
                guidance_scale=guidance_scale(model, args),
                **args.sampling,
            ),
        )


def decoded(model, clip, latents, record):
    """The frames (gen_frames, 3, H, W) of those latents on the CPU."""
    with stage(record, "decode", model.device):
        latents = torch.cat([clip.cond_latents, latents], dim=2)
        frames = within_memory(model, lambda: model.decode(latents))[0].transpose(0, 1)
        return frames[clip.window.cond_frames :][: clip.window.gen_frames].cpu()


def guidance_scale(model, args):
    return model.guidance_scale if args.guidance_scale is None else args.guidance_scale
