"""Named settings of the predictor's adaptation."""

USUAL = {"mode": "rollout", "optimizer": "adamw", "weight_decay": 0.01}
PRESETS = {
    # the rows of the study
    "conservative": USUAL | {"adapt": "layernorm", "steps": 1, "lr": 1e-4, "grad_clip": 1.0},
    "stronger": USUAL | {"adapt": "layernorm", "steps": 5, "lr": 5e-4, "grad_clip": 5.0},
    "extended": USUAL | {"adapt": "layernorm+attn_proj", "steps": 5, "lr": 2e-4, "grad_clip": 5.0},
    # arXiv 2606.32026, without what it adapts of the encoder: features are made before
    "adajepa": {
        "adapt": "last_layer", "mode": "teacher", "predict_frames": 5, "steps": 1,
        "optimizer": "adam", "lr": 5e-4, "grad_clip": 0.0,
    },
}  # fmt: skip


def fill(args):
    """Gives the flags that are None the values of args.preset."""
    for name, value in PRESETS[args.preset].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
