"""Videos with states and actions -> clips of V-JEPA 2 features, for vjepa_tta.py.

    python -m prepare.features recordings.csv --encoder vjepa2-vitg-fpc64-256 --out data/mine
    python -m prepare.features droid/1.0.1 --encoder vjepa2-vitg-fpc64-256 --out data/droid

SOURCE is a CSV with filename,states: the second names a .npy or .csv with a row for each frame of
the video. Columns actions and extrinsics may name more such files, id, source and category say what
the video is. Without actions they are the differences of states, which are then x, y, z, Euler
angles and gripper. Or SOURCE is a folder of DROID's trajectories, as published.

As in the original's training each frame is encoded by itself, doubled to fill a tubelet.
"""

import csv
import hashlib
from collections import Counter
from pathlib import Path

from runs.exits import run_script  # first: signals, and how torch's threads wait

# isort: split
import av
import torch
from safetensors.torch import save_file
from tqdm import tqdm

from backbones import CheckpointError
from common.data import file_facts, sha256
from common.errors import UsageError, VideoError
from common.loading import pick_device
from common.values import at_least, folder
from common.video import decode, fit, opened, refuse_lost
from predictors.encoder import encode, load_encoder
from prepare.flags import frame_rate
from prepare.make import FASTEST, SLOWEST, without_path
from prepare.recordings import CAMERAS, recordings, stride, taken
from runs.names import printable
from runs.parser import Parser
from runs.results import read_json, replace_file, write_json

COLUMNS = "id source category first_frame frames fps sha256".split()


def windows(path, args, size):
    """(indices, pictures (T, 3, size, size), frames a second) of stretches of args.frames frames
    that follow one another, at most args.per_video; as close to args.fps as whole frames go. Raises
    VideoError where not even the first is there."""
    indices, pictures, made = [], [], 0
    with opened(path) as (container, stream):
        rate = float(stream.average_rate or 0)
        if not SLOWEST <= rate <= FASTEST:
            raise VideoError(f"damaged: {rate:g} frames a second")
        step, index = stride(rate, args.fps), -1
        for index, frame in enumerate(decode(container, stream, path)):
            if index % step:
                continue
            indices.append(index)
            pictures.append(fit(frame, stream.sample_aspect_ratio, (size, size)))
            if len(indices) == args.frames:
                yield indices, torch.stack(pictures), rate / step
                indices, pictures, made = [], [], made + 1
            if made == args.per_video:
                return
        refuse_lost(stream, index + 1)
        if index < 0:
            raise VideoError("damaged: no frame in it")
    if not made:
        raise VideoError(
            f"short: {len(indices)} frames at {rate / step:g} fps, {args.frames} needed"
        )


def make_clips(recording, encoder, args):
    """Writes a recording's clips; gives their rows of the manifest, or {"rejected": why}."""
    rows = []
    try:
        arrays = recording.arrays()
        for indices, pictures, fps in windows(recording.video, args, encoder.config.crop_size):
            clip = taken(arrays, indices)
            name = f"{recording.id}_{indices[0]:06d}"
            path = args.out / "clips" / f"{name}.safetensors"
            tensors = {key: torch.from_numpy(table) for key, table in clip.items()}
            tensors["features"] = encode(encoder, pictures).contiguous()
            replace_file(path, lambda temporary, x=tensors: save_file(x, temporary))
            rows.append({
                "id": name, "source": recording.source, "category": recording.category,
                "first_frame": indices[0], "frames": len(indices), "fps": round(fps, 3),
                "sha256": sha256(path),
            })  # fmt: skip
    except (VideoError, av.FFmpegError) as error:
        for row in rows:
            (args.out / "clips" / f"{row['id']}.safetensors").unlink(missing_ok=True)
        reason = without_path(str(error), recording.video)
        known = reason.startswith(("short:", "damaged:", "width:"))
        return {"rejected": reason if known else f"damaged: {reason}"}
    return {"clips": rows}


def verdict_of(recording, encoder, args):
    """Makes the clips, unless that was done before and they are still there."""
    path = args.out / "verdicts" / f"{recording.id}.json"
    asked = [repr(recording), facts_of(recording)]
    found = read_json(path)
    if isinstance(found, dict) and found.get("recording") == asked and holds(found, args.out):
        return found["verdict"]
    verdict = make_clips(recording, encoder, args)
    write_json(path, {"recording": asked, "verdict": verdict})
    return verdict


