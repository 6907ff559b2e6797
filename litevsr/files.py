"""An adapter's folder: config.json and adapter.safetensors."""

import json

from safetensors.torch import load_file, save_file

from common.errors import UsageError
from litevsr.adapter import StateAwareAdapter
from runs.results import replace_file, write_json

CONFIG, TENSORS = "config.json", "adapter.safetensors"
WEIGHTS = "checkpoint_sha256"  # of the frozen model, in the configuration


def save_adapter(args, model, adapter, iterations, weights):
    """float32 tensors, and what the adapter was made for; weights: the checkpoint's fingerprint."""
    args.out.mkdir(parents=True, exist_ok=True)
    config = {
        "adapter": adapter.config,
        "model": model.geometry.class_name,
        "scale": args.scale,
        "frames": args.frames,
        "size": list(args.size or model.geometry.size),
        "iterations": iterations,
        WEIGHTS: weights,
    }
    tensors = {name: value.contiguous().cpu() for name, value in adapter.state_dict().items()}
    replace_file(args.out / TENSORS, lambda temporary: save_file(tensors, temporary))
    write_json(args.out / CONFIG, config)


def load_adapter(folder, model, flag="--adapter"):
    """The adapter of a folder for that model, and its config. Raises UsageError."""
    try:
        config = json.loads((folder / CONFIG).read_text())
        adapter = StateAwareAdapter(**config["adapter"])
        adapter.load_state_dict(load_file(folder / TENSORS))
    except Exception as error:  # of any kind: files of others
        words = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{flag} {folder}: no adapter of litevsr.train ({words})") from error
    made, own = config["model"], model.geometry.class_name
    measures = (model.latent_channels, model.hidden_width, model.depth)
    if made != own or measures != tuple(adapter.config[k] for k in ("channels", "width", "depth")):
        raise UsageError(f"{flag} {folder}: was made for another model, a {made}; this is {own}")
    return adapter.requires_grad_(False).eval().to(model.device), config
