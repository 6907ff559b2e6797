"""How well a checkpoint continues clips: what its training is judged by.

    python -m benchmarks.continuation nano/checkpoint --videos ../shared/clips/metadata.csv

Of the project's own scenes that no training shows, and of the moving ones of a manifest: the
flow-matching loss on the 16 frames that follow 13 given ones, at five sigmas and against that of
predicting zero; what the right caption takes from it, against that of another source, where only
the first frame is given; PSNR of the continuation in each of --sampling-steps, beside repeating
the last frame; of --samples also the energy score, the least of which is the number of steps to
sample with: PSNR alone prefers few, which blur. Intervals are 95 %, over sources (a scene is its
own).
"""

import runs  # first: it says how torch's threads wait

# isort: split
import json
from pathlib import Path

import torch
from tqdm import tqdm

import backbones
from common.errors import UsageError, VideoError
from common.metrics import mean, psnr_db
from common.values import at_least
from common.video import read_frames
from nano import scenes
from report.statistics import clustered_interval
from runs.lists import list_videos
from runs.parser import Parser
from runs.samples import scores_together

SIGMAS = (0.1, 0.3, 0.5, 0.7, 0.9)
STRONG = (0.5, 0.75, 0.95)  # where a caption tells most
BEFORE, FRAMES, LATENTS = 13, 29, 4  # frames given and in all, latents given
STILL_DB = 30.0  # PSNR of repeating the last frame, above which a clip does not move


def arguments():
    parser = Parser(__doc__, "%(prog)s CHECKPOINT [flags]")
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    add = parser.add_argument_group("flags").add_argument
    add("--scenes", type=at_least(0), default=200, metavar="N", help="of the project's own")
    add("--videos", type=Path, metavar="PATH", help="real clips: a manifest or a folder")
    add(
        "--sampling-steps",
        type=at_least(1),
        nargs="+",
        default=[1, 50],
        metavar="N",
        help="one or several numbers of them",
    )
    add("--samples", type=at_least(1), default=1, metavar="N", help="in each number of steps")
    add("--out", type=Path, metavar="FILE", help="a JSON of every clip's numbers")
    return parser.parse_args()


def own_scenes(count):
    """(source, frames, caption) of scenes over photographs that training never shows, without those
    that stand still."""
    for seed in range(scenes.UNSEEN, scenes.UNSEEN + count):
        frames, caption = scenes.clip(seed, FRAMES, photos=scenes.HELD_OUT)
        if repeated(frames) is not None:
            yield str(seed), frames, caption


def moving(videos, size):
    for video in videos:
        try:
            frames = read_frames(video.path, 0, FRAMES, size)[0]
        except VideoError as error:
            print(f"left out: {error}")
            continue
        if (repeated(frames) or STILL_DB) < STILL_DB:
            yield video.source, frames, video.caption


def repeated(frames):
    """PSNR of repeating the last given frame."""
    return psnr_db(frames[BEFORE - 1 : BEFORE].expand(FRAMES - BEFORE, -1, -1, -1), frames[BEFORE:])


@torch.no_grad()
def measure(model, number, frames, texts, args):
    """{name: value} of one clip with what its caption, another and none become; the noise is that
    of its number."""
    latents = model.encode(frames.transpose(0, 1)[None])
    context, target = latents[:, :, :LATENTS], latents[:, :, LATENTS:]
    text, other, negative = texts
    generator = torch.Generator().manual_seed(number)
    noise = torch.randn(target.shape, generator=generator)
    found = {f"loss_{s}": loss(model, s, context, target, noise, text) for s in SIGMAS}
    first, rest = latents[:, :, :1], latents[:, :, 1:]
    noises = torch.randn(rest.shape, generator=generator)
    right, wrong = (
        mean([loss(model, s, first, rest, noises, words) for s in STRONG])
        for words in (text, other)
    )
    found["told"] = right - wrong
    found["zero"] = (noise - target).square().mean().item()
    draws = [torch.randn(target.shape, generator=generator) for _ in range(args.samples - 1)]
    for count in args.sampling_steps:
        shown = [
            continued(model, context, text, negative, draw, count)[BEFORE:]
            for draw in (noise, *draws)
        ]
        found[f"psnr_{count}"] = mean([psnr_db(each, frames[BEFORE:]) for each in shown])
        together = scores_together(torch.stack(shown), frames[BEFORE:])
        found |= {f"{name}_{count}": value for name, value in together.items()}
    return found | {"psnr_repeated": repeated(frames)}


