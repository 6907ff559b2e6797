"""What is kept on disk between runs: embeddings of prompts, references and latents of clips."""

import hashlib
import os
import sys
from importlib.metadata import version
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from common import data, video
from common.clip import encode_frames
from common.data import sha256
from common.evaluate import SCORES
from common.identity import fingerprint
from common.results import are_references, read_json, replace_file, write_json


def default_folder():
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adasteer"


# what latents and true frames depend on beside weights and files
READING = [sha256(module.__file__) for module in (data, video)] + [
    version(name) for name in ("torch", "av", "diffusers")
]


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

    def load_json(self, kind, facts):
        try:
            return read_json(self._path(kind, facts, "json"))
        except OSError:  # not ours to read
            return None

    def save_json(self, kind, facts, content):
        path = self._path(kind, facts, "json")
        self._write(path, lambda: write_json(path, content))

    def _write(self, path, write):
        """A cache that cannot be written costs time in the next run and nothing else."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write()
        except (OSError, SafetensorError) as error:
            if not self.complained:
                print(f"--cache {self.folder}: not written ({error})", file=sys.stderr)
            self.complained = True

    def encoder(self, model, checkpoint, footage, window):
        """A function for load_clip that encodes what is not here yet."""
        facts = [
            fingerprint(checkpoint / "vae"), footage.sha256, window, model.frame_size,
            model.device.type, *READING,
        ]  # fmt: skip

        def encode(frames, name):
            found = self.load("latents", [*facts, name])
            if found is None:
                found = {"latents": encode_frames(model, frames)}
                self.save("latents", [*facts, name], found)
            return found["latents"].to(model.device)

        return encode

    def _path(self, kind, facts, suffix="safetensors"):
        digest = hashlib.sha256("\n".join(map(str, facts)).encode()).hexdigest()
        return self.folder / kind / f"{digest}.{suffix}"


class References:
    """Scores of a clip's two references, the same for every run over it."""

    def __init__(self, cache, args, model, lpips):
        vae = fingerprint(args.checkpoint / "vae")
        self.cache = cache
        self.facts = [vae, model.frame_size, model.device.type, lpips, *SCORES, *READING]

    def load(self, clip):
        found = self.cache.load_json("references", self._facts(clip))
        return found if found and are_references(found) else None

    def save(self, clip, found):
        self.cache.save_json("references", self._facts(clip), found)

    def _facts(self, clip):
        return [*self.facts, clip.video_sha256, clip.window.indices()]
