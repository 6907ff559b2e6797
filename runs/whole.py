"""Whether what was read as the record of a finished video or latent clip has, of the right kind,
what others read in it."""

from common.metrics import CLEAN, CLEAN_OF, METRICS
from common.values import MANY

STAGES = ("encode", "adapt", "generate", "decode", "metrics", "total")  # <stage>_seconds
REFERENCES = ("repeat_last", "reconstruction", "second_take")
OTHERS = (
    "sample_variance", "fixed_loss_before", "fixed_loss_online", "fixed_loss_after",
    "future_loss_online", "moved_from_baseline",
)  # fmt: skip
LATENT_CLIP = "latent clip"  # the record's kind; that of a video has none
LATENT_LOSSES = (
    "look_ahead_loss", "untouched_look_ahead_loss", "pre_adapt_loss", "post_adapt_loss",
    "untouched_loss",
)  # fmt: skip
HASHED = ("source", "truth", "second_take")  # and the video
NUMBER = (int, float)
SCORE = (*NUMBER, type(None))
LARGEST = 1e60
SHARED = {  # what every finished record has, and what each is
    "id": str, "source": str, "caption": str, "seed": int, "columns": dict, "video_sha256": str,
    "losses": list, "norms": dict, "distances": dict, "relative_distances": dict, "diverged": bool,
    "kept": str, "adapted_parameters": int, "peak_memory_gb": NUMBER, "adapt_seconds": NUMBER,
    "total_seconds": NUMBER,
}  # fmt: skip
OF_VIDEOS = SHARED | {
    "preflight": dict, "frame_indices": dict, "references": dict, "future_loss_before": SCORE,
    **{f"{name}_seconds": NUMBER for name in STAGES},
    **dict.fromkeys(METRICS, SCORE),
}  # fmt: skip
OF_LATENT_CLIPS = SHARED | {"place": int, **dict.fromkeys(LATENT_LOSSES, SCORE)}


def is_whole(record):
    """Of a record whose status is done."""
    latent = record.get("kind") == LATENT_CLIP
    needed = OF_LATENT_CLIPS if latent else OF_VIDEOS
    if not all(isinstance(record.get(key, ...), kind) for key, kind in needed.items()):
        return False
    numbers = [record[key] for key, kind in needed.items() if kind in (NUMBER, SCORE)]
    if not all(map(is_score, [*numbers, *record["losses"]])) or not has_details(record):
        return False
    return is_whole_latent_clip(record) if latent else is_whole_video(record)


def is_whole_latent_clip(record):
    return all(is_scores(record.get(f"{name}_per_frame")) for name in LATENT_LOSSES)


def is_whole_video(record):
    windows = [record["frame_indices"].get(name) for name in ("tta", "conditioning", "generated")]
    preflight = [record["preflight"].get(name) for name in ("loss", "zero_loss", "negated_loss")]
    return (
        all(map(is_range, windows))
        and all(map(is_size, preflight))
        and record["preflight"]["zero_loss"] > 0
        and are_references(record["references"])
        and all(map(is_scores, listed(record)))
    )


def are_references(found):
    """Whether what was read are scores of the references that there are."""
    kinds = [found.get(kind, {}) for kind in REFERENCES] if isinstance(found, dict) else [None]
    return all(isinstance(k, dict) and all(is_score(k.get(m)) for m in METRICS) for k in kinds)


def has_details(record):
    """Whether what a report draws is of the right kind: sizes, texts, and, where there are any,
    losses over the steps."""
    sizes = [
        *record["distances"].values(),
        *(record.get(name, 0) for name in ("adapted_parameters", "target_values", "cond_motion")),
    ]
    return (
        all(map(is_size, sizes))
        and all(isinstance(text, str | None) for text in record["columns"].values())
        and all(isinstance(record.get(f"{name}_sha256"), str | None) for name in HASHED)
        and isinstance(record.get("stop_step"), int | None)
        and all(is_score(record.get(name)) for name in (*OTHERS, *CLEAN_OF.values()))
        and all(is_curve(record.get(f"{kind}_losses", [])) for kind in ("anchor", "future"))
    )


def is_size(value):
    return type(value) in NUMBER and is_score(value)


def listed(record):
    """What a record has as a list, or None, of scores: of frames, parts of the loss, samples."""
    for name in (*METRICS, *CLEAN):
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
