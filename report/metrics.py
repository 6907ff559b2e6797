"""What a reader must know of each metric: which values are better, the unit of a gain, its trap."""

from common.metrics import METRICS

COMPARED = [name for name, better in METRICS.items() if better]
RELATIVE = {"future_loss"}  # gains are changes in per cent of the baseline's
ZERO = 1e-12  # of what a change in per cent is none
ABOUT = {
    "future_loss": (
        "Loss of the model on the latents that really followed, adapted against not adapted, before"
        " anything is sampled. Gains are relative changes in per cent, each video's of its own "
        "baseline."
    ),
    "kernel_score": (
        "Squared error of the mean of the samples, without bias: spread that is lost gains nothing."
        " spread_ratio: variance between samples, as a share of the baseline's."
    ),
    "psnr_db": (
        "PSNR of one sample rewards a model that has lost its spread: a blurred mean of what could "
        "follow scores better than a true draw."
    ),
}


def title(metric):
    unit = ", gains in %" if metric in RELATIVE else ""
    return f"{metric} ({METRICS[metric]} is better{unit})"


def about(metric):
    return ABOUT.get(metric, "")


def unit(metric):
    """Of a gain, for behind the number; "" where the metric's name has it."""
    return " %" if metric in RELATIVE else ""


def gain_label(metric):
    return f"gain, {metric}{',' if unit(metric) else ''}{unit(metric)}"


def main_metric(*comparisons):
    """What figures, players and the terminal show: the loss on the true future where all of the
    compared runs have it, else PSNR."""
    measured = comparisons and all(c.scored("future_loss") for c in comparisons)
    return "future_loss" if measured else "psnr_db"
