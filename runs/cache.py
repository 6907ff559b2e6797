"""What is kept on disk between runs: embeddings of prompts."""

import hashlib
import os
import sys
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from common.values import folder
from runs.results import replace_file


def add_arguments(group):
    group.add_argument(
        "--cache", type=folder, metavar="FOLDER", changes=None,
        help="prompts embedded once and for all; ~/.cache/adasteer where not given",
    )  # fmt: skip


def default_folder():
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adasteer"


class Cache:
    """Files named by the SHA-256 of everything that their tensors depend on."""

    def __init__(self, folder):
        self.folder, self.complained = folder or default_folder(), False

    def load(self, kind, facts):
        """{name: tensor}, or None where there is none yet."""
        try:
            return load_file(self._path(kind, facts))
        except (OSError, SafetensorError):  # not there, or cut off by a full disk
            return None

    def save(self, kind, facts, tensors):
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        path = self._path(kind, facts)
        self._write(path, lambda: replace_file(path, lambda new: save_file(tensors, new)))

    def _write(self, path, write):
        """A cache that cannot be written costs time in the next run and nothing else."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write()
        except (OSError, SafetensorError) as error:
            if not self.complained:
                print(f"--cache {self.folder}: not written ({error})", file=sys.stderr)
            self.complained = True

    def _path(self, kind, facts):
        digest = hashlib.sha256("\n".join(map(str, facts)).encode()).hexdigest()
        return self.folder / kind / f"{digest}.safetensors"
