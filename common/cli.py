"""The command line that all method scripts share, and loading the model it names."""

import argparse
import math
import sys
from pathlib import Path

import torch

import backbones
from common.clip import Window
from common.errors import StopRun, UsageError

ROOT = Path(__file__).resolve().parents[1]


class Parser(argparse.ArgumentParser):
    def error(self, message):  # one line; argparse would print every flag before it
        self.exit(2, f"{self.prog}: error: {message}\n")


class Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the script's equation as it is written, and names every default that says something."""

    def _get_help_string(self, action):
        if action.default is None or isinstance(action.default, bool):
            return action.help
        return super()._get_help_string(action)


def at_least(low):
    def whole(text):
        value = int(text)
        if value < low:
            raise argparse.ArgumentTypeError(f"must be at least {low}, got {value}")
        return value

    whole.__name__ = "whole number"  # argparse names the type in its message
    return whole


def finite(text):
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a finite number, got {text}")
    return value


def positive(text):
    if not finite(text) > 0:
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text}")
    return float(text)


def not_negative(text):
    if not finite(text) >= 0:
        raise argparse.ArgumentTypeError(f"must not be negative, got {text}")
    return float(text)


def frame_size(text):
    """'832x480' (width x height) -> (480, 832)."""
    try:
        width, height = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be WIDTHxHEIGHT such as 832x480, got {text}"
        ) from None
    return height, width


def blocks(text):
    """How many blocks: None stands for all."""
    if text in ("all", "none"):
        return None if text == "all" else 0
    return at_least(0)(text)


def parse_args(description, method, argv=None):
    """The shared flags plus those of `method`. Checks what can be checked without a model or a
    file."""
    parser = Parser(description=description, formatter_class=Help, allow_abbrev=False)
    add_data(parser.add_argument_group("data and model"))
    add_window(parser.add_argument_group("frame window"))
    add_adaptation(parser.add_argument_group("adaptation"))
    method.add_arguments(parser.add_argument_group(f"{method.__name__} (this script)"))
    add_sampling(parser.add_argument_group("sampling"))
    add_run(parser.add_argument_group("run"))
    args = parser.parse_args(argv)
    args.method = method.__name__
    args.out = args.out or Path("results") / Path(sys.argv[0]).stem
    if args.batch_end is not None and args.batch_end < args.batch_start:
        parser.error(f"--batch-end {args.batch_end} lies before --batch-start {args.batch_start}")
    try:
        Window.of(args)
    except UsageError as error:
        parser.error(str(error))
    return args


def add_data(group):
    group.add_argument(
        "--videos", type=Path, default=ROOT / "nano" / "demo" / "manifest.csv", metavar="PATH",
        help="CSV with filename,caption; or a folder (not recursive) or a file, with --prompt",
    )  # fmt: skip
    group.add_argument("--prompt", metavar="TEXT", help="caption of a file or of a folder's files")
    group.add_argument(
        "--checkpoint", type=Path, default=ROOT / "nano" / "checkpoint", metavar="FOLDER",
        help="model folder in the official layout: dit/ vae/ text_encoder/ tokenizer/ scheduler/",
    )  # fmt: skip
    group.add_argument(
        "--size", type=frame_size, metavar="WxH",
        help="scale and centre-crop frames to this size; the checkpoint's own where not given",
    )  # fmt: skip


def add_window(group):
    group.add_argument(
        "--anchor", type=at_least(1), default=32, help="index of the first generated frame"
    )
    group.add_argument(
        "--cond-frames", type=at_least(1), default=13,
        help="frames before the anchor that generation continues, 4k + 1",
    )  # fmt: skip
    group.add_argument(
        "--tta-frames",
        type=at_least(5),
        default=29,
        help="frames before the anchor that adaptation sees, 4k + 1",
    )
    group.add_argument(
        "--context-latents", type=at_least(1), default=4,
        help="leading latents of those that stay clean; the rest is predicted",
    )  # fmt: skip
    group.add_argument(
        "--gen-frames", type=at_least(1), default=14, help="frames to generate and score"
    )


def add_adaptation(group):
    group.add_argument(
        "--steps", type=at_least(0), default=5, help="updates per video; 0 is the baseline"
    )
    group.add_argument("--lr", type=positive, default=5e-3, help="learning rate")
    group.add_argument(
        "--seed", type=int, default=42, help="of every random stream, with the video's id"
    )
    group.add_argument(
        "--checkpointing", type=blocks, default="all", metavar="all|none|N",
        help="blocks recomputed in backward: less memory, more time, same numbers",
    )  # fmt: skip
    group.add_argument(
        "--no-preflight", dest="preflight", action="store_false",
        help="adapt even where the model does not beat predicting zero",
    )  # fmt: skip


def add_sampling(group):
    group.add_argument("--sampling-steps", type=at_least(1), default=50, help="of the schedule")
    group.add_argument(
        "--guidance-scale",
        type=finite,
        help="1 or less: none; the checkpoint's own where not given",
    )
    group.add_argument("--negative-prompt", default="", metavar="TEXT", help="for the guidance")
    group.add_argument(
        "--enhance-hf", action=argparse.BooleanOptionalAction, default=True,
        help="end the schedule with ten even steps from sigma 0.5 (done by default)",
    )  # fmt: skip


def add_run(group):
    group.add_argument(
        "--out", type=Path, metavar="FOLDER", help="results; by default results/<script>"
    )
    group.add_argument(
        "--batch-start", type=at_least(0), default=0, metavar="I", help="first video of the list"
    )
    group.add_argument(
        "--batch-end", type=at_least(0), metavar="J", help="end before this video of the list"
    )
    group.add_argument(
        "--limit", type=at_least(1), metavar="N", help="at most N videos of the range"
    )
    group.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one"
    )
    group.add_argument(
        "--attention",
        choices=("sdpa", "flash"),
        default="sdpa",
        help="flash needs the flash-attn package",
    )
    group.add_argument("--dry-run", action="store_true", help="print what would run, and end")


def load_model(args):
    """The backbone of args.checkpoint on args.device; its `frame_size` is args.size or its own."""
    device = pick_device(args.device)
    if args.attention == "flash" and device.type != "cuda":
        raise UsageError(f"--attention flash: works on a GPU only, not on {device}; use sdpa")
    try:
        model = backbones.load(args.checkpoint, device)
    except backbones.CheckpointError as error:
        raise UsageError(f"--checkpoint: {error}") from error
    if args.attention == "flash":
        use_flash_attention(model)
    model.recompute(args.checkpointing)
    size = args.size or (model.native["height"], model.native["width"])
    if any(side % model.size_multiple or side <= 0 for side in size):
        raise UsageError(
            f"--size {size[1]}x{size[0]}: this checkpoint needs multiples of {model.size_multiple}"
        )
    model.frame_size = size
    return model


def use_flash_attention(model):
    try:
        model.dit.use_flash_attention()
    except ImportError as error:
        raise UsageError(f"--attention flash: {error}; install flash-attn or use sdpa") from error


def pick_device(name):
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device {name}: not usable here ({reason}); try cpu") from error
    return device


def run_script(main):
    """Runs a script's main and ends the program with its exit code; user errors become one line."""
    try:
        code = main()
    except UsageError as error:
        code = f"{Path(sys.argv[0]).name}: error: {error}", 2
    except StopRun as error:
        code = f"{Path(sys.argv[0]).name}: stopped: {error}", 1
    if isinstance(code, tuple):
        print(code[0], file=sys.stderr)
        code = code[1]
    sys.exit(code)
