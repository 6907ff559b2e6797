"""The command line that all method scripts share."""

import argparse
import sys
from pathlib import Path

from common import clip, future, generation, stopping
from common.errors import UsageError
from common.loading import geometry_of
from common.values import (
    at_least,
    count_of_blocks,
    folder,
    frame_size,
    not_negative,
    positive,
    shard,
)
from devices.placement import PLANS
from runs.identity import ROOT, script_sha256


class Parser(argparse.ArgumentParser):
    def error(self, message):  # one line; argparse would print every flag before it
        self.exit(2, f"{self.prog}: error: {message}\n")


class Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the script's equation as it is written, and names every default that says something."""

    def _get_help_string(self, action):
        if action.default is None or isinstance(action.default, bool):
            return action.help
        return super()._get_help_string(action)


def parse_args(description, method, argv=None):
    """The shared flags plus those of `method`, filled in from the checkpoint's configuration.
    Checks what can be checked without weights or videos."""
    parser = Parser(description=description, formatter_class=Help, allow_abbrev=False)
    add_data(parser.add_argument_group("data and model"))
    clip.add_arguments(parser.add_argument_group("frame window"))
    add_adaptation(parser.add_argument_group("adaptation"))
    future.add_arguments(parser.add_argument_group("loss on the true future"))
    stopping.add_arguments(parser.add_argument_group("early stopping"))
    method.add_arguments(parser.add_argument_group(f"{method.__name__} (this script)"))
    generation.add_arguments(parser.add_argument_group("sampling"))
    add_run(parser.add_argument_group("run"))
    add_speed(parser.add_argument_group("speed and memory"))
    args = parser.parse_args(argv)
    file = getattr(sys.modules[method.__module__], "__file__", sys.argv[0])  # none in a notebook
    args.method, args.script = method.__name__, Path(file).stem
    args.script_sha256 = script_sha256(method, file)
    args.out = args.out or Path("results") / Path(sys.argv[0]).stem
    if args.batch_end is not None and args.batch_end < args.batch_start:
        parser.error(f"--batch-end {args.batch_end} lies before --batch-start {args.batch_start}")
    if args.antithetic and args.draws % 2:
        parser.error(f"--antithetic needs an even number of --draws, got {args.draws}")
    if 0 < args.steps < args.stop_every:
        parser.error(f"--stop-every {args.stop_every}: no check falls within --steps {args.steps}")
    try:
        geometry = geometry_of(args)
        clip.fill_window(args, geometry)
        clip.Window.of(args, geometry)
        args.sampling = generation.sampling_options(args.sampling, geometry.sampling)
        if hasattr(method, "check"):
            method.check(args)
    except UsageError as error:
        parser.error(str(error))
    return args


def add_data(group):
    group.add_argument(
        "--videos", type=Path, default=ROOT / "nano" / "demo" / "manifest.csv", metavar="PATH",
        help="CSV with filename,caption; or a folder (not recursive) or a file, with --prompt",
    )  # fmt: skip
    group.add_argument("--prompt", metavar="TEXT", help="caption of a file or of a folder's files")
    group.add_argument("--caption", metavar="TEXT", help="for every video, whatever the list says")
    group.add_argument(
        "--allow-poor-captions", action="store_true",
        help="run a list whose captions are often empty, the same or say nothing",
    )  # fmt: skip
    group.add_argument(
        "--checkpoint", type=Path, default=ROOT / "nano" / "checkpoint", metavar="FOLDER",
        help="model folder as its authors publish it; its files say which model it is",
    )  # fmt: skip
    group.add_argument(
        "--size", type=frame_size, metavar="WxH",
        help="scale and centre-crop frames to this size; the checkpoint's own where not given",
    )  # fmt: skip


