"""The frames of an autoencoder and their latents; see Geometry in backbones/contract.py."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class EveryK:
    """Of an autoencoder that takes k * n + 1 frames: the first is a latent of its own, every k
    after it are `per` others. Where the first has none (first_alone is false), frames come in n
    chunks, each of which begins with the last frame of the one before; one frame alone is a latent
    still, and a number of latents that fills no chunk counts as the next one that does."""

    class_name: str
    k: int
    size: tuple
    size_multiple: int
    fps: float
    window: dict
    stacks: tuple = field(kw_only=True)
    embedding_width: int = field(kw_only=True)
    hidden_width: int = field(kw_only=True)
    sampling: dict = field(default_factory=dict)
    context_lengths: tuple | None = None
    sampling_ranges: dict = field(default_factory=dict)
    context_alone: bool = False
    trained_contexts: tuple | None = None
    limits: dict = field(default_factory=dict)
    sizes: tuple | None = None
    per: int = 1
    first_alone: bool = True

    @property
    def depth(self):
        return sum(map(len, self.stacks))

    def frames_of(self, latents):
        return latents if latents < 2 else 1 + self.k * -(-(latents - self.first_alone) // self.per)

    def latents_of(self, frames):
        fit = self.frames_of(max(1, self.latents_filled(frames)))
        if fit != frames:
            near = f"{fit} or {fit + self.k}" if frames > fit else f"{fit}"
            raise ValueError(
                f"frames must number {self.k}k + 1, got {frames}: the autoencoder would drop the "
                f"last of them; try {near}"
            )
        return self.latents_filled(frames)

    def latents_covering(self, frames):
        return self._latents(-(-(frames - 1) // self.k)) if frames > 0 else 0

    def latents_filled(self, frames):
        return self._latents((frames - 1) // self.k) if frames > 0 else 0

    def _latents(self, n):  # of k * n + 1 frames
        return self.per * n + self.first_alone if n else 1
