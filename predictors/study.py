"""What the study that adapted this predictor reports, by the names of its test_results.json: of one
clip, and of a run."""


def of_clip(losses, before, after):
    """losses: of the steps that count towards the clip; before and after: its loss without and with
    them, None in the sequential modes, where the study's improvement compares two frames."""
    if before is None:
        before = after = 0.0
        improvement = losses[0] - losses[-1]
    else:
        improvement = before - after
    return {
        "num_adaptations": len(losses),
        "mean_loss": mean(losses),
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "pre_adapt_loss": before,
        "post_adapt_loss": after,
        "improvement": improvement,
    }


def of_run(clips):
    """Means of what of_clip gives."""
    return {
        "total_clips": len(clips),
        "total_adaptations": sum(clip["num_adaptations"] for clip in clips),
        "mean_improvement": mean([clip["improvement"] for clip in clips]),
        "mean_pre_adapt_loss": mean([clip["pre_adapt_loss"] for clip in clips]),
        "mean_post_adapt_loss": mean([clip["post_adapt_loss"] for clip in clips]),
    }


def spread(losses):
    """The median is element n // 2 of the sorted list, std that of the population."""
    centre = mean(losses)
    return {
        "mean": centre,
        "median": sorted(losses)[len(losses) // 2],
        "std": mean([(loss - centre) ** 2 for loss in losses]) ** 0.5,
        "min": min(losses),
        "max": max(losses),
    }


def mean(values):
    return sum(values) / len(values)
