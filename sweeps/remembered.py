"""The flags that a sweep was started with: its folder remembers them, later commands go on with
them."""

import shlex
from pathlib import Path

from common.data import real
from common.errors import UsageError
from runs.identity import plain_arguments
from runs.results import read_json, write_json
from sweeps.controls import originals
from sweeps.files import PARTS, RESULTS, load_yaml

SWITCHES = ("nano", "local", "slurm")
VALUES = ("checkpoint", "videos", "limit", "array", "jobs")
SETTLED = ("nano", "checkpoint", "videos")  # what another value of is another sweep


def folders_of(args):
    """Where the sweep's results are: by the flags, else where it was started."""
    plain, nano = (Path("results") / f"{begin}{args.file.stem}" for begin in ("", "nano_"))
    if args.out:
        return [args.out]
    if args.nano:
        return [nano]
    if args.checkpoint or args.local or args.slurm:
        return [plain]
    return [folder for folder in (plain, nano) if is_started(folder)] or [plain]


def is_started(out):
    return (out / "sweep.json").exists()


def tokens_of(args):
    """The flags that are remembered, as they are given."""
    found = [f"--{name}" for name in SWITCHES if getattr(args, name)]
    for name in VALUES:
        if getattr(args, name) is not None:
            found += [f"--{name}", str(getattr(args, name))]
    return found


def go_on(parser, args, out):
    """Fills args with what the sweep in `out` was started with; gives whether there is one. Raises
    UsageError where the two contradict each other."""
    old = remembered(parser, args.file, out)
    if old is None:
        return False
    for name in settled(args.file):
        given, before = getattr(args, name), getattr(old, name)
        if given and not same(given, before):
            then = spelt(name, before) if before else shlex.join(tokens_of(old))
            raise UsageError(
                f"{spelt(name, given)}: {out} was started with {then}; leave the flag out to go on "
                "with that, or give another folder with --out"
            )
        setattr(args, name, before)
    for name in ("limit", "array", "jobs"):
        if getattr(args, name) is None:
            setattr(args, name, getattr(old, name))
    if not (args.local or args.slurm or args.status or args.dry_run):
        args.local, args.slurm = old.local, old.slurm
    return True


def settled(file):
    """Names of the flags that stay: where sources are shared out, or rows take what others have
    learned, also which videos these are."""
    content = load_yaml(file)
    flags = [content.get("shared") or "", *(row.get("flags", "") for row in content["rows"])]
    taken = any(f"{{{RESULTS}}}" in each for each in flags)
    return (*SETTLED, "limit") if taken or any(part in content for part in PARTS) else SETTLED


def write_sweep(args, out, rows, unfit):
    """sweep.json: what the rows are, and with which flags it goes on."""
    keys, controls = ("name", "baseline", "over", "template", "part", "shift"), originals(rows)
    described = [
        {key: getattr(row, key) for key in keys}
        | {"control_of": controls.get(row.name), "arguments": plain_arguments(row.args)}
        for row in rows
    ]
    out.mkdir(parents=True, exist_ok=True)
    content = {"file": args.file.name, "flags": tokens_of(args), "rows": described, "unfit": unfit}
    write_json(out / "sweep.json", content)


def remembered(parser, file, out):
    """The flags in the folder's sweep.json, parsed; None where it has none."""
    path = out / "sweep.json"
    content = read_json(path) if path.exists() else {}
    tokens = content.get("flags", ()) if isinstance(content, dict) else None
    try:
        if not isinstance(tokens, list | tuple) or not all(isinstance(x, str) for x in tokens):
            raise UsageError("its flags are no list of text")
        return parser.parse_args([str(file), *tokens]) if tokens else None
    except UsageError as error:
        raise UsageError(
            f"{path}: is damaged ({error}); delete it and give the flags again"
        ) from error


def same(given, before):
    if isinstance(given, Path) and before:
        return real(given) == real(before)
    return given == before


def spelt(name, value):
    return shlex.join([f"--{name}"] if value is True else [f"--{name}", str(value)])
