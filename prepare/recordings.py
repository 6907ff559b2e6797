"""Videos with what was done in them: a CSV that names files of states and actions, or DROID's
folders. Which frames are taken, and what action leads from one to the next.
"""

import csv
import json
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from common.errors import UsageError, VideoError
from runs.lists import read_csv
from runs.names import unusable, usable

ARRAYS = ("states", "actions", "extrinsics")
POSE = 7  # x, y, z, three Euler angles, gripper
CAMERAS = ("left", "right")
STEREO = "left"  # which of a camera's two extrinsics the original reads


@dataclass(frozen=True)
class Recording:
    """A video and where its arrays are: a trajectory.h5, or a file for each name of ARRAYS."""

    id: str
    video: Path
    source: str  # what statistics cluster by
    category: str
    files: dict = field(default_factory=dict)
    trajectory: Path | None = None

    def arrays(self):
        """{name: (rows, width) float32}, a row for each frame of the video. Raises VideoError."""
        if self.trajectory:
            return droid_arrays(self.trajectory, self.video.stem)
        return {name: read_table(path) for name, path in self.files.items()}


def recordings(source, camera):
    """Of a CSV, or of all DROID trajectories below a folder. Raises UsageError."""
    if source.is_dir():
        found = [droid_recording(path, source, camera) for path in trajectories(source)]
    elif source.is_file():
        found = csv_recordings(source)
    else:
        raise UsageError(f"SOURCE {source}: no such file or folder; give a CSV or DROID's folder")
    if not found:
        raise UsageError(f"SOURCE {source}: lists no videos")
    name, count = Counter(recording.id for recording in found).most_common(1)[0]
    if count > 1:
        raise UsageError(f"SOURCE {source}: the id {name!r} stands {count} times; make ids unique")
    return found


def csv_recordings(path):
    found = []
    for line, row in read_csv(path, {"filename"}, f"SOURCE {path}"):
        row = {key: (value or "").strip() for key, value in row.items() if isinstance(key, str)}
        where = f"SOURCE {path}, line {line}"
        if not row["filename"]:
            raise UsageError(f"{where}: empty filename; every video needs one")
        files = {name: path.parent / row[name] for name in ARRAYS if row.get(name)}
        if not files.keys() & {"states", "actions"}:
            raise UsageError(f"{where}: names no file in a column states or actions")
        name = row.get("id") or usable(Path(row["filename"]).stem)
        if why := unusable(name):
            raise UsageError(f"{where}: the id {name[:60]!r} cannot name a file: it {why}")
        video = path.parent / row["filename"]
        category = row.get("category", "")
        found.append(Recording(name, video, row.get("source") or name, category, files))
    return found


def trajectories(folder):
    found = sorted(folder.rglob("trajectory.h5"))
    if not found:
        raise UsageError(
            f"SOURCE {folder}: holds no trajectory.h5, as DROID's folders do; for others give "
            "a CSV with the columns filename,states"
        )
    try:
        import h5py  # noqa: F401  optional, and said before the first video
    except ImportError as error:
        raise UsageError(
            f"SOURCE {folder}: DROID's trajectories need h5py (pip install h5py)"
        ) from error
    return found


def droid_recording(path, root, camera):
    """A trajectory's folder: its metadata_*.json names the cameras' files in recordings/MP4. Where
    that cannot be read the video is one that is not there, and its verdict says so."""
    folder = path.parent
    name = usable(str(folder.relative_to(root)).replace("/", "_") if folder != root else root.name)
    facts = read_facts(folder)
    file = Path(str(facts.get(f"{camera}_mp4_path") or f"no {camera}_mp4_path in metadata.json"))
    source = " ".join(str(facts[key]) for key in ("lab", "scene_id") if key in facts) or name
    video = folder / "recordings" / "MP4" / file.name
    return Recording(name, video, source, str(facts.get("lab", "")), trajectory=path)


