"""Loading the model that the command line names."""

import contextlib
from pathlib import Path

import torch

import backbones
from backbones import hub
from common.errors import MisfitError, UsageError
from common.values import count_of_blocks, frame_size
from devices import parallel, ranks
from devices.compiling import compiles
from devices.placement import PLANS, Placement

NANO = Path(__file__).resolve().parents[1] / "nano" / "checkpoint"


def add_arguments(group):
    group.add_argument(
        "--checkpoint", type=Path, default=NANO, metavar="FOLDER",
        changes="generation", known_by="checkpoint_sha256",
        help="model folder, or OWNER/NAME in the Hugging Face cache",
    )  # fmt: skip
    group.add_argument(
        "--download", action="store_true", changes=None, baseline=True,
        help="fetch a --checkpoint OWNER/NAME that the cache does not hold",
    )  # fmt: skip
    group.add_argument(
        "--lora", type=Path, metavar="FILE", changes="generation", known_by="checkpoint_sha256",
        help="LongCat's low-rank updates, merged into its weights: of its distilled weights "
        "lora/cfg_step_lora.safetensors",
    )  # fmt: skip
    group.add_argument(
        "--size", type=frame_size, metavar="WxH", changes="generation",
        help="scale and centre-crop frames to this size; the checkpoint's own where not given",
    )  # fmt: skip


def add_speed(group):
    group.add_argument(
        "--device", default="auto", changes=None, baseline=True,
        help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one",
    )  # fmt: skip
    group.add_argument(
        "--checkpointing", type=count_of_blocks, default="auto", metavar="auto|all|none|N",
        changes=None,
        help="blocks recomputed in backward: less memory, more time, same numbers; auto: as few as "
        "memory needs",
    )  # fmt: skip
    group.add_argument(
        "--offload", choices=("auto", *PLANS), default="auto", changes=None,
        help="what waits in host memory, the VAE alone or also the DiT's blocks; auto: by free "
        "memory; same numbers",
    )  # fmt: skip
    group.add_argument(
        "--weights", choices=("bf16", "fp8", "fp32"), default="bf16", changes="generation",
        help="fp8: the DiT's linear layers in half the memory; fp32: everything, in twice. Other "
        "numbers; on a CPU bf16 is float32",
    )  # fmt: skip
    group.add_argument(
        "--compile", action="store_true", changes="generation",
        help="torch.compile of the repeated block; last digits differ; not with fp8 or streamed "
        "blocks",
    )  # fmt: skip
    group.add_argument(
        "--parallel", choices=parallel.WAYS, default="none", changes=None,
        help="under torchrun, sampling over its processes: guidance's branches apart, or the "
        "tokens (context) split; numbers to rounding",
    )  # fmt: skip


def geometry_of(args):
    """The geometry of args.checkpoint, which becomes a folder here where it was a name on the hub;
    no weight is read. Raises UsageError."""
    name, is_folder = args.checkpoint.as_posix(), args.checkpoint.is_dir()
    if not is_folder and not hub.NAME.fullmatch(name):
        raise UsageError(f"--checkpoint {name}: no such folder; {hub.HINT}")
    try:
        if not is_folder:
            args.checkpoint = hub.hub_folder(name, args.download)
        return backbones.geometry(args.checkpoint)
    except backbones.CheckpointError as error:
        raise UsageError(f"--checkpoint: {error}") from error


def check(args, geometry):
    """Raises UsageError where flags contradict each other or the checkpoint."""
    lengths = geometry.context_lengths
    if lengths is not None and not any(lengths):
        raise MisfitError(
            f"--checkpoint {args.checkpoint}: a text-to-video model: its network was never shown "
            "clean frames, so it can continue none"
        )
    check_lora(args, geometry)
    check_parallel(args, geometry)
    for flag, value in (("--weights", "fp8"), ("--offload", "blocks")):
        if args.compile and value in (args.weights, args.offload):  # a graph keeps what they swap
            raise UsageError(f"--compile: not together with {flag} {value}")
    check_limits(args, geometry)
    check_shared(args)
    size, multiple = args.size or geometry.size, geometry.size_multiple
    if any(side % multiple or side <= 0 for side in size):
        height, width = (max(1, round(side / multiple)) * multiple for side in size)
        raise MisfitError(
            f"--size {size[1]}x{size[0]}: this checkpoint needs multiples of {multiple}, such as "
            f"{width}x{height}"
        )