def facts_of(recording):
    """Of the files that are read: an edited one makes other clips."""
    files = [recording.video, recording.trajectory, *recording.files.values()]
    try:
        return [file_facts(path) for path in files if path]
    except (OSError, ValueError):  # its verdict says so
        return None


def holds(found, out):
    verdict = found.get("verdict")
    if not isinstance(verdict, dict) or "rejected" in verdict:
        return isinstance(verdict, dict)
    for row in verdict.get("clips", ()):
        path = out / "clips" / f"{row['id']}.safetensors"
        if not path.is_file() or sha256(path) != row["sha256"]:
            return False
    return bool(verdict.get("clips"))


def same_settings(args):
    """Raises UsageError where --out holds clips that were made otherwise."""
    digest = hashlib.sha256((args.encoder / "config.json").read_bytes())
    for path in sorted(args.encoder.glob("*.safetensors")):
        digest.update(sha256(path).encode())
    asked = {"source": args.source.name, "encoder": digest.hexdigest()}
    asked |= {name: getattr(args, name) for name in ("frames", "fps", "per_video", "camera")}
    path, others = args.out / "verdicts" / ".settings.json", ("manifest.csv", "clips")
    if not path.exists() and any((args.out / name).exists() for name in others):
        raise UsageError(f"--out {args.out}: holds clips that this did not make; choose another")
    path.parent.mkdir(parents=True, exist_ok=True)
    if (found := read_json(path) or asked) != asked:
        raise UsageError(f"--out {args.out}: was made with {found}; choose another folder")
    write_json(path, asked)
    (args.out / "clips").mkdir(exist_ok=True)


def finish(verdicts, args):
    """The manifest of all clips, and what was rejected; gives the exit code."""
    rejected = Counter(v["rejected"].partition(":")[0] for v in verdicts if "rejected" in v)
    for kind, count in rejected.most_common():
        first = next(v["rejected"] for v in verdicts if v.get("rejected", "").startswith(kind))
        print(printable(f"rejected {count}: {kind}, as{first.removeprefix(kind + ':')}"))
    rows, path = [row for v in verdicts for row in v.get("clips", ())], args.out / "manifest.csv"
    if not rows:
        path.unlink(missing_ok=True)
        raise UsageError(f"SOURCE {args.source}: no video passes; {args.out}/verdicts says why")
    replace_file(path, lambda temporary: write_manifest(temporary, rows))
    print(f"{len(rows)} clips, {len({row['source'] for row in rows})} sources: {path}")
    return 0


def write_manifest(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def parse_args():
    parser = Parser(__doc__, "%(prog)s SOURCE --encoder FOLDER --out DIR [flags]")
    parser.add_argument("source", type=Path, metavar="SOURCE", help="a CSV, or DROID's folder")
    parser.add_argument(
        "--encoder", type=folder, required=True, metavar="FOLDER",
        help="a V-JEPA 2 release in transformers' layout; frames have its crop size",
    )  # fmt: skip
    parser.add_argument("--out", type=folder, required=True, metavar="DIR", help="clips, manifest")
    parser.add_argument("--frames", type=at_least(2), default=8, help="frames of a clip, T + 1")
    parser.add_argument("--fps", type=frame_rate, default=4.0, help="frames taken a second")
    parser.add_argument(
        "--per-video", type=at_least(1), default=1, metavar="N",
        help="clips of one video, at most; they follow one another",
    )  # fmt: skip
    parser.add_argument("--camera", choices=CAMERAS, default="left", help="of DROID's videos")
    parser.add_argument("--device", default="auto", help="where the encoder works")
    return parser.parse_args()


def main():
    args = parse_args()
    found = recordings(args.source, args.camera)
    device = pick_device(args.device)
    try:
        encoder = load_encoder(args.encoder, device)
    except CheckpointError as error:
        raise UsageError(f"--encoder {error}") from error
    same_settings(args)
    bar = tqdm(found, "encoding", unit="video", disable=None)
    return finish([verdict_of(recording, encoder, args) for recording in bar], args)


if __name__ == "__main__":
    run_script(main)
