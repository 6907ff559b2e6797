"""Files of a run: one JSON per video, config.json, summary.json. Each is whole or not there."""

import glob
import json
import os
import shutil
import uuid

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from common.adapters import FACTS, facts
from devices.shards import whole
from runs.whole import is_whole


def write_json(path, content):
    """Atomic; raises ValueError on NaN or infinity."""
    text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    whole = text.encode(errors="backslashreplace")  # half a character as JSON escapes it
    replace_file(path, lambda temporary: temporary.write_bytes(whole))


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


def save_whole(content, path):
    """torch.save, atomic."""
    replace_file(path, lambda temporary: torch.save(content, temporary))


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
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse_constant)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, RecursionError):
        return None


def refuse_constant(name):
    raise ValueError(f"{name} is not JSON")


def read_record(path):
    """The record of a video, finished or skipped, or None where there is no whole one."""
    record = read_json(path)
    if not isinstance(record, dict) or record.get("id") != path.stem:
        return None
    if record.get("status") == "skipped":
        return record if isinstance(record.get("reason"), str) else None
    return record if record.get("status") == "done" and is_whole(record) else None


def save_frames(name, frames, truth):
    """<name>.npz with `generated` and `truth` (F, H, W, 3), 8 bits."""
    arrays = {"generated": in_8_bits(frames), "truth": in_8_bits(truth)}

    def write(path):
        with open(path, "wb") as file:  # a name without .npz would be changed
            np.savez_compressed(file, **arrays)

    replace_file(name.with_name(f"{name.name}.npz"), write)


def in_8_bits(frames):
    """(F, 3, H, W) in 0..1 as (F, H, W, 3)."""
    return (frames * 255).round().byte().permute(0, 2, 3, 1).numpy()


def whole_tensors(method):
    """Its parameters, whole, on the CPU. Every process that holds a part of one takes part."""
    parts = method.named_parameters().items()
    return {key: whole(p.detach()).cpu().contiguous() for key, p in parts}


def save_adapter(name, method, args, tensors=None, **said):
    """Writes <name>.safetensors, or the folder <name>.adapter/ where the method has a format of its
    own, either with the method's name, flags and what is `said`; gives what it wrote."""
    said = facts(args.method, args, **said)
    path = name.with_name(f"{name.name}.{'adapter' if hasattr(method, 'save') else 'safetensors'}")

    def write_folder(temporary):
        method.save(temporary)
        (temporary / FACTS).write_text(said, encoding="utf-8")

    try:
        if hasattr(method, "save"):
            shutil.rmtree(path, ignore_errors=True)
            replace_file(path, write_folder)
        else:
            tensors = whole_tensors(method) if tensors is None else tensors
            replace_file(path, lambda temporary: save_file(tensors, temporary, {FACTS: said}))
    except SafetensorError as error:  # its word for a full disk
        raise OSError(f"{path}: {error}") from error
    return path