def read_facts(folder):
    for path in sorted(folder.glob("*.json")):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(found, dict):
            return found
    return {}


def droid_arrays(path, camera):
    """States are the arm's pose and the gripper's position, (rows, 7)."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            seen = file["observation"]
            pose, gripper = (
                np.asarray(seen["robot_state"][name], np.float32)
                for name in ("cartesian_position", "gripper_position")
            )
            arrays = {"states": np.column_stack([pose, gripper])}
            extrinsics = seen.get(f"camera_extrinsics/{camera}_{STEREO}")
            if extrinsics is not None:
                arrays["extrinsics"] = np.asarray(extrinsics, np.float32)
            return arrays
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise VideoError(f"damaged: {path.name}: {error}") from error


def read_table(path):
    """(rows, width) float32 of a .npy, or of a .csv of numbers with or without a header."""
    if not path.is_file():
        raise VideoError(f"damaged: {path.name}: no such file")
    try:
        if path.suffix.lower() == ".npy":
            table = np.lib.format.open_memmap(path, mode="r")
        else:
            with open(path, newline="", encoding="utf-8-sig") as file:
                rows = [row for row in csv.reader(file) if row]
            header = bool(rows) and not all(map(is_number, rows[0]))
            table = np.array(rows[header:], np.float32)
        if table.dtype.kind not in "fiu":
            raise ValueError(f"{table.dtype} is not a kind of number that is read")
        table = np.array(table, np.float32)
    except (OSError, ValueError, EOFError, csv.Error) as error:
        raise VideoError(f"damaged: {path.name}: {error}") from error
    if table.ndim != 2:
        raise VideoError(f"damaged: {path.name}: not rows of equal width, {table.shape}")
    return table


def is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True


def stride(video_fps, fps):
    """Frames of the video from one taken frame to the next, as the original takes them."""
    return math.ceil(video_fps / fps)


def taken(arrays, indices):
    """Of the frames at `indices`: actions and states (T, A), extrinsics (T, A - 1) where there are
    any, for every frame but the last. Raises VideoError where a row is missing or not finite.

    Given actions, of which row i leads from frame i to i + 1, are summed from one taken frame to
    the next; without, they are the differences of poses. Without states these are zero.
    """
    for name, table in arrays.items():
        if len(table) <= indices[-1] - (name == "actions"):
            raise VideoError(f"short: {name} have {len(table)} rows, frame {indices[-1]} is taken")
    rows = {name: table[indices] for name, table in arrays.items() if name != "actions"}
    for name, table in arrays.items():
        if not np.isfinite(table[: indices[-1] + 1]).all():
            raise VideoError(f"damaged: {name} hold values that are not finite")
    if "actions" in arrays:
        spans = zip(indices[:-1], indices[1:], strict=True)
        actions = np.stack([arrays["actions"][a:b].sum(0) for a, b in spans])
    else:
        actions = pose_differences(rows["states"])
    kept = {"actions": actions, "states": np.zeros_like(actions)}
    kept |= {name: table[:-1] for name, table in rows.items()}
    return {name: np.ascontiguousarray(table, np.float32) for name, table in kept.items()}


def pose_differences(poses):
    """(T + 1, 7) -> (T, 7): differences of positions and of the gripper, and the rotation that
    leads from one orientation to the next, R' R^T, in Euler angles about the fixed x, y, z.

    As app/vjepa_droid/droid.py, poses_to_diffs, of facebookresearch/vjepa2.
    """
    if poses.shape[1] != POSE:
        raise VideoError(
            f"width: states are {poses.shape[1]} wide; without actions they must be x, y, z, three "
            "Euler angles and the gripper"
        )
    turned = Rotation.from_euler("xyz", poses[:, 3:6])
    angles = (turned[1:] * turned[:-1].inv()).as_euler("xyz")
    moved = np.diff(poses, axis=0)
    return np.concatenate([moved[:, :3], angles, moved[:, 6:]], axis=1).astype(np.float32)
