"""What a run is: its flags, and the SHA-256 of everything else that its numbers come from."""

import hashlib
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch

from common.adapters import adapter_files, is_of_each_video
from common.data import sha256
from common.errors import UsageError
from common.start import BANK
from runs.claims import is_live
from runs.flags import FACTS, TABLES, is_table, spelt, tells_apart, value_of
from runs.results import read_json, read_record

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("common", "runs", "predictors", "devices", "backbones")
LENT = (
    "method", "arguments", "flags", "manifest_sha256", "checkpoint_sha256", "adapter_sha256"
)  # fmt: skip
BLOCK, BLOCKS = 1 << 18, 64  # bytes and number of the samples of a large weight file


def describe(args, manifest_sha256, lpips=None, **facts):
    """config.json: what was asked for, on what data, with which weights, code and versions, and
    what is measured. lpips: which, or why there is none; facts: more SHA-256s."""
    return {
        "method": args.method,
        "arguments": plain_arguments(args),
        "flags": args.flags,
        "manifest_sha256": manifest_sha256,
        **facts,
        "checkpoint_sha256": network_sha256(args.checkpoint, vars(args).get("lora")),
        "adapter_sha256": adapter_sha256(args),
        **lent(args),
        "source_sha256": source_sha256(),
        "versions": {
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            **{name: version(name) for name in ("diffusers", "transformers")},
        },
        "git_revision": git_revision(),
        "lpips": lpips,
        "metrics": args.kind.metrics_of(args),
    }


def adapter_sha256(args):
    """Of the files of --adapter; None where the script has no such flag or it is not given."""
    path = getattr(args, "adapter", None)
    return path and digest_of(adapter_files(path), path)


def lent(args):
    """Of a control that takes what another run has learned as it is: which run that is
    (`control_of`), by what its config.json says of its method; nothing of a file for all videos,
    whose use without --control is the run that this one is a control of."""
    if not vars(args).get("control") or args.steps or not is_of_each_video(args.adapter):
        return {}
    found = read_config(args.adapter.parent)
    if found is None:
        return {}
    return {"control_of": {key: found[key] for key in LENT if key in found}}


def refuse_unfinished(args, config, videos):
    """Raises UsageError where a control takes what a run of the same list has learned, and that has
    not been at all of these videos: what is taken would depend on when it is."""
    folder, its = args.adapter, config.get("control_of", {})
    seed = its.get("arguments", {}).get("seed", args.seed)
    if vars(args).get("control") == "random" and seed != args.seed:
        raise UsageError(
            f"--control random: --adapter {folder} is of a run with --seed {seed}, which a method "
            f"may begin with; give it, got --seed {args.seed}"
        )
    if its.get("manifest_sha256") != config["manifest_sha256"]:
        return
    missing = [v.id for v in videos if read_record(folder / f"{v.id}.json") is None]
    if missing:
        raise UsageError(
            f"--adapter {folder}: its run has not been at {missing[0]} yet ({len(missing)} of "
            f"{len(videos)} videos); finish it first"
        )


def script_sha256(method, file):
    """Of a script, or of it and those that its method inherits from; None where there is none."""
    modules = [sys.modules[each.__module__] for each in method.__mro__]
    files = dict.fromkeys([file, *(getattr(module, "__file__", None) for module in modules)])
    found = [sha256(path) for path in files if path and Path(path).is_file()]
    if len(found) > 1:
        return hashlib.sha256("\n".join(found).encode()).hexdigest()
    return found[0] if found else None


def source_sha256():
    """Of the code that every script runs on."""
    digest = hashlib.sha256()
    for path in sorted(path for room in ROOMS for path in (ROOT / room).glob("*.py")):
        digest.update(f"{path.relative_to(ROOT).as_posix()} {sha256(path)}\n".encode())
    return digest.hexdigest()


def plain_arguments(args):
    """As they are read back from JSON: paths are text, tuples lists. Without the tables about
    them."""
    arguments = {k: v for k, v in vars(args).items() if k not in TABLES}
    arguments = {k: str(v) if isinstance(v, Path) else v for k, v in arguments.items()}
    return json.loads(json.dumps(arguments))


def network_sha256(checkpoint, lora=None):
    """Of the checkpoint, and of what --lora merges into its weights."""
    digest = fingerprint(checkpoint)
    if not lora:
        return digest
    return hashlib.sha256(f"{digest}\n{digest_of([lora], lora)}".encode()).hexdigest()


