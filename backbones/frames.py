"""The frames of an autoencoder and their latents; see Geometry in backbones/contract.py."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class EveryK:
    """Of an autoencoder that takes k * n + 1 frames: the first is a latent of its own, every k
    after it are another."""

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

    @property
    def depth(self):
        return sum(map(len, self.stacks))

    def frames_of(self, latents):
        return 1 + self.k * (latents - 1) if latents else 0

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
        return 1 + -(-(frames - 1) // self.k) if frames > 0 else 0

    def latents_filled(self, frames):
        return 1 + (frames - 1) // self.k if frames > 0 else 0
