"""Which videos will benefit? Models of the gain from what is known before generating.

All predictions are out of fold: no video is predicted by a model that has seen one of its source.
"""

import functools

import numpy as np
from scipy.stats import rankdata
from skimage.color import rgb2gray
from skimage.filters import sobel
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from common.errors import VideoError
from report.media import read_pair
from report.metrics import unit
from report.statistics import FEWEST, clustered_interval
from report.table import interval, number

FOLDS, RESAMPLES = 5, 1000
EDGE = 0.05  # Sobel magnitude from which a pixel is on an edge
ENOUGH = 10  # videos
FRAME_FEATURES = ["motion", "edge density", "colour variance", "temporal smoothness"]
LOSSES = ["preflight loss", "anchored loss before", "anchored loss after"]


def predict(comparison, method, metric):
    """AUC of "the gain is positive" with its 95 % interval, and the mean gain when only those are
    adapted that a rule picks; or why there is none."""
    if not comparison.of_videos:
        return {"why not": "it asks the frames of videos, which clips of features do not have"}
    videos = comparison.scored(metric)
    gains = comparison.gains(method, metric, videos)
    sources = np.array(comparison.sources(videos))
    positive = gains > 0
    folds = min(FOLDS, len(set(sources)))
    for group in (positive, ~positive):
        folds = min(folds, len(set(sources[group])))
    if len(videos) < ENOUGH or folds < 2:
        return {"why not": f"{positive.sum()} of {len(videos)} videos gain; too few either way"}
    found = [features(comparison, method, video) for video in videos]
    if any(values is None for values in found):
        return {"why not": "the baseline has no whole mp4 of a video"}
    names = [name for name in found[0] if all(f[name] is not None for f in found)]
    x = np.array([[values[name] for name in names] for values in found])
    splits = list(StratifiedGroupKFold(folds).split(x, positive, sources))
    if any(len(set(positive[train])) < 2 for train, _ in splits):
        return {"why not": f"{positive.sum()} of {len(videos)} videos gain, in too few sources"}
    logistic = out_of_fold(LogisticRegression(), x, positive, splits, "predict_proba")[:, 1]
    ridge = out_of_fold(RidgeCV(np.logspace(-2, 4, 13)), x, gains, splits, "predict")
    auc, low, high = auc_interval(positive, logistic, sources)
    rules = {"always": np.ones(len(videos), bool), "logistic": logistic > 0.5, "ridge": ridge > 0}
    if "anchored loss after" in names:
        rules["anchored loss fell"] = np.array(
            [f["anchored loss after"] < f["anchored loss before"] for f in found]
        )
    return {
        "metric": comparison.metrics[metric],
        "features": names,
        "videos": len(videos),
        "sources": len(set(sources)),
        "auc": auc,
        "auc_low": low,
        "auc_high": high,
        "rules": {
            name: {"share": float(chosen.mean()), **gain_of(gains * chosen, sources)}
            for name, chosen in rules.items()
        },
    }


def features(comparison, method, video):
    """What is known of a video before generating, by name; None where it was not measured. Without
    pictures (--no-generate) the losses alone."""
    record = method.record(video)
    first, stop = record["frame_indices"]["conditioning"]
    seen = [None] * len(FRAME_FEATURES)
    if comparison.generated:
        seen = of_file(comparison.baseline.runs[0].path / "videos" / f"{video}.mp4", stop - first)
    if seen is None:
        return None
    checks = [loss for _, loss in record.get("anchor_losses") or [] if loss is not None]
    losses = [record["preflight"]["loss"], checks[0], min(checks)] if checks else []
    losses = losses or [record["preflight"]["loss"], None, None]
    return dict(zip(FRAME_FEATURES + LOSSES, [*seen, *losses], strict=True))


@functools.cache  # the same for every method
def of_file(path, count):
    try:
        left, _, _ = read_pair(path, count)
    except VideoError:
        return None
    return of_frames(left.permute(0, 2, 3, 1).float().numpy() / 255)


def of_frames(frames):
    """The FRAME_FEATURES of (F, H, W, 3) in 0..1; of a single frame motion is 0."""
    steps = np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3)) if len(frames) > 1 else np.zeros(1)
    edges = (sobel(rgb2gray(frames[-1])) > EDGE).mean()
    smoothness = 1 - steps.std() / max(steps.mean(), 1e-9)
    return steps.mean(), edges, frames.var(axis=(0, 1, 2)).mean(), smoothness


def out_of_fold(model, x, y, splits, how):
    return cross_val_predict(make_pipeline(StandardScaler(), model), x, y, cv=splits, method=how)


def auc_interval(truth, scores, clusters):
    """(AUC, low, high): percentiles over resampled sources, None from fewer than FEWEST; 0.5 is
    chance."""
    generator, found = np.random.default_rng(0), []
    members = [np.flatnonzero(clusters == name) for name in sorted(set(clusters))]
    if len(members) < FEWEST:
        return float(area_under_curve(truth, scores)), None, None
    for _ in range(RESAMPLES):
        drawn = generator.integers(len(members), size=len(members))
        index = np.concatenate([members[i] for i in drawn])
        if 0 < truth[index].sum() < len(index):
            found.append(area_under_curve(truth[index], scores[index]))
    low, high = np.percentile(found, [2.5, 97.5])
    return float(area_under_curve(truth, scores)), float(low), float(high)


def area_under_curve(truth, scores):
    """Of the ROC, from ranks: the same as scikit-learn's, which takes 3 ms a call."""
    positive = truth.sum()
    ranks = rankdata(scores)[truth].sum()
    return (ranks - positive * (positive + 1) / 2) / (positive * (len(truth) - positive))


def gain_of(gains, sources):
    mean, low, high = clustered_interval(gains, sources)
    return {"gain": float(mean), "low": low, "high": high}


def headline(result):
    """The AUC in words; "" where there is none."""
    if "why not" in result:
        return ""
    shown = interval(result["auc_low"], result["auc_high"], "")
    return (
        f"AUC {result['auc']:.2f} (95 %: {shown}) over {result['sources']} sources; chance is 0.5"
    )


def lines(result):
    """The result as rows of a table, or one line."""
    if "why not" in result:
        return [{"adapt": "", "share": "", "gain": "", "95 %": result["why not"]}]
    return [
        {
            "adapt": name,
            "share": f"{100 * rule['share']:.0f} %",
            "gain": number(rule["gain"], "+") + unit(result["metric"]),
            "95 %": interval(rule["low"], rule["high"], unit=unit(result["metric"])),
        }
        for name, rule in result["rules"].items()
    ]