def fingerprint(checkpoint):
    """SHA-256 over a checkpoint's files, links followed: names, sizes and contents, of large files
    evenly spaced samples."""
    if checkpoint.is_file():
        beside = checkpoint.parent / "config.json"  # as predictors.load_predictor reads it
        return digest_of([checkpoint, *[beside] * beside.is_file()], checkpoint.parent)
    if not checkpoint.is_dir():
        raise UsageError(f"--checkpoint {checkpoint}: no such folder")
    return digest_of(sorted(files_in(checkpoint)), checkpoint)


def digest_of(files, folder):
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}\n{size}\n".encode())
        with open(path, "rb") as file:
            step = max(BLOCK, size // BLOCKS)
            for start in range(0, size, step):
                file.seek(start)
                digest.update(file.read(BLOCK))
    return digest.hexdigest()


def files_in(folder):
    """Whatever their folders are, links as well; not those of download tools, which begin with a
    dot."""
    entered = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in entered:  # a link to where it stands
            folders.clear()
            continue
        entered.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        found = (Path(place, name) for name in names if not name.startswith("."))
        yield from (path for path in found if path.is_file())


def git_revision():
    """The commit, with -dirty where files were changed or added; None outside of git."""
    git = ["git", "-C", str(ROOT)]
    try:
        commit, changes = (
            subprocess.run([*git, *rest], capture_output=True, text=True, check=True).stdout.strip()
            for rest in (("rev-parse", "--short=12", "HEAD"), ("status", "--porcelain"))
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}-dirty" if changes else commit


def same_run(out, config):
    """Whether `out` already holds results of this run. Raises UsageError where it holds results of
    one that differs in what changes numbers."""
    found = (read_record(path) for path in out.glob("videos/*.json"))
    done = any(record and record["status"] == "done" for record in found)
    begun = read_config(out) and any(map(is_live, out.glob("videos/*.claim")))  # by another worker
    if done or begun:
        refuse_other(out, config)
    return done


def is_baseline(arguments):
    """Whether the arguments are those of a run that adapts nothing."""
    return arguments.get("steps") == 0 and arguments.get("adapter") is None


def goes_on(arguments):
    """Whether what is learned from an item of a run depends on those before it."""
    flags = [arguments.get(name) for name in ("carry_over", "reptile")]
    return bool(arguments.get("steps")) and any([*flags, arguments.get("start_from") == BANK])


def read_config(out):
    """The config.json of a run's folder, or None where there is no whole one."""
    config = read_json(out / "config.json")
    whole = isinstance(config, dict) and isinstance(config.get("arguments"), dict)
    return config if whole else None


def edited_source(out, config):
    """Words for a run that goes on with other code than it began with; none otherwise."""
    before = (read_config(out) or {}).get("source_sha256")
    if before == config["source_sha256"]:
        return ""
    rooms = ", ".join(f"{room}/" for room in ROOMS)
    return f"; what is done was made before {rooms} were edited: each JSON has its source_sha256"


def refuse_other(out, config):
    """Raises UsageError where config.json in `out` is not that of this run."""
    old = read_config(out)
    if old is None:
        raise UsageError(
            f"--out {out}: holds results without a whole config.json; choose another folder"
        )
    if found := difference(old, config):
        raise UsageError(f"--out {out}: holds another run ({found}); choose another folder")


def difference(old, config):
    """What the first difference of two runs is that changes numbers, or None. Of the SHA-256s those
    are compared that `config` has."""
    if not is_table(old.get("flags")):
        return "its config.json does not say what each flag changes, as this code needs it"
    flags = old["flags"] | config.get("flags", {})
    compared = [(name, old.get(name), config[name]) for name in FACTS if name in config]
    then, now = old["arguments"], config["arguments"]
    if then.get("script") == now.get("script"):
        if then.get("script_sha256") != now.get("script_sha256"):
            return f"{now.get('script')}.py was edited since"
    for name in sorted((then.keys() | now.keys()) - {"script_sha256"}):
        if tells_apart(flags, name):
            values = (value_of(flags, name, arguments) for arguments in (then, now))
            compared.append((spelt(flags, name), *values))
    for name, there, here in compared:
        if there != here:
            return f"{name} is {there} there, {here} here"
    return None
