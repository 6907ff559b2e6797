"""summary.json of a run of videos: means and totals over all that are in its folder."""

from common.metrics import CLEAN, METRICS, mean
from runs.results import read_record, write_json
from runs.whole import OTHERS, REFERENCES, STAGES


def finished(out):
    """The records that are done, in the order of their names, and {id: reason} of the skipped."""
    records = map(read_record, sorted((out / "videos").glob("*.json")))
    found = [record for record in records if record]
    done, skipped = ([r for r in found if r["status"] == x] for x in ("done", "skipped"))
    return done, {r["id"]: r["reason"] for r in skipped}


def summarise(out):
    """Writes and returns summary.json: means and totals over every video present in the folder."""
    done, skipped = finished(out)
    summary = {
        "videos_done": len(done),
        "videos_diverged": sum(r["diverged"] for r in done),
        "videos_skipped": skipped,
        **{f"mean_{name}": mean([r[name] for r in done]) for name in METRICS},
        **{
            f"mean_{name}": mean([r.get(name) for r in done])
            for name in CLEAN
            if any(name in r for r in done)
        },
        "videos_with_lpips": sum(r["lpips"] is not None for r in done),
        **mean_references(done),
        "mean_future_loss_before": mean([r["future_loss_before"] for r in done]),
        "mean_future_loss_change_percent": mean([future_change(r) for r in done]),
        "mean_future_loss_online_change_percent": mean(
            [future_change(r, "future_loss_online") for r in done]
        ),
        **{f"mean_{name}": mean([r.get(name) for r in done]) for name in OTHERS},
        **{f"{name}_seconds": sum(r[f"{name}_seconds"] for r in done) for name in STAGES},
        "peak_memory_gb": max((r["peak_memory_gb"] for r in done), default=None),
    }
    write_json(out / "summary.json", summary)
    return summary


def future_change(record, name="future_loss"):
    """Of the loss on the true future, in per cent of the video's own before adapting; or None."""
    before, after = record["future_loss_before"], record.get(name)
    return 100 * (after / before - 1) if before and after is not None else None


def mean_references(done):
    """Of a baseline, which alone has them."""
    if not any(record["references"] for record in done):
        return {}
    found = {kind: [r["references"].get(kind, {}) for r in done] for kind in REFERENCES}
    means = {
        kind: {name: mean([scores.get(name) for scores in each]) for name in METRICS}
        for kind, each in found.items()
        if any(each)
    }
    return {"mean_references": means}
