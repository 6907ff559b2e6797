"""Does LiteVSR's adapter restore clips that it never saw, and what does adapting to each add?

    python -m benchmarks.restoration_study --videos MANIFEST --adapter FOLDER --adapt 20

The first frames of each clip, cut to the adapter's size, are damaged by a draw of their own and
restored. PSNR, SSIM and LPIPS, and PSNR of luma, without a border as wide as the scale, of bicubic
enlargement, of the frozen model alone (which is not told of the clip), and of the adapter in one
and four steps; gains over bicubic with a 95 % interval over sources. Then the share of the
adapter's attention that falls on the low-resolution stream, by sigma.
"""

import runs  # first: it says how torch's threads wait

# isort: split
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import torch
from tqdm import tqdm

import backbones
from common.errors import UsageError, VideoError
from common.loading import NANO
from common.metrics import mean
from common.values import at_least
from common.video import read_frames
from litevsr.adapting import adapted
from litevsr.data import UNSEEN, enlarged
from litevsr.degradation import Degradation
from litevsr.enlarging import Enlarger
from litevsr.files import load_adapter
from litevsr.progress import attention
from litevsr.restorer import Restorer
from litevsr.scores import Scorer
from litevsr.trainer import CHECKED
from report.statistics import clustered_interval
from runs.lists import list_videos
from runs.parser import Parser

STEPS = (1, 4)
PLAIN, ADAPTED = "1 steps", "1 steps, adapted"
METRICS = {
    "psnr_db": "higher", "ssim": "higher", "lpips": "lower", "luma_psnr_db": "higher",
    "temporal_psnr_db": "higher", "warping_error": "lower",
}  # fmt: skip


def arguments():
    parser = Parser(__doc__, "%(prog)s --videos MANIFEST --adapter FOLDER [flags]")
    add = parser.add_argument_group("flags").add_argument
    add("--videos", type=Path, required=True, metavar="MANIFEST")
    add("--checkpoint", type=Path, default=NANO, metavar="FOLDER")
    add("--adapter", type=Path, required=True, metavar="FOLDER")
    add("--adapt", type=at_least(0), default=0, metavar="N", help="steps on each clip itself")
    add("--limit", type=at_least(1), help="clips")
    add("--out", type=Path, metavar="FILE", help="a JSON of every clip's scores")
    return parser.parse_args()


class Study:
    def __init__(self, args):
        self.args, model = args, backbones.load(args.checkpoint)
        self.model, (adapter, self.config) = model, load_adapter(args.adapter, model)
        self.restorer, self.scorer = Restorer(model, adapter), Scorer(self.config["scale"])

    def enlarger(self, steps):
        settings = {"steps": steps, "overlap": 0, "tile_overlap": 0, "colour_fix": True, "seed": 42}
        return Enlarger(self.restorer, self.config, SimpleNamespace(**settings))

    def clip(self, number, video):
        """{way: {metric: mean over frames}}, and the attention."""
        size, scale = tuple(self.config["size"]), self.config["scale"]
        sharp, fps = read_frames(video.path, 0, self.config["frames"], size)
        low = Degradation.draw(UNSEEN + CHECKED + number, scale)(sharp, fps)
        given = enlarged(low, size)
        made = {"bicubic": given, "frozen": self.frozen(given)}
        for steps in STEPS:
            made[f"{steps} steps"] = self.enlarger(steps).window(low)
        if self.args.adapt:
            enlarge = self.enlarger(STEPS[0])
            settings = SimpleNamespace(
                adapt=self.args.adapt, seed=42, checkpoint=self.args.checkpoint, video=video.path
            )
            with adapted(enlarge, iter(low), settings):
                made[ADAPTED] = enlarge.window(low)
        latents, damaged = (self.encode(x) for x in (sharp, given))
        return {k: self.scores(x, sharp) for k, x in made.items()}, attention(
            self.restorer, self.enlarger(1).text, latents, damaged
        )

    def encode(self, frames):
        return self.model.encode(frames.transpose(0, 1)[None])

    @torch.no_grad()
    def frozen(self, frames):
        low, text = self.encode(frames), self.enlarger(1).text
        noise = torch.randn(low.shape, generator=torch.Generator().manual_seed(42))
        v = self.model.velocity(noise, torch.ones(1), low[:, :, :0], text)
        return self.model.decode(noise - v)[0].transpose(0, 1)

    def scores(self, frames, sharp):
        found = {}
        for _ in self.scorer.watched(frames, iter(sharp), found):
            pass
        return {name: mean(found[name]) for name in METRICS}


def report(found, sources):
    """Lines: means, and gains over bicubic by source."""
    ways = [*found[0]]
    for way in ways:
        means = (
            f"{m} {mean([row[way][m] for row in found]):.4g}" for m in METRICS if usable(found, m)
        )
        yield f"{way:18} {', '.join(means)}"
    pairs = [(way, "bicubic") for way in ways[1:]]
    pairs += [(way, PLAIN) for way in ways if way == ADAPTED]
    for (way, other), metric in itertools.product(pairs, METRICS):
        if usable(found, metric):
            sign = -1 if METRICS[metric] == "lower" else 1
            gains = [sign * (row[way][metric] - row[other][metric]) for row in found]
            gain, low, high = clustered_interval(gains, sources)
            interval = "too few sources" if low is None else f"{low:+.3g} to {high:+.3g}"
            yield f"{way} against {other}, {metric}: {gain:+.3g} ({interval})"


def usable(found, metric):
    return all(row["bicubic"][metric] is not None for row in found)


def main():
    args = arguments()
    videos = list_videos(args.videos, allow_empty=True)[0][: args.limit]
    study, found, masses = Study(args), [], []
    for number, video in enumerate(tqdm(videos, "clips", disable=None)):
        try:
            scores, mass = study.clip(number, video)
        except VideoError as error:
            raise UsageError(str(error)) from error
        found.append(scores)
        masses.append(mass)
    print("\n".join(report(found, [video.source for video in videos])))
    by_sigma = {sigma: mean([mass[sigma] for mass in masses]) for sigma in masses[0]}
    print("attention on the low-resolution stream, by sigma:")
    print("  " + "  ".join(f"{sigma:g}: {mass:.3f}" for sigma, mass in by_sigma.items()))
    if args.out:
        rows = {video.id: scores for video, scores in zip(videos, found, strict=True)}
        args.out.write_text(json.dumps({"clips": rows, "attention": by_sigma}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    runs.run_script(main)