def continued(model, context, text, negative, noise, steps):
    """Frames (F, 3, H, W), those of the context before the continuation."""
    guided = {"guidance_scale": model.guidance_scale}
    new = model.generate(context, text, negative, noise, steps, **guided)
    return model.decode(torch.cat([context, new], dim=2))[0].transpose(0, 1)


def loss(model, sigma, context, target, noise, text):
    """Flow-matching loss of the target at that sigma."""
    noisy = (1 - sigma) * target + sigma * noise
    v = model.velocity(noisy, torch.tensor([sigma]), context, text)
    return (v - (noise - target)).square().mean().item()


def summary(rows, sources, args):
    """Lines of means over clips, and of gains over repeating the last frame by source."""
    losses = [mean([row[f"loss_{sigma}"] for row in rows]) for sigma in SIGMAS]
    yield "  loss at sigma " + ", ".join(
        f"{s}: {x:.4f}" for s, x in zip(SIGMAS, losses, strict=True)
    )
    yield f"  loss / loss of predicting zero: {mean(losses) / mean([r['zero'] for r in rows]):.4f}"
    told = shown([row["told"] for row in rows], sources, 4)
    yield f"  loss with the right caption less with a wrong one: {told}"
    yield f"  repeating the last frame: {mean([row['psnr_repeated'] for row in rows]):.2f} dB"
    for count in args.sampling_steps:
        values = [row[f"psnr_{count}"] for row in rows]
        gains = [x - row["psnr_repeated"] for x, row in zip(values, rows, strict=True)]
        line = f"  in {count} steps: {mean(values):.2f} dB, {shown(gains, sources, 2)}"
        if args.samples > 1:
            line += f"; energy score {mean([row[f'energy_score_{count}'] for row in rows]):.5f}"
        yield line


def shown(values, sources, digits):
    value, low, high = clustered_interval(values, sources)
    interval = "" if low is None else f" ({low:+.{digits}f} to {high:+.{digits}f})"
    return f"{value:+.{digits}f}{interval}"


def main():
    args = arguments()
    try:
        model = backbones.load(args.checkpoint)
    except backbones.CheckpointError as error:
        raise UsageError(f"CHECKPOINT: {error}") from error
    sets = {"own scenes": own_scenes(args.scenes)} if args.scenes else {}
    if args.videos:
        videos = list_videos(args.videos, allow_empty=True)[0]
        sets["moving clips"] = moving(videos, model.geometry.size)
    found = {}
    for name, clips in sets.items():
        clips = list(clips)
        if not clips:
            raise UsageError(f"{name}: none that moves; give more --scenes, or other --videos")
        captions = list({"", *(caption for _, _, caption in clips)})
        texts = dict(zip(captions, model.embed_each(captions), strict=True))
        rows, sources, said = [], [], {}
        for number, (source, frames, caption) in enumerate(tqdm(clips, name, disable=None)):
            others = [words for other, words in said.items() if other != source]
            words = [texts[each] for each in (caption, others[-1] if others else "", "")]
            rows.append(measure(model, number, frames, words, args))
            sources.append(source)
            said[source] = caption
        print(f"{name} ({len(rows)}, of {len(set(sources))} sources)", flush=True)
        print("\n".join(summary(rows, sources, args)), flush=True)
        found[name] = rows
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    runs.run_script(main)
