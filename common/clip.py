"""A clip as the model sees it: which frames condition, adapt and score, and their latents."""

from dataclasses import dataclass, field, replace

import torch

from common.data import LATENT_FRAMES, Video, file_facts, sha256
from common.errors import UsageError, VideoError
from common.stages import stage
from common.video import read_frames

TTA_FRAMES, CONTEXT_LATENTS = 29, 4  # where no flag says otherwise


@dataclass(frozen=True)
class Window:
    """Frame indices of one clip. `anchor` is the first frame to be generated; nothing before it is
    scored, nothing from it on is seen by adaptation or conditioning."""

    anchor: int
    cond_frames: int
    tta_frames: int
    context_latents: int
    gen_frames: int
    held_out_latents: int = 0  # the last of those after the context, for early stopping

    @classmethod
    def of(cls, args):
        names = [name for name in cls.__dataclass_fields__ if name != "held_out_latents"]
        window = cls(**{name: getattr(args, name) for name in names})
        for name in ("cond_frames", "tta_frames"):
            flag, count = f"--{name.replace('_', '-')}", getattr(window, name)
            if count % LATENT_FRAMES != 1:
                near = (count - 1) // LATENT_FRAMES * LATENT_FRAMES + 1
                raise UsageError(
                    f"{flag} must be 4k + 1 (1, 5, 9, 13, ...), got {count}: the autoencoder would "
                    f"drop the last frames; try {near}"
                )
            if count > window.anchor:
                raise UsageError(
                    f"{flag} {count} reaches before the clip: at most --anchor {window.anchor}"
                )
        latents = 1 + (window.tta_frames - 1) // LATENT_FRAMES
        if not 1 <= window.context_latents < latents:
            raise UsageError(
                f"--context-latents must be in 1..{latents - 1}, got {window.context_latents}: "
                f"--tta-frames {window.tta_frames} are {latents} latents"
            )
        return replace(window, held_out_latents=held_out(latents - window.context_latents, args))

    @property
    def first(self):
        return self.anchor - max(self.cond_frames, self.tta_frames)

    @property
    def stop(self):
        return self.anchor + self.gen_frames

    def indices(self):  # half-open, as in Python
        return {
            "tta": [self.anchor - self.tta_frames, self.anchor],
            "conditioning": [self.anchor - self.cond_frames, self.anchor],
            "generated": [self.anchor, self.stop],
        }

    @property
    def new_latents(self):
        return -(-self.gen_frames // LATENT_FRAMES)

    @property
    def future_latents(self):
        """Whole ones that the scored frames fill."""
        return self.gen_frames // LATENT_FRAMES


def held_out(targets, args):
    """A quarter of the target latents, at least one, where the run stops early."""
    if not args.stop_every:
        return 0
    if targets < 2:
        raise UsageError(
            f"--stop-every holds out a target latent and needs one more to adapt to; --tta-frames "
            f"{args.tta_frames} and --context-latents {args.context_latents} leave {targets}"
        )
    return max(1, targets // 4)


@dataclass(frozen=True)
class Clip:
    """Latents (1, C, T, h, w) on the model's device; frames (F, 3, H, W) in 0..1 on the CPU."""

    video: Video
    window: Window
    seed: int
    video_sha256: str
    fps: float
    context: torch.Tensor  # clean latents that the adaptation's targets are predicted from
    target: torch.Tensor  # latents under the adaptation's loss
    held_out: torch.Tensor  # latents after those, for early stopping; none without it
    cond_latents: torch.Tensor  # clean latents that generation continues
    cond_frames: torch.Tensor
    truth: torch.Tensor  # the frames that really followed, gen_frames of them
    future: torch.Tensor  # latents of those, as far as they fill whole ones; for scoring alone
    text: dict  # what the prompt became, for the model alone to read
    negative_text: dict
    costs: dict = field(default_factory=dict)  # of encoding, as in common.stages
    preflight: dict = field(default_factory=dict)
    other: "Clip | None" = None  # another video, on which forgetting is measured
    video_file: dict = field(default_factory=dict)  # size and time of the file that was read


@dataclass(frozen=True)
class Footage:
    frames: torch.Tensor  # (F, 3, H, W) in 0..1: those seen, then the truth
    fps: float
    sha256: str
    file: dict = field(default_factory=dict)


def read_footage(video, window, size):
    """Raises VideoError when the file is unreadable, too short or replaced meanwhile."""
    try:
        before = file_facts(video.path)
    except (OSError, ValueError):
        before = None  # read_frames says why
    frames, fps = read_frames(video.path, window.first, window.stop, size)
    try:
        digest, after = sha256(video.path), file_facts(video.path)
    except OSError as error:
        raise VideoError(f"{video.path}: cannot be read ({error})") from error
    if before != after:
        raise VideoError(f"{video.path}: was changed while it was read")
    return Footage(frames, fps, digest, after)


def load_clip(model, video, window, size, text, negative_text, seed, footage=None):
    """Encodes one video; reads it where its footage is not given."""
    costs = {}
    with stage(costs, "encode", model.device):
        footage = footage or read_footage(video, window, size)
        seen, truth = footage.frames.split([window.anchor - window.first, window.gen_frames])
        cond = seen[-window.cond_frames :]
        latents = encode(model, seen[-window.tta_frames :])
        same = window.cond_frames == window.tta_frames
        cond_latents = latents if same else encode(model, cond)
        followed = torch.cat([cond, truth[: LATENT_FRAMES * window.future_latents]])
        future = encode(model, followed)[:, :, cond_latents.shape[2] :]
    stop = latents.shape[2] - window.held_out_latents
    return Clip(
        video, window, seed, footage.sha256, footage.fps,
        context=latents[:, :, : window.context_latents],
        target=latents[:, :, window.context_latents : stop],
        held_out=latents[:, :, stop:],
        cond_latents=cond_latents,
        cond_frames=cond,
        truth=truth,
        future=future,
        text={name: part.to(model.device) for name, part in text.items()},
        negative_text={name: part.to(model.device) for name, part in negative_text.items()},
        costs=costs,
        video_file=footage.file,
    )  # fmt: skip


def encode(model, frames):  # (F, 3, H, W) -> (1, C, 1 + F // 4, h, w)
    return model.encode(frames.transpose(0, 1)[None])


def mean_change(frames):
    """Mean absolute difference between successive frames (F, 3, H, W); 0 of a single one."""
    return float((frames[1:] - frames[:-1]).abs().mean()) if len(frames) > 1 else 0.0


def side_by_side(clip, frames):
    """Conditioning and what followed, truth left, generated right."""
    pair = [torch.cat([clip.cond_frames, x]) for x in (clip.truth, frames)]
    return torch.cat(pair, dim=3)
