"""Files of a run: one JSON per video, config.json, summary.json. Each is whole or not there."""

import glob
import hashlib
import json
import os
import shutil
import subprocess
import sys
import uuid
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from common.errors import UsageError
from common.metrics import mean

METRICS = (
    "psnr_db ssim lpips temporal_psnr_db temporal_ssim flow_error_px warping_error "
    "truth_warping_error"
).split()
# flags that the continuation depends on where nothing is adapted: runs that agree in them share a
# baseline and can be compared
GENERATION = (
    "videos prompt caption checkpoint size anchor cond_frames gen_frames seed attention "
    "sampling_steps guidance_scale negative_prompt enhance_hf weights compile"
).split()
# what may differ when a run goes on: it changes no number, or is known by its content
NEUTRAL = {
    "videos", "checkpoint", "out", "batch_start", "batch_end", "limit", "device", "checkpointing",
    "dry_run", "forgetting", "shard", "lpips_weights", "allow_poor_captions", "save_frames",
    "save_adapter", "offload", "cache", "cache_latents", "profile",
}  # fmt: skip
BLOCK, BLOCKS = 1 << 18, 64  # bytes and number of the samples of a large weight file


def write_json(path, content):
    """Atomic; raises ValueError on NaN or infinity."""
    text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def replace_file(path, write):
    """write(temporary path), then take its name: a reader sees the old file or the whole new
    one."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    except BaseException:  # a full disk, a signal
        discard(temporary)
        raise


def remove_unfinished(folder, name):
    """Of a video's files, what a killed worker was writing."""
    for kind in ("json", "mp4", "npz", "safetensors", "adapter"):
        for path in folder.glob(f".{glob.escape(name)}.{kind}.????????.tmp"):
            discard(path)


def discard(path):
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def read_json(path):
    """The content, or None where there is no file or not a whole one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def save_frames(name, frames, truth):
    """<name>.npz with `generated` and `truth` (F, H, W, 3), 8 bits."""
    arrays = {
        kind: (x * 255).round().byte().permute(0, 2, 3, 1).numpy()
        for kind, x in (("generated", frames), ("truth", truth))
    }

    def write(path):
        with open(path, "wb") as file:  # a name without .npz would be changed
            np.savez_compressed(file, **arrays)

    replace_file(name.with_name(f"{name.name}.npz"), write)


def save_adapter(name, method):
    """Writes <name>.safetensors, or the folder <name>.adapter/ where the method has a format of its
    own; gives what it wrote."""
    if hasattr(method, "save"):
        path = name.with_name(f"{name.name}.adapter")
        shutil.rmtree(path, ignore_errors=True)
        replace_file(path, method.save)
        return path
    tensors = {key: p.detach().cpu().contiguous() for key, p in method.named_parameters().items()}
    path = name.with_name(f"{name.name}.safetensors")
    replace_file(path, lambda temporary: save_file(tensors, temporary))
    return path


@torch.no_grad()
def load_adapter(path, method):
    """Puts what save_adapter wrote into a method of the same kind and size."""
    tensors = load_file(path / "adapter_model.safetensors" if path.is_dir() else path)
    for name, parameter in method.named_parameters().items():
        parameter.copy_(tensors[name])


def describe(args, manifest_sha256, forgetting_sha256, no_lpips):
    """config.json: what was asked for, on what data, with which weights and versions."""
    return {
        "method": args.method,
        "arguments": plain_arguments(args),
        "manifest_sha256": manifest_sha256,
        "forgetting_sha256": forgetting_sha256,
        "checkpoint_sha256": fingerprint(args.checkpoint),
        "versions": {
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            **{name: version(name) for name in ("diffusers", "transformers")},
        },
        "git_revision": git_revision(),
        "lpips": no_lpips or "alex",
    }


def plain_arguments(args):
    """As they are read back from JSON: paths are text, tuples lists."""
    arguments = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    return json.loads(json.dumps(arguments))


def fingerprint(checkpoint):
    """SHA-256 over a checkpoint's files: names, sizes and contents, of large files evenly spaced
    samples."""
    if not checkpoint.is_dir():
        raise UsageError(f"--checkpoint {checkpoint}: no such folder")
    digest = hashlib.sha256()
    for path in sorted(p for p in checkpoint.rglob("*") if p.is_file()):
        name = path.relative_to(checkpoint)
        if any(part.startswith(".") for part in name.parts):  # caches of download tools
            continue
        size = path.stat().st_size
        digest.update(f"{name.as_posix()}\n{size}\n".encode())
        with open(path, "rb") as file:
            step = max(BLOCK, size // BLOCKS)
            for start in range(0, size, step):
                file.seek(start)
                digest.update(file.read(BLOCK))
    return digest.hexdigest()


def git_revision():
    command = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=12",
    ]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def same_run(out, config):
    """Whether `out` already holds results of this run. Raises UsageError where it holds results of
    one that differs in what changes numbers."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: is a file; give a folder")
    if not any((read_json(p) or {}).get("status") == "done" for p in out.glob("videos/*.json")):
        return False
    refuse_other(out, config)
    return True


