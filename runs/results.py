"""Files of a run: one JSON per video, config.json, summary.json. Each is whole or not there."""

import glob
import json
import os
import shutil
import uuid

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import save_file

from common.adapters import FACTS, facts
from common.metrics import METRICS, mean
from common.values import MANY

STAGES = ("encode", "adapt", "generate", "decode", "metrics", "total")  # <stage>_seconds
REFERENCES = ("repeat_last", "reconstruction")
OTHERS = ("sample_variance", "fixed_loss_before", "fixed_loss_after", "moved_from_baseline")
NUMBER = (int, float)
LARGEST = 1e60
NEEDED = {  # of a finished video's record, and what each is
    "id": str, "source": str, "caption": str, "seed": int, "columns": dict, "video_sha256": str,
    "preflight": dict, "losses": list, "frame_indices": dict, "references": dict, "norms": dict,
    "distances": dict, "relative_distances": dict, "diverged": bool, "kept": str,
    "adapted_parameters": int, "peak_memory_gb": NUMBER,
    "future_loss_before": (*NUMBER, type(None)),
    **{f"{name}_seconds": NUMBER for name in STAGES},
    **{name: (*NUMBER, type(None)) for name in METRICS},
}  # fmt: skip


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


def is_whole(record):
    """Whether a finished video's record has, of the right kind, what others read in it."""
    if not all(isinstance(record.get(key, ...), kind) for key, kind in NEEDED.items()):
        return False
    windows = [record["frame_indices"].get(name) for name in ("tta", "conditioning", "generated")]
    numbers = [key for key, kind in NEEDED.items() if type(kind) is tuple and float in kind]
    scores = [*(record[key] for key in numbers), *record["losses"]]
    whole = all(map(is_range, windows)) and all(map(is_score, scores))
    return whole and are_references(record["references"]) and has_details(record)


def are_references(found):
    """Whether what was read are scores of the references that there are."""
    kinds = [found.get(kind, {}) for kind in REFERENCES] if isinstance(found, dict) else [None]
    return all(isinstance(k, dict) and all(is_score(k.get(m)) for m in METRICS) for k in kinds)


def has_details(record):
    """Whether what a report draws is of the right kind: the preflight's losses, sizes, texts, and,
    where there are any, losses over the steps and the scores of frames and samples."""
    preflight, texts = record["preflight"], record["columns"].values()
    sizes = [
        *(preflight.get(name) for name in ("loss", "zero_loss", "negated_loss")),
        *record["distances"].values(),
        *(record.get(name, 0) for name in ("adapted_parameters", "target_values", "cond_motion")),
    ]
    return (
        all(type(size) in NUMBER and is_score(size) for size in sizes)
        and preflight["zero_loss"] > 0
        and all(isinstance(text, str | None) for text in texts)
        and isinstance(record.get("source_sha256"), str | None)
        and isinstance(record.get("stop_step"), int | None)
        and all(is_score(record.get(name)) for name in OTHERS)
        and all(is_curve(record.get(f"{kind}_losses", [])) for kind in ("anchor", "future"))
        and all(map(is_scores, listed(record)))
    )


def listed(record):
    """What a record has as a list, or None, of scores: of frames, parts of the loss, samples."""
    for name in METRICS:
        for part in ("per_frame", "per_sample", "per_sigma", "per_latent"):
            yield record.get(f"{name}_{part}")


def is_curve(values):
    """[step, loss] of each time that it was measured."""
    return isinstance(values, list) and all(
        isinstance(point, list) and len(point) == 2 and type(point[0]) is int and is_score(point[1])
        for point in values
    )


def is_scores(values):
    return values is None or (isinstance(values, list) and all(map(is_score, values)))


def is_score(value):
    """A number whose square is one too, or None where there was nothing to measure."""
    return value is None or (type(value) in NUMBER and abs(value) < LARGEST)


def is_range(value):
    whole = isinstance(value, list) and len(value) == 2 and all(type(i) is int for i in value)
    return whole and 0 <= value[0] < value[1] < MANY


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


def save_adapter(name, method, args):
    """Writes <name>.safetensors, or the folder <name>.adapter/ where the method has a format of its
    own, either with the method's name and flags; gives what it wrote."""
    path = name.with_name(f"{name.name}.{'adapter' if hasattr(method, 'save') else 'safetensors'}")

    def write_folder(temporary):
        method.save(temporary)
        (temporary / FACTS).write_text(facts(args.method, args), encoding="utf-8")

    try:
        if hasattr(method, "save"):
            shutil.rmtree(path, ignore_errors=True)
            replace_file(path, write_folder)
        else:
            parts = method.named_parameters().items()
            tensors = {key: p.detach().cpu().contiguous() for key, p in parts}
            header = {FACTS: facts(args.method, args)}
            replace_file(path, lambda temporary: save_file(tensors, temporary, header))
    except SafetensorError as error:  # its word for a full disk
        raise OSError(f"{path}: {error}") from error
    return path


def summarise(out):
    """Writes and returns summary.json: means and totals over every video present in the folder."""
    records = map(read_record, sorted((out / "videos").glob("*.json")))
    found = [record for record in records if record]
    done, skipped = ([r for r in found if r["status"] == x] for x in ("done", "skipped"))
    summary = {
        "videos_done": len(done),
        "videos_diverged": sum(r["diverged"] for r in done),
        "videos_skipped": {r["id"]: r["reason"] for r in skipped},
        **{f"mean_{name}": mean([r[name] for r in done]) for name in METRICS},
        "videos_with_lpips": sum(r["lpips"] is not None for r in done),
        **mean_references(done),
        "mean_future_loss_before": mean([r["future_loss_before"] for r in done]),
        "mean_future_loss_change_percent": mean([future_change(r) for r in done]),
        **{f"mean_{name}": mean([r.get(name) for r in done]) for name in OTHERS},
        **{f"{name}_seconds": sum(r[f"{name}_seconds"] for r in done) for name in STAGES},
        "peak_memory_gb": max((r["peak_memory_gb"] for r in done), default=None),
    }
    write_json(out / "summary.json", summary)
    return summary


def future_change(record):
    """Of the loss on the true future, in per cent of the video's own before adapting; or None."""
    before, after = record["future_loss_before"], record["future_loss"]
    return 100 * (after / before - 1) if before and after is not None else None


def mean_references(done):
    """Of a baseline, which alone has them."""
    if not any(record["references"] for record in done):
        return {}
    found = {kind: [r["references"].get(kind, {}) for r in done] for kind in REFERENCES}
    means = {
        kind: {name: mean([scores.get(name) for scores in each]) for name in METRICS}
        for kind, each in found.items()
    }
    return {"mean_references": means}
