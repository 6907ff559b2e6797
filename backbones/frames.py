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
    limits: dict = field(default_factory=dict)
    sizes: tuple | None = None

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


@dataclass(frozen=True)
class Chunks:
    """Of an autoencoder that takes frames in chunks, each of which begins with the last frame of
    the one before: one frame is one latent, and step * n + 1 frames are n chunks of `per` latents.
    A number of latents that fills no chunk counts as the next one that does."""

    class_name: str
    step: int
    per: int
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
    context_alone: bool = True  # a chunk's latents know all of its frames
    trained_contexts: tuple | None = None

    @property
    def depth(self):
        return sum(map(len, self.stacks))

    def frames_of(self, latents):
        return latents if latents < 2 else 1 + self.step * -(-latents // self.per)

    def latents_of(self, frames):
        if frames == 1 or (frames > 1 and (frames - 1) % self.step == 0):
            return self.latents_filled(frames)
        fit = self.frames_of(max(1, self.latents_filled(frames)))
        near = f"{fit} or {fit + self.step}" if frames > fit else f"{fit}"
        raise ValueError(
            f"frames must number 1 or {self.step}k + 1, got {frames}: the autoencoder would drop "
            f"the last of them; try {near}"
        )

    def latents_covering(self, frames):
        return max(0, frames) if frames < 2 else self.per * -(-(frames - 1) // self.step)

    def latents_filled(self, frames):
        chunks = (frames - 1) // self.step
        return self.per * chunks if chunks > 0 else int(frames > 0)
