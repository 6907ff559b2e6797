"""Prompts as the model takes them: from the cache, or embedded a number at a time."""

import itertools
from importlib.metadata import version

from backbones import CheckpointError
from common.errors import UsageError
from runs.identity import fingerprint

TOGETHER = 256  # prompts that the text encoder embeds once it is loaded


class Prompts:
    """What a prompt becomes, {name: tensor} on the CPU, when it is asked for.

    The text encoder is loaded only where the cache lacks a prompt, and then embeds those that will
    be asked for next too; they are kept until the next time it is loaded, since the cache may not
    be writable. embedded: how many it has embedded.
    """

    def __init__(self, model, cache, checkpoint):
        parts = [fingerprint(checkpoint / name) for name in model.prompt_folders]
        versions = map(version, ("transformers", "torch", "ftfy"))
        self.facts = [*parts, *model.prompt_settings, *versions]
        self.model, self.cache, self.kept, self.embedded = model, cache, {}, 0

    def get(self, prompt, following=()):
        """`following`: the prompts that will probably be asked for next, in their order."""
        return self._known(prompt) or self._embed(prompt, following)

    def _known(self, prompt):
        if prompt in self.kept:
            return self.kept[prompt]
        return self.cache.load("prompts", [*self.facts, prompt])

    def _embed(self, prompt, following):
        near = dict.fromkeys(itertools.islice(following, TOGETHER))
        missing = [prompt, *(p for p in near if p != prompt and not self._known(p))]
        self.kept = {}
        try:
            for text, found in zip(missing, self.model.embed_each(missing), strict=True):
                self.kept[text] = found
                self.cache.save("prompts", [*self.facts, text], found)
        except CheckpointError as error:
            raise UsageError(f"--checkpoint: {error}") from error
        self.embedded += len(missing)
        return self.kept[prompt]
