"""A clip as the model sees it: which frames condition, adapt and score, and their latents."""

from dataclasses import dataclass, field

import torch

from common.data import Video
from common.errors import MisfitError, UsageError
from common.footage import read_footage
from common.stages import stage
from common.values import at_least


def add_arguments(group):
    own = "; by default the checkpoint's own"
    group.add_argument(
        "--anchor", type=at_least(1), metavar="N", changes="generation",
        help=f"index of the first generated frame{own}",
    )  # fmt: skip
    group.add_argument(
        "--cond-frames", type=at_least(1, 10_000), metavar="N", changes="generation",
        help=f"frames before the anchor that generation continues{own}",
    )  # fmt: skip
    group.add_argument(
        "--tta-frames", type=at_least(1, 10_000), metavar="N", changes="adaptation",
        help=f"frames before the anchor that adaptation sees{own}",
    )  # fmt: skip
    group.add_argument(
        "--context-latents", type=at_least(0), metavar="N", changes="adaptation",
        help=f"leading latents of those that stay clean; the rest is predicted{own}",
    )  # fmt: skip
    group.add_argument(
        "--gen-frames", type=at_least(1, 10_000), metavar="N", changes="generation",
        help=f"frames to generate and score{own}",
    )  # fmt: skip


def fill_window(args, geometry):
    """Puts the checkpoint's own window where no flag says otherwise."""
    for name, value in geometry.window.items():
        if getattr(args, name) is None:
            setattr(args, name, value)


def fitting_window(args, geometry):
    """Flags of a run with this anchor whose adaptation has no flags, as a baseline's, where the
    checkpoint's own window reaches before the clip."""
    latents = geometry.latents_filled(args.anchor)
    frames = geometry.frames_of(latents)
    if frames >= geometry.window["tta_frames"]:
        return []
    context = min(geometry.window["context_latents"], latents - 1)
    return ["--tta-frames", str(frames), "--context-latents", str(context)]


@dataclass(frozen=True)
class Window:
    """Frame indices of one clip. `anchor` is the first frame to be generated; nothing before it is
    scored, nothing from it on is seen by adaptation or conditioning."""

    anchor: int
    cond_frames: int
    tta_frames: int
    context_latents: int
    gen_frames: int
    held_out_latents: int  # the last of those after the context, for early stopping
    new_latents: int  # that hold the frames to generate
    future_latents: int  # whole ones that the scored frames fill
    future_frames: int  # frames of those

    @classmethod
    def of(cls, args, geometry):
        """Raises UsageError where the model's autoencoder would cut what the flags ask for."""
        counts = {}
        for name in ("cond_frames", "tta_frames"):
            flag, frames = f"--{name.replace('_', '-')}", getattr(args, name)
            try:
                counts[name] = geometry.latents_of(frames)
            except ValueError as error:
                raise MisfitError(f"{flag}: {error}") from error
            if frames > args.anchor:
                raise UsageError(
                    f"{flag} {frames} reaches before the clip: at most --anchor {args.anchor}"
                )
        known, seen = counts["cond_frames"], counts["tta_frames"]
        check_context(args, geometry, known, seen)
        whole = args.cond_frames + args.gen_frames
        filled = geometry.latents_filled(whole)
        return cls(
            **{name: getattr(args, name) for name in geometry.window},
            held_out_latents=held_out(seen - args.context_latents, args),
            new_latents=geometry.latents_covering(whole) - known,
            future_latents=filled - known,
            future_frames=geometry.frames_of(filled) - args.cond_frames,
        )

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


def check_context(args, geometry, known, seen):
    """`known` latents condition generation; of `seen` ones the first are adaptation's context."""
    lengths = geometry.context_lengths
    low = 0 if lengths is not None and 0 in lengths else 1  # without context where it is stated
    if not low <= args.context_latents < seen:
        least = geometry.frames_of(low + 1)
        fits = f"must be in {low}..{seen - 1}"
        right = fits if seen > low else f"needs --tta-frames {least} or more"
        raise MisfitError(
            f"--context-latents {right}, got {args.context_latents}: --tta-frames "
            f"{args.tta_frames} are {seen} latents"
        )
    if lengths is not None and args.context == "varying":
        raise MisfitError(
            f"--context varying: this model was made for {' or '.join(map(str, lengths))} latents "
            "of context"
        )
    if geometry.context_alone and args.context == "varying":
        raise MisfitError(
            "--context varying: latents of this model know the frames after them, so that only a "
            "context that was encoded alone may be shown"
        )
    for flag, latents in (("--context-latents", args.context_latents), ("--cond-frames", known)):
        if lengths is not None and latents not in lengths:
            raise MisfitError(
                f"{flag}: {latents} latents of context; this model was made for "
                f"{' or '.join(map(str, lengths))}"
            )


def held_out(targets, args):
    """A quarter of the target latents, at least one, where the run stops early or has a gate."""
    if not args.stop_every and args.gate is None:
        return 0
    flag = "--stop-every" if args.stop_every else "--gate"
    if targets < 2:
        raise UsageError(
            f"{flag} holds out a target latent and needs one more to adapt to; --tta-frames "
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
    beside: dict = field(default_factory=dict)  # frames like `truth` of other files, by column
    files: dict = field(default_factory=dict)  # of these, for the record: footage.Footage
    clean_future: torch.Tensor | None = None  # as `future`, of the file in column truth
    start: object = None  # where adaptation begins, as in common.start, where that is not its own


def load_clip(model, video, window, size, text, negative_text, seed, footage=None):
    """Encodes one video; reads it where its footage is not given."""
    costs = {}
    with stage(costs, "encode", model.device):
        footage = footage or read_footage(video, window, size)
        seen, truth = footage.frames.split([window.anchor - window.first, window.gen_frames])
        cond = seen[-window.cond_frames :]
        latents = encode(model, seen[-window.tta_frames :])
        context = latents[:, :, : window.context_latents]
        if model.geometry.context_alone and window.context_latents:
            first = seen[-window.tta_frames :][: model.geometry.frames_of(window.context_latents)]
            context = encode(model, first)[:, :, : window.context_latents]
        same = window.cond_frames == window.tta_frames
        cond_latents = latents if same else encode(model, cond)
        known = cond_latents.shape[2]
        future = encode_future(model, torch.cat([cond, truth]), window, known)
        clean, clean_future = footage.beside.get("truth"), None
        if clean is not None:
            clean_future = encode_future(model, clean, window, known)
    stop = latents.shape[2] - window.held_out_latents
    return Clip(
        video, window, seed, footage.sha256, footage.fps,
        context=context,
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
        beside={name: frames[-window.gen_frames :] for name, frames in footage.beside.items()},
        files=footage.files,
        clean_future=clean_future,
    )  # fmt: skip


def encode_future(model, frames, window, known):
    """Latents that the frames after the conditioning ones fill, of which `known` are these."""
    return encode(model, frames[: window.cond_frames + window.future_frames])[:, :, known:]


def encode(model, frames):  # (F, 3, H, W) -> (1, C, T, h, w)
    return model.encode(frames.transpose(0, 1)[None])


def mean_change(frames):
    """Mean absolute difference between successive frames (F, 3, H, W); 0 of a single one."""
    return float((frames[1:] - frames[:-1]).abs().mean()) if len(frames) > 1 else 0.0


def side_by_side(clip, frames):
    """Conditioning and what followed, truth left, generated right."""
    pair = [torch.cat([clip.cond_frames, x]) for x in (clip.truth, frames)]
    return torch.cat(pair, dim=3)
