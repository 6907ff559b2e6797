"""Restores a low-resolution video with a frozen model and an adapter that litevsr.train made.

Without --checkpoint and --adapter these are nano's. Long clips go through in windows, large ones
in tiles; frame rate and sound are kept. With --adapt N a vector of adasteer.py is learned first,
in N steps on the clip itself and a copy of it that is damaged again; with --truth the result is
scored against the sharp video, beside bicubic and, with --adapt, the adapter as it was.

    python -m litevsr.restore low.mp4 --scale 4 --steps 4
    python -m litevsr.restore low.mp4 --out high.mp4 --adapt 20 --truth sharp.mp4
"""

import runs  # first: it says how torch's threads wait

# isort: split
import sys
from contextlib import nullcontext
from pathlib import Path

import backbones
from common.errors import UsageError, VideoError
from common.loading import NANO, pick_device
from common.values import at_least
from litevsr.adapting import adapted
from litevsr.enlarging import Enlarger
from litevsr.files import WEIGHTS, load_adapter
from litevsr.restorer import Restorer
from litevsr.scores import Comparison
from litevsr.video import frames_of, write
from runs.identity import fingerprint
from runs.parser import Parser

EMBEDDED = NANO.parent / "litevsr"  # the adapter of nano


def arguments():
    parser = Parser(__doc__, "%(prog)s VIDEO [flags]")
    parser.add_argument("video", type=Path, metavar="VIDEO")
    add = parser.add_argument_group("flags").add_argument
    add("--out", type=Path, metavar="FILE", help="an mp4; by default VIDEO_x4.mp4 beside VIDEO")
    add("--checkpoint", type=Path, default=NANO, metavar="FOLDER", help="the frozen model")
    add("--adapter", type=Path, metavar="FOLDER", help="litevsr.train's --out")
    add("--scale", type=at_least(2, 16), help="must be the adapter's, and is where not given")
    add("--steps", type=at_least(1, 1000), default=1, help="of sampling")
    add("--overlap", type=at_least(0), default=4, help="frames that windows share")
    add("--tile-overlap", type=at_least(0), metavar="N", help="pixels; by default a quarter tile")
    add(
        "--no-colour-fix", dest="colour_fix", action="store_false",
        help="keep the model's own colours in place of the video's",
    )  # fmt: skip
    add(
        "--adapt", type=at_least(0), default=0, metavar="N",
        help="steps of adasteer.py, at its default rate, on the video itself",
    )  # fmt: skip
    add("--truth", type=Path, metavar="VIDEO", help="the sharp video, to score against")
    add(
        "--quality", nargs="+", default=(), metavar="NAME",
        help="no-reference metrics of pyiqa (niqe, musiq, ...), which fetches their weights",
    )  # fmt: skip
    add("--seed", type=at_least(0), default=42, help="of the noise and of --adapt's damage")
    add("--device", default="auto", help="cpu, cuda, ...; auto takes a GPU if there is one")
    args = parser.parse_args()
    if args.out and args.out.suffix.lower() != ".mp4":
        raise UsageError(f"--out {args.out}: must be an .mp4")
    for other in filter(None, (args.video, args.truth)):
        if args.out and args.out.resolve() == other.resolve():
            raise UsageError(f"--out {args.out}: would be written over {other}")
    if args.adapter is None and args.checkpoint.resolve() != NANO.resolve():
        raise UsageError(f"--checkpoint {args.checkpoint}: needs an --adapter that was made for it")
    args.adapter = args.adapter or EMBEDDED
    return args


def load(args):
    """The model with its adapter, and the adapter's config. Raises UsageError."""
    try:
        model = backbones.load(args.checkpoint, pick_device(args.device))
    except backbones.CheckpointError as error:
        raise UsageError(f"--checkpoint: {error}") from error
    adapter, config = load_adapter(args.adapter, model)
    if config.get(WEIGHTS) not in (None, fingerprint(args.checkpoint)):
        print(
            f"--adapter {args.adapter}: was trained on other weights than those of --checkpoint "
            f"{args.checkpoint}, and may do worse than none",
            file=sys.stderr,
        )
    if args.scale not in (None, config["scale"]):
        raise UsageError(f"--scale {args.scale}: this adapter enlarges {config['scale']} times")
    if args.overlap >= config["frames"]:
        raise UsageError(f"--overlap {args.overlap}: windows have {config['frames']} frames")
    height, width = config["size"]
    if (args.tile_overlap or 0) >= min(height, width):
        raise UsageError(f"--tile-overlap {args.tile_overlap}: tiles are {width}x{height}")
    return Restorer(model, adapter), config


def unused(video, scale):
    """VIDEO_x4.mp4 beside it. Raises UsageError where that is there."""
    path = video.with_name(f"{video.stem}_x{scale}.mp4")
    if path.exists():
        raise UsageError(f"{path}: is there already; say with --out what to write")
    return path


def main():
    args = arguments()
    try:
        first, fps = frames_of(args.video)
        restorer, config = load(args)
        enlarge = Enlarger(restorer, config, args)
        args.out = args.out or unused(args.video, enlarge.scale)
        comparison = Comparison(args, enlarge)
        print(f"{args.video}: {fps:g} frames a second, enlarged {enlarge.scale} times")
        with adapted(enlarge, first, args) if args.adapt else nullcontext():
            restored = enlarge.all(frames_of(args.video)[0])
            name = "adapted" if args.adapt else "restored"
            write(args.out, comparison.watched(name, restored), fps, sound=args.video)
        print(f"written: {args.out}")
        for text in comparison.lines():
            print(text)
    except VideoError as error:
        raise UsageError(str(error)) from error
    return 0


if __name__ == "__main__":
    runs.run_script(main)
