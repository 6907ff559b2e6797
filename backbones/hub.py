"""Checkpoints by their names on the Hugging Face hub: out of its local cache, or downloaded."""

import re
from pathlib import Path

from backbones import TRANSFORMERS, CheckpointError
from backbones import opensora2_configs as opensora2
from backbones.configs import check_files

RELEASES = (
    "meituan-longcat/LongCat-Video",
    "Skywork/SkyReels-V2-DF-1.3B-540P-Diffusers",
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
    "Lightricks/LTX-Video-0.9.5",
    "zai-org/CogVideoX-5b-I2V",
)
HINT = "a release is fetched by " + " or ".join(f"`hf download {name}`" for name in RELEASES)
NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # owner/name
# what a backbone reads of any layout; no demonstrations, nor weights of other kinds
PARTS = (*TRANSFORMERS, "vae", "text_encoder", "tokenizer", "scheduler")
KINDS = ("json", "safetensors", "model", "txt")
FILES = [
    "model_index.json", opensora2.DIT, opensora2.VAE,
    *(f"{part}/*.{kind}" for part in (*PARTS, opensora2.T5, opensora2.CLIP) for kind in KINDS),
]  # fmt: skip


def hub_folder(name, download):
    """The folder of the hub's cache that holds the checkpoint `owner/name`. Nothing is fetched but
    with `download`, and only what the cache lacks. Raises CheckpointError."""
    folder = cached(name)
    if folder is None and not download:
        raise CheckpointError(
            f"{name}: no such folder, and no whole checkpoint of this name in the Hugging Face "
            f"cache, where --download would put it; {HINT}"
        )
    return folder or downloaded(name)


def cached(name):
    from huggingface_hub import errors, snapshot_download  # slow, and seldom needed

    try:
        folder = snapshot_download(name, allow_patterns=FILES, local_files_only=True)
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        return None
    return Path(folder) if is_whole(Path(folder)) else None


def downloaded(name):
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=FILES))
    except Exception as error:  # of any kind: the network's, the server's, the disk's
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{name} cannot be downloaded: {reason}") from error
    if not is_whole(folder):
        raise CheckpointError(f"{name} of the Hugging Face hub holds no checkpoint that is known")
    return folder


def is_whole(folder):
    """Whether a backbone finds its folders and the weights in them."""
    checks = [lambda part=part: check_files(folder, part) for part in TRANSFORMERS]
    return any(map(passes, [*checks, lambda: opensora2.check_files(folder)]))


def passes(check):
    try:
        check()
    except CheckpointError:
        return False
    return True