def refuse_other(out, config):
    """Raises UsageError where config.json in `out` is not that of this run."""
    old = read_json(out / "config.json")
    if old is None:
        raise UsageError(f"--out {out}: holds results without config.json; choose another folder")
    if found := difference(old, config):
        raise UsageError(f"--out {out}: holds another run ({found}); choose another folder")


def difference(old, config):
    """What the first difference of two runs is that changes numbers, or None. Of the SHA-256s those
    are compared that `config` has; the script where both say it, which older runs do not."""
    facts = [f"{name}_sha256" for name in ("manifest", "forgetting", "checkpoint")]
    compared = [(name, old.get(name), config[name]) for name in facts if name in config]
    then, now = old["arguments"], config["arguments"]
    ignored = NEUTRAL if "script" in then and "script" in now else NEUTRAL | {"script"}
    for name in sorted((then.keys() | now.keys()) - ignored):
        flag = {"preflight": "--no-preflight", "method": "method", "script": "script"}.get(
            name, f"--{name.replace('_', '-')}"
        )
        compared.append((flag, then.get(name), now.get(name)))
    for name, there, here in compared:
        if there != here:
            return f"{name} is {there} there, {here} here"
    return None


def summarise(out):
    """Writes and returns summary.json: means and totals over every video present in the folder."""
    found = [read_json(path) for path in sorted((out / "videos").glob("*.json"))]
    done = [r for r in found if r and r["status"] == "done"]
    seconds = ("encode", "adapt", "generate", "decode", "metrics", "total")
    summary = {
        "videos_done": len(done),
        "videos_diverged": sum(r["diverged"] for r in done),
        "videos_skipped": {r["id"]: r["reason"] for r in found if r and r["status"] == "skipped"},
        **{f"mean_{name}": mean([r[name] for r in done]) for name in METRICS},
        "videos_with_lpips": sum(r["lpips"] is not None for r in done),
        "mean_references": {
            kind: {name: mean([r["references"][kind][name] for r in done]) for name in METRICS}
            for kind in ("repeat_last", "reconstruction")
        },
        "mean_first_loss": mean([r["losses"][0] for r in done if r["losses"]]),
        "mean_last_loss": mean([r["losses"][-1] for r in done if r["losses"]]),
        **{f"{name}_seconds": sum(r[f"{name}_seconds"] for r in done) for name in seconds},
        "peak_memory_gb": max((r["peak_memory_gb"] for r in done), default=None),
    }
    write_json(out / "summary.json", summary)
    return summary


def line(result):
    """One finished video in a line for people."""
    losses = result["losses"]
    first, last = (f"{losses[i]:.4f}" if losses and losses[i] is not None else "-" for i in (0, -1))
    lpips = "-" if result["lpips"] is None else f"{result['lpips']:.3f}"
    psnr = "identical" if result["psnr_db"] is None else f"{result['psnr_db']:.2f} dB"
    return (
        f"{result['id']}: loss {first} -> {last}  PSNR {psnr}  SSIM {result['ssim']:.3f}  "
        f"LPIPS {lpips}  {result['total_seconds']:.1f} s  {result['peak_memory_gb']:.1f} GB"
        + (f"  DIVERGED, {result['kept']} kept" if result["diverged"] else "")
    )