def check_lora(args, geometry):
    """Raises UsageError where --lora does not fit; no weight is read."""
    if not args.lora:
        return
    if geometry.class_name not in backbones.LORA:
        raise MisfitError(f"--lora {args.lora}: made for LongCat, not {geometry.class_name}")
    try:
        backbones.check_lora(args.checkpoint, args.lora)
    except backbones.LoRAError as error:
        raise UsageError(f"--lora {args.lora}: {error}") from error


def check_parallel(args, geometry):
    """Raises UsageError where sampling cannot be split as --parallel says."""
    flag, count = f"--parallel {args.parallel}", ranks.count()
    if args.parallel == "none":
        return
    if count == 1:
        raise UsageError(
            f"{flag}: there is one process; start the script with torchrun --nproc-per-node 2"
        )
    if args.parallel != "context":
        return
    if geometry.class_name not in backbones.SPLIT:
        raise MisfitError(f"{flag}: not built for {geometry.class_name}; take guidance")
    if args.compile:
        raise UsageError(f"{flag}: not together with --compile")
    height, width = args.size or geometry.size
    tokens = height * width // geometry.size_multiple**2
    if tokens % count:
        raise UsageError(
            f"{flag}: the {tokens} tokens of a latent do not split over {count} processes"
        )


def check_limits(args, geometry):
    """Raises MisfitError where flags ask for more than the checkpoint has positions or times of."""
    for name, most in geometry.limits.items():
        if (getattr(args, name) or 0) > most:
            flag = f"--{name.replace('_', '-')} {getattr(args, name)}"
            raise MisfitError(f"{flag}: this checkpoint takes at most {most}")
    size = args.size or geometry.size
    least, most = geometry.sizes or (size, size)
    nearest = [max(low, min(side, high)) for low, side, high in zip(least, size, most, strict=True)]
    if nearest != [*size]:
        raise MisfitError(
            f"--size {size[1]}x{size[0]}: this checkpoint has no positions for it; the nearest "
            f"that fits is {nearest[1]}x{nearest[0]}"
        )


def check_shared(args):
    """Raises UsageError where several processes share out weights that flags treat otherwise."""
    others = {
        "--compile": args.compile,
        "--weights fp8": args.weights == "fp8",
        "--offload blocks": args.offload == "blocks",
    }
    for flag, given in others.items():
        if given and ranks.count() > 1:
            raise UsageError(f"{flag}: not with several processes, which share the weights out")


def load_model(args):
    """The backbone of args.checkpoint on args.device; its `frame_size` is args.size or its own."""
    device = pick_device(args.device)
    from backbones import parts  # here: it loads diffusers

    ranks.start(device)
    more = {"float8": args.weights == "fp8", "lora": None if ranks.rank() else args.lora}
    more["dtype"] = torch.float32 if args.weights == "fp32" else None
    torch.backends.cudnn.allow_tf32 = args.weights != "fp32"
    # of torchrun's processes the first reads the weights, and sends the others their parts
    reading = parts.without_weights() if ranks.rank() else contextlib.nullcontext()
    try:
        with reading:
            model = backbones.load(args.checkpoint, device, place=None, **more)
    except backbones.LoRAError as error:
        raise UsageError(f"--lora {args.lora}: {error}") from error
    except backbones.CheckpointError as error:
        raise UsageError(f"--checkpoint: {error}") from error
    if ranks.count() > 1:
        model.shards = shards_of(model, args)
    model.compiled = args.compile and compiles(model)
    model.frame_size = args.size or model.geometry.size
    model.placement = Placement(model, args)
    return model


def shards_of(model, args):
    """How the processes of torchrun share its weights out."""
    from devices.sharding import Shards, begin_as_first  # here: it takes a second to import

    begin_as_first(model.dit)
    return Shards(model, args.learns is not None, args.learns and args.learns(args), sent=True)


def pick_device(name):
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and 0 < torch.cuda.device_count() < ranks.count_here():
        raise UsageError(
            f"--nproc-per-node {ranks.count_here()} of torchrun: this machine has "
            f"{torch.cuda.device_count()} GPUs, one for each process; start so many, or give "
            "--device cpu"
        )
    try:
        device = torch.empty(1, device=ranks.own_device(name)).device  # with its index
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device {name}: not usable here ({reason}); try cpu") from error
    if device.type == "cuda":
        torch.cuda.set_device(device)  # diffusers streams on the current one
    return device
