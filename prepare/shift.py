"""A list of clips -> the same clips under a shift, and a manifest that keeps the clean truth.

    python -m prepare.shift data/mine/manifest.csv --kind noise --severity 3 --out data/mine_noise_3

What is drawn is drawn once for a clip, from its id and --kind, and is the same at every severity.
Ids, captions and sources stay: a run draws the noise that it draws for the clean list. The manifest
names in its column truth the clean file of the same frames, which a run scores against too
(psnr_db_clean, ...):

    noise, blur, dark, contrast, colour-cast, jpeg, video-codec   the clip as it was
    low-frame-rate, letterbox    the clip as it was: all frames, and what is under the bars
    speed, flip, rotation        the shifted clip itself, in which nothing is damaged: at its pace,
                                 mirrored, tilted; the two scores are the same

Flip is left and right at severity 1 and 2, top and bottom at 3 and 4, both at 5. Clips are written
as RGB without loss, so that no codec adds a shift of its own; noise then takes about 3 bytes a
pixel. Give --size the model's: scaling by a run would remove a part of noise, blur and JPEG. The
clean file is SOURCE's own, or a copy at --size in clean/.
"""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from runs.exits import run_script  # first: signals, and how torch's threads wait

# isort: split
import av
import numpy as np
from tqdm import tqdm

from common.data import Video, real, sha256
from common.errors import UsageError, VideoError
from common.values import at_least, folder
from common.video import decode, fit, opened, refuse_lost, upright
from prepare.flags import clip_size
from prepare.make import FASTEST, SLOWEST
from prepare.shifts import KINDS, OWN_TRUTH, shifted
from runs.lists import BESIDE, list_videos, write_list
from runs.names import printable
from runs.parser import Parser
from runs.results import read_json, replace_file, write_json

LOSSLESS = {"qp": "0", "threads": "1"}
LARGEST = 1 << 31  # bytes of a clip's frames
RULES = "shift.json"  # what a folder was made with


@dataclass(frozen=True)
class Footage:
    frames: np.ndarray  # (F, H, W, 3) 8 bits
    fps: float
    as_stored: bool  # whether the file has these frames, unscaled


def read(path, size):
    """All frames of a clip, upright, at `size` (height, width) or their own. Raises VideoError."""
    frames, total = [], 0
    try:
        with opened(path) as (container, stream):
            fps, aspect = float(stream.average_rate or 24), stream.sample_aspect_ratio
            for frame in decode(container, stream, path):
                own = upright(frame, aspect)
                frames.append(in_8_bits(fit(frame, aspect, size or own)))
                total += frames[-1].nbytes
                if total > LARGEST:
                    raise VideoError(f"{path}: too long to be shifted whole; see prepare.clips")
            refuse_lost(stream, len(frames))
    except av.FFmpegError as error:
        raise VideoError(f"{path}: damaged ({error.strerror})") from error
    if not frames or not SLOWEST <= fps <= FASTEST:
        raise VideoError(f"{path}: damaged: {len(frames)} frames at {fps:g} a second")
    return Footage(np.stack(frames), fps, upright(frame, 1) == (size or own))


def in_8_bits(picture):  # (3, H, W) in 0..1 -> (H, W, 3)
    return (picture * 255).round().byte().permute(1, 2, 0).numpy()


def write(path, frames, fps):
    """frames (F, H, W, 3) 8 bits as H.264 in RGB, which decodes to the same bits."""

    def encode(temporary):
        with av.open(str(temporary), "w", format="mp4") as container:
            rate = Fraction(fps).limit_denominator(1001)
            stream = container.add_stream("libx264rgb", rate=rate, options=LOSSLESS)
            stream.pix_fmt = "rgb24"
            stream.height, stream.width = frames.shape[1:3]
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())

    path.parent.mkdir(exist_ok=True)
    replace_file(path, encode)


