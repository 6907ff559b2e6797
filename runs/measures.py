"""What runs measure, as their config.json says it: for each metric which values are better and,
where there is something to say, whether gains are in per cent of the baseline's (`relative`),
whether it may decide (`leads`: the first that was measured does), whether it is what was learned
(`learned`: it says nothing of help), what sentences call it, its unit there, and what a reader must
know (`about`)."""

from common.metrics import CLEAN, CLEAN_OF, METRICS

OF_VIDEOS = {name: {"better": better} for name, better in METRICS.items() if better}
OF_VIDEOS["future_loss"] |= {
    "relative": True,
    "leads": True,
    "called": "the loss on the true future",
    "about": (
        "Loss of the model on the latents that really followed, adapted against not adapted, before"
        " anything is sampled. Gains are relative changes in per cent, each video's of its own "
        "baseline."
    ),
}
OF_VIDEOS["kernel_score"]["about"] = (
    "Squared error of the mean of the samples, without bias: spread that is lost gains nothing."
    " spread_ratio: variance between samples, as a share of the baseline's."
)
OF_VIDEOS["psnr_db"] |= {
    "leads": True,
    "called": "PSNR",
    "unit": "dB",
    "about": (
        "PSNR of one sample rewards a model that has lost its spread: a blurred mean of what could "
        "follow scores better than a true draw."
    ),
}
OF_CLEAN = {
    name: {
        "better": METRICS[name.removesuffix("_clean")],
        "relative": name == "future_loss_clean",
        "about": "Given the shifted clip, against what followed in the clip without its shift.",
    }
    for name in CLEAN
}
ONLINE = {
    "better": "lower",
    "relative": True,
    "leads": True,
    "called": "the loss on the true future before adapting to a video",
    "about": (
        "Loss of the model on the latents that really followed, adapted only to the videos before: "
        "what was carried over is worth. Gains are changes in per cent, each video's of its own "
        "baseline."
    ),
}
AHEAD = {
    "better": "lower",
    "relative": True,
    "called": "the latent error ahead",
    "about": (
        "Error of the features predicted for the frames that adaptation has not seen. Gains are "
        "changes in per cent, each clip's of its own baseline."
    ),
}
BEFORE = {
    "better": "lower",
    "relative": True,
    "called": "the latent error before adapting to a clip",
    "about": (
        "Error on a clip that the predictor has not yet adapted to, only to those before it: what "
        "was carried over is worth. Gains are changes in per cent, each clip's of its own baseline."
    ),
}
AFTER = {
    "better": "lower",
    "relative": True,
    "called": "the latent error on the frames adapted to",
    "learned": True,
    "about": "Measured on the very frames that were learned: it falls whether that helps or not.",
}


def of_videos(videos, carried):
    """Of a list in which some name their clean truth these are more. carried: whether an adaptation
    begins at what was learned from the videos before."""
    clean = OF_CLEAN if any("truth" in video.beside for video in videos) else {}
    found = ({"future_loss_online": ONLINE} if carried else {}) | OF_VIDEOS | clean
    if clean and carried:
        found[CLEAN_OF["future_loss_online"]] = OF_CLEAN["future_loss_clean"] | {
            "about": f"{OF_CLEAN['future_loss_clean']['about']} Adapted to the videos before alone."
        }
    return found


def of_latent_clips(carried, ahead):
    """carried: whether the adaptation goes on from clip to clip; ahead: whether frames are left to
    look ahead to."""
    found = {"pre_adapt_loss": BEFORE} if carried else {}
    found |= {"look_ahead_loss": AHEAD} if ahead else {}
    lead = next(iter(found), "post_adapt_loss")
    found |= {"post_adapt_loss": AFTER, "pre_adapt_loss": BEFORE}
    honest = {"leads": True}
    return {
        name: said | (honest if name == lead or said is AHEAD else {})
        for name, said in found.items()
    }
