"""Trains LiteVSR's adapter on a frozen video model.

Without --checkpoint and --data it is nano's, on the scenes that nano was trained on:

    python -m litevsr.train --out results/litevsr --cache 3000 --batch 8 --lr 1e-3
    torchrun --nproc-per-node 4 -m litevsr.train --checkpoint Wan2.1-T2V-1.3B --data REDS --out out

--work keeps the state, the curve and a sheet of samples; interrupted or killed, the same command
goes on and ends with the same weights. The adapter is written to --out with every state.
"""

import runs  # first: it says how torch's threads wait

# isort: split
from pathlib import Path

import backbones
from common.errors import UsageError
from common.loading import NANO
from common.values import at_least, frame_size, positive
from litevsr.trainer import Trainer
from runs.parser import Parser


def arguments():
    parser = Parser(__doc__, "%(prog)s --out FOLDER [flags]")
    add = parser.add_argument_group("flags").add_argument
    add("--out", type=Path, required=True, metavar="FOLDER", help="of the adapter")
    add("--work", type=Path, metavar="FOLDER", help="state, curve, samples; by default OUT/work")
    add("--checkpoint", type=Path, default=NANO, metavar="FOLDER", help="the frozen model")
    add(
        "--data", type=Path, metavar="PATH",
        help="REDS' folder, a CSV manifest, a folder of videos or one; by default nano's scenes. A "
        "tenth, at most 8 clips, is held out and checked on",
    )  # fmt: skip
    add(
        "--start", type=Path, metavar="FOLDER",
        help="an adapter to train further, of this model or of another of its measures",
    )  # fmt: skip
    add("--size", type=frame_size, metavar="WxH", help="of the sharp crops; by default the model's")
    add("--frames", type=at_least(1), default=17, help="of a crop; as many as the model encodes")
    add("--scale", type=at_least(2, 16), default=4, help="how many times smaller the damaged are")
    add("--bicubic", action="store_true", help="make them smaller and damage them no further")
    add(
        "--cache", type=at_least(0), default=0, metavar="N",
        help="encode N pairs once and learn on these; 0: new ones at every iteration",
    )  # fmt: skip
    add("--iterations", type=at_least(1), default=6000, help="of all processes together")
    add("--batch", type=at_least(1), default=2, help="clips an iteration and process")
    add("--lr", type=positive, default=1e-4, help="reached after 200 iterations, then a cosine")
    add("--layers", type=at_least(1), help="of the adapter (default: 2)")
    add("--heads", type=at_least(1), help="of its attention; by default one for 128 channels")
    add("--every", type=at_least(1), metavar="N", help="inject after every Nth block (default: 1)")
    add(
        "--recompute", type=at_least(0), metavar="N",
        help="leading blocks recomputed in backward; by default all, with less memory",
    )  # fmt: skip
    add("--workers", type=at_least(0), default=2, help="processes that read and damage clips")
    add("--save-every", type=at_least(1), default=200, metavar="N", help="iterations")
    add("--device", default="auto", help="cpu, cuda, ...; auto takes a GPU if there is one")
    args = parser.parse_args()
    args.work = args.work or args.out / "work"
    for name in ("layers", "heads", "every"):
        if args.start and getattr(args, name):
            parser.error(f"--{name} {getattr(args, name)}: --start has its own; leave it out")
    return args


def main():
    args = arguments()
    try:
        trainer = Trainer(args)
    except backbones.CheckpointError as error:
        raise UsageError(f"--checkpoint: {error}") from error
    trainer.run()
    return 0


if __name__ == "__main__":
    runs.run_script(main)