def shifted_video(video, args):
    """The video of the shifted manifest, its clip written. Raises VideoError where it cannot be."""
    clean = read(video.path, args.size)
    frames = shifted(clean.frames, args.kind, args.severity, args.seed, video.id, clean.fps)
    if len(frames) < args.min_frames:
        raise VideoError(
            f"has {len(clean.frames)} frames, under this shift {len(frames)}; --min-frames is "
            f"{args.min_frames}"
        )
    name = f"{video.id}.mp4"
    path, truth = args.out / "clips" / name, video.path
    write(path, frames, clean.fps)
    if args.kind in OWN_TRUTH:
        truth = path
    elif not clean.as_stored:
        truth = args.out / "clean" / name
        write(truth, clean.frames, clean.fps)
    facts = {"frames": len(frames), "fps": round(clean.fps, 3), "sha256": sha256(path)}
    facts |= {"width": frames.shape[2], "height": frames.shape[1]}
    facts |= {"shift": args.kind, "severity": args.severity, "truth_sha256": sha256(truth)}
    earlier = video.columns.get("shift") in KINDS and video.columns.get("original_sha256")
    facts["original_sha256"] = earlier or sha256(video.path)  # what no report may be chosen on
    # what lay beside the clean file is neither relative to this folder nor under the shift
    gone = {name for key in BESIDE for name in (key, f"{key}_sha256")}
    columns = {name: text for name, text in video.columns.items() if name not in gone}
    columns |= {"source": video.source} | facts
    return Video(video.id, path, video.caption, columns, {"truth": truth})


def open_folder(videos, digest, args):
    """Raises UsageError where --out holds something else, or what is read."""
    out, rules = args.out, {"kind": args.kind, "severity": args.severity, "seed": args.seed}
    rules |= {"size": args.size and list(args.size), "min_frames": args.min_frames, "list": digest}
    made = read_json(out / RULES)
    if made != rules and (made is not None or (out.is_dir() and any(out.iterdir()))):
        what = f"was made with {made}" if made else "is not empty"
        raise UsageError(f"--out {out}: {what}; choose another folder")
    own = real(out)
    if any(real(path).is_relative_to(own) for path in [args.source, *(v.path for v in videos)]):
        raise UsageError(f"--out {out}: holds SOURCE {args.source}; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / RULES, rules)


def add_arguments(parser):
    parser.add_argument("source", type=Path, metavar="SOURCE", help="manifest, folder or video")
    parser.add_argument("--kind", choices=[*KINDS], required=True, help="what is done to the clips")
    parser.add_argument(
        "--severity", type=at_least(1, 5), required=True, metavar="1..5", help="how much of it"
    )
    parser.add_argument(
        "--out", type=folder, required=True, metavar="DIR", help="clips and manifest"
    )
    parser.add_argument(
        "--size", type=clip_size, metavar="WxH",
        help="scale to cover and crop first; the clip's own where not given",
    )  # fmt: skip
    parser.add_argument(
        "--min-frames", type=at_least(1), default=46,
        help="clips that are shorter then are skipped: anchor + generated frames (default: 46)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=42, help="of what is drawn for each clip")


def main():
    parser = Parser(__doc__, "%(prog)s SOURCE --kind KIND --severity 1..5 --out DIR [flags]")
    add_arguments(parser)
    args = parser.parse_args()
    videos, digest = list_videos(args.source, flag="SOURCE", allow_empty=True)
    open_folder(videos, digest, args)
    done = []
    for video in tqdm(videos, f"{args.kind} {args.severity}", unit="clip", disable=None):
        try:
            done.append(shifted_video(video, args))
        except VideoError as error:
            print(printable(f"skipped {video.id}: {error}"))
    if not done:
        print(f"none of {len(videos)} clips can take --kind {args.kind}; no manifest is written")
        (args.out / "manifest.csv").unlink(missing_ok=True)
        return 1
    write_list(args.out / "manifest.csv", done)
    print(f"{len(done)} of {len(videos)} clips: {args.out / 'manifest.csv'}")
    return 0 if len(done) == len(videos) else 3


if __name__ == "__main__":
    run_script(main)