def add_adaptation(group):
    group.add_argument(
        "--steps", type=at_least(0, 1_000_000), default=5,
        help="updates per video; 0 is the baseline",
    )  # fmt: skip
    group.add_argument("--lr", type=positive, default=5e-3, help="learning rate")
    group.add_argument(
        "--seed", type=int, default=42, help="of every random stream, with the video's id"
    )
    group.add_argument(
        "--draws", type=at_least(1, 1024), default=1, metavar="K",
        help="draws of (sigma, noise) per step, in one batch: less noise in the update, K times "
        "the activations; from 2 on sigmas are stratified over all draws of the run",
    )  # fmt: skip
    group.add_argument(
        "--antithetic", action="store_true",
        help="draws in pairs of one sigma, the second with the noise negated",
    )  # fmt: skip
    group.add_argument(
        "--context", choices=("fixed", "varying"), default="fixed",
        help="varying: each step keeps another number of leading latents clean",
    )  # fmt: skip
    group.add_argument(
        "--temporal-loss", type=not_negative, default=0.0, metavar="W",
        help="adds W times the error of the differences between successive predicted latents",
    )  # fmt: skip
    group.add_argument(
        "--no-preflight", dest="preflight", action="store_false",
        help="adapt even where the model does not beat predicting zero",
    )  # fmt: skip
    group.add_argument(
        "--forgetting", type=Path, metavar="MANIFEST",
        help="measure the loss on another clip of this list before and after adapting",
    )  # fmt: skip


def add_run(group):
    group.add_argument(
        "--out", type=folder, metavar="FOLDER", help="results; by default results/<script>"
    )
    group.add_argument(
        "--batch-start", type=at_least(0), default=0, metavar="I", help="first video of the list"
    )
    group.add_argument(
        "--batch-end", type=at_least(0), metavar="J", help="end before this video of the list"
    )
    group.add_argument(
        "--shard", type=shard, default="0/1", metavar="I/N", help="the I-th of N parts of these"
    )
    group.add_argument(
        "--limit", type=at_least(1), metavar="N", help="at most N videos of the range"
    )
    group.add_argument(
        "--lpips-weights", type=Path, metavar="FILE",
        help="torchvision's alexnet-owt-7be5be79.pth; that in torch hub's cache where not given",
    )  # fmt: skip
    group.add_argument(
        "--save-frames", action="store_true",
        help="keep generated and true frames as <id>.npz, 8 bits, for report.fvd",
    )  # fmt: skip
    group.add_argument(
        "--save-adapter", action="store_true",
        help="keep each video's adapted parameters (full_tta.py: all weights, each time)",
    )  # fmt: skip
    group.add_argument("--dry-run", action="store_true", help="print what would run, and end")


def add_speed(group):
    group.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one"
    )
    group.add_argument(
        "--checkpointing", type=count_of_blocks, default="auto", metavar="auto|all|none|N",
        help="blocks recomputed in backward: less memory, more time, same numbers; auto: as few as "
        "the free memory needs, by a block measured in the first step",
    )  # fmt: skip
    group.add_argument(
        "--offload", choices=("auto", *PLANS), default="auto",
        help="what waits in host memory: the vae while it has nothing to do, or also the blocks of "
        "the DiT, streamed while the one before computes; auto: by free memory; same numbers",
    )  # fmt: skip
    group.add_argument(
        "--weights", choices=("bf16", "fp8"), default="bf16",
        help="fp8 keeps the DiT's linear layers in half the memory; other numbers. On a CPU bf16 "
        "means float32",
    )  # fmt: skip
    group.add_argument(
        "--compile", action="store_true",
        help="torch.compile of the repeated block, when it is first run; last digits differ; not "
        "with fp8 or streamed blocks",
    )  # fmt: skip
    group.add_argument(
        "--cache", type=folder, metavar="FOLDER",
        help="prompts embedded once and for all; ~/.cache/adasteer where not given",
    )  # fmt: skip
    group.add_argument(
        "--profile", action="store_true",
        help="trace the first video with torch's profiler: trace.json.gz in --out",
    )  # fmt: skip
