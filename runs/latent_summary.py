"""What a run on clips of frame features says: a line for each clip, summary.json, and the study's
test_results.json."""

from common.metrics import mean
from predictors import study
from runs.ending import change, changed
from runs.results import write_json
from runs.summary import finished
from runs.whole import LATENT_LOSSES

ROLLING = 50  # clips
BEST, WORST = 5, 10  # clips that are listed
SECONDS = ("adapt_seconds", "total_seconds")


def summarise(out, config):
    """Writes summary.json and test_results.json, of every clip that is in the folder; gives the
    first."""
    done, skipped = finished(out)
    done.sort(key=lambda record: record["place"])
    summary = {
        "videos_done": len(done),
        "videos_diverged": sum(r["diverged"] for r in done),
        "videos_skipped": skipped,
        "metrics": config["metrics"],
        **{f"mean_{name}": mean([r[name] for r in done]) for name in LATENT_LOSSES},
        "mean_look_ahead_change_percent": mean([percent(r, *AHEAD) for r in done]),
        "mean_pre_adapt_change_percent": mean([percent(r, *ONLINE) for r in done]),
        "pre_adapt_loss_rolling_50": rolling([r["pre_adapt_loss"] for r in done]),
        "untouched_loss_rolling_50": rolling([r["untouched_loss"] for r in done]),
        **{name: sum(r[name] for r in done) for name in SECONDS},
        "peak_memory_gb": max((r["peak_memory_gb"] for r in done), default=None),
    }
    write_json(out / "summary.json", summary)
    write_json(out / "test_results.json", as_the_study(done, config["arguments"]))
    return summary


AHEAD = ("untouched_look_ahead_loss", "look_ahead_loss")
ONLINE = ("untouched_loss", "pre_adapt_loss")  # before a clip is adapted to
LEARNED = ("pre_adapt_loss", "post_adapt_loss")


def percent(record, before, after):
    """By how many per cent the second is above the first; None where one is missing."""
    before, after = record[before], record[after]
    return 100 * (after / before - 1) if before and after is not None else None


def rolling(values, window=ROLLING):
    """The mean of the last `window` values up to each; of fewer at the start."""
    return [mean(values[max(0, i - window) : i]) for i in range(1, len(values) + 1)]


def as_the_study(done, arguments):
    """The study's metric names, each with what the name says: step k is the error of frame k, the
    first is frame 0, with adaptation and without."""
    first = arguments["context_frames"]
    clips = [clip_of(record, first) for record in done if record["post_adapt_loss"] is not None]
    losses = [clip["loss_rollout"] for clip in clips]
    if not clips:
        return {"metrics": {}, "summary": {}, "worst": [], "best": [], "clips": []}
    spread = study.spread(losses)
    metrics = {
        "test/loss_rollout": spread["mean"],
        "test/loss": spread["mean"],
        **steps_of(clips),
        "test/final_mean_loss_rollout": spread["mean"],
        "test/final_median_loss_rollout": spread["median"],
    }
    adapted = [clip["tta"] for clip in clips if clip["tta"]]
    if adapted:
        run = study.of_run(adapted)
        metrics |= {
            "test/tta_loss_rollout": spread["mean"],
            "test/tta_improvement": run["mean_improvement"],
            "test/tta_loss_rolling_50": rolling(losses)[-1],
            "test/tta_epoch_mean_pre_adapt_loss": run["mean_pre_adapt_loss"],
            "test/tta_epoch_mean_post_adapt_loss": run["mean_post_adapt_loss"],
            "test/tta_epoch_mean_improvement": run["mean_improvement"],
            "test/tta_epoch_total_adaptations": run["total_adaptations"],
        }
    order = sorted(clips, key=lambda clip: clip["loss_rollout"])
    return {
        "metrics": metrics,
        "summary": {"num_clips": len(clips), "rollout_loss": spread, "arguments": arguments},
        "worst": order[::-1][:WORST],
        "best": order[:BEST],
        "clips": clips,
    }


def clip_of(record, first):
    losses = record["losses"]
    whole = losses and None not in losses and record["pre_adapt_loss"] is not None
    return {
        "clip_name": record["id"],
        "loss_rollout": record["post_adapt_loss"],
        "per_timestep_losses": {
            f"step_{k}": loss for k, loss in enumerate(record["post_adapt_loss_per_frame"], first)
        },
        "tta": study.of_clip(losses, record["pre_adapt_loss"], record["post_adapt_loss"])
        if whole
        else None,
    }


def steps_of(clips):
    """Means over the clips by predicted frame."""
    found = {}
    for clip in clips:
        for step, loss in clip["per_timestep_losses"].items():
            found.setdefault(f"test/loss_{step}", []).append(loss)
    return {name: mean(values) for name, values in found.items()}


def line(record):
    """One finished clip in a line for people."""
    parts = [f"{record['id']}: adapted to {moved(record, *LEARNED)}"]
    if record["look_ahead_loss"] is not None:
        parts.append(f"ahead {moved(record, *AHEAD)}")
    if record["pre_adapt_loss"] != record["untouched_loss"]:
        parts.append(f"before {moved(record, *ONLINE)}")
    parts.append(f"{record['total_seconds']:.1f} s  {record['peak_memory_gb']:.1f} GB")
    if record["diverged"]:
        parts.append(f"DIVERGED, {record['kept']} kept")
    return "  ".join(parts)


def moved(record, before, after):
    if record[after] is None:
        return "-"
    same = record[before] == record[after]
    return f"{record[after]:.4f}" if same else change(record[before], record[after])


def means(args, summary):
    """Lines: each error from the untouched predictor's to this run's, and how it is to be read."""
    carried = args.kind.carries(args)
    rows = [
        ("error ahead", *AHEAD, "frames not adapted to; lower is better"),
        ("error adapted to", *LEARNED, "learned from: falls whether that helps or not"),
    ]
    if carried:
        words = "before adapting to a clip, against the untouched predictor"
        rows.insert(0, ("error online", *ONLINE, words))
    lines = []
    for title, before, after, words in rows:
        before, after = (summary[f"mean_{name}"] for name in (before, after))
        if before and after is not None:
            same = before == after
            shown = f"{after:.4f}" if same else changed(before, after, 100 * (after / before - 1))
            lines.append(f"  {title:16}  {shown:26}  {words}")
    return lines
