"""Clips of frame features with the actions between them: what `prepare.features` wrote, and the
study's folders.

    DIR/manifest.csv                     id, source, category, ...
    DIR/clips/<id>.safetensors           features, actions, states, perhaps extrinsics

    DIR/clip_00000/feature_maps/*.npy    (T*N, D), (T, N, D) or (T, H, W, D)
    DIR/clip_00000/actions_states/       actions.npy (T, A), perhaps extrinsics.npy (T, A - 1)

Of the study's actions only row 1 is used, as action 0; the others and all states are zero.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file


@dataclass(frozen=True)
class LatentClip:
    """T + 1 frames of N tokens: features (T + 1, N, D), actions and states (T, A), extrinsics None
    or (T, A - 1), float32. Action t leads from frame t, which has state t, to frame t + 1."""

    id: str
    source: str  # what statistics cluster by
    category: str
    features: torch.Tensor
    actions: torch.Tensor
    states: torch.Tensor
    extrinsics: torch.Tensor | None = None


@dataclass(frozen=True)
class Entry:
    """One clip of a list: a file of `prepare.features`, or a folder of the study."""

    id: str
    source: str
    category: str
    path: Path

    def files(self):
        """The files that the clip is read from, in a fixed order."""
        if not self.path.is_dir():
            return [self.path]
        return sorted(self.path.glob("feature_maps/*.npy")) + [
            path for name in ("actions", "extrinsics") if (path := array_path(self, name)).exists()
        ]

    def read(self, tokens=None, width=None, action_width=None, extrinsics=True):
        """The LatentClip. tokens, width and action_width: what N, D and A must be; a feature map
        (T*N, D) can be cut into frames only where `tokens` is given. extrinsics: whether they are
        wanted. Raises ValueError with the reason where an array is missing, short, not finite or of
        another width."""
        arrays = study_arrays(self, tokens) if self.path.is_dir() else prepared_arrays(self)
        if not extrinsics:
            arrays.pop("extrinsics", None)
        refuse_misfits(arrays, tokens, width, action_width)
        return LatentClip(self.id, self.source, self.category, **arrays)


def read_clips(path):
    """The entries of a folder, in the order of its manifest.csv, else by name. Nothing but the list
    is read. Raises ValueError where there is none."""
    path = Path(path)
    path = path.parent if path.name == "manifest.csv" else path
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder")
    if (path / "manifest.csv").is_file():
        return list(manifest_entries(path))
    folders = sorted(p for p in path.iterdir() if p.is_dir() and is_study_clip(p))
    if not folders:
        raise ValueError(
            f"{path}: holds neither the manifest.csv of prepare.features nor folders such as "
            "clip_00000 with feature_maps/ or actions_states/"
        )
    return [Entry(folder.name, folder.name, "", folder) for folder in folders]


def is_study_clip(folder):
    inside = ("feature_maps", "actions_states")
    return folder.name.startswith("clip_") or any((folder / name).is_dir() for name in inside)


def manifest_entries(folder):
    path, seen = folder / "manifest.csv", set()
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a CSV file in UTF-8 ({error})") from error
    if not rows:
        raise ValueError(f"{path}: lists no clips")
    for row in rows:
        name = row.get("id") or ""
        if not name or Path(name).name != name or name in seen:
            why = "is not unique" if name in seen else "cannot name a file"
            raise ValueError(f"{path}: the id {name[:60]!r} {why}; prepare.features writes it")
        seen.add(name)
        file = folder / "clips" / f"{name}.safetensors"
        yield Entry(name, row.get("source") or name, row.get("category") or "", file)


def prepared_arrays(entry):
    if not entry.path.is_file():
        raise ValueError(f"{entry.path.name} is missing")
    try:
        found = load_file(entry.path)
    except SafetensorError as error:
        raise ValueError(f"{entry.path.name} is damaged ({error})") from error
    for name in ("features", "actions", "states"):
        if name not in found:
            raise ValueError(f"{entry.path.name} has no array {name}")
    names = ("features", "actions", "states", "extrinsics")
    return {name: found[name].float() for name in names if name in found}


def study_arrays(entry, tokens):
    maps = sorted(entry.path.glob("feature_maps/*.npy"))
    if len(maps) != 1:
        raise ValueError(f"feature_maps/ holds {len(maps) or 'no'} arrays; one is needed")
    features = in_frames(read_array(maps[0]), tokens)
    given = read_array(array_path(entry, "actions"))
    if given.ndim != 2 or len(given) < 2:
        raise ValueError(
            f"actions.npy is {shape(given)}; row 1 of (T, A) is the action that is used"
        )
    actions = torch.zeros(max(len(features) - 1, 0), given.shape[1])
    actions[:1] = given[1]
    arrays = {"features": features, "actions": actions, "states": torch.zeros_like(actions)}
    if (path := array_path(entry, "extrinsics")).exists():
        arrays["extrinsics"] = read_array(path)
    return arrays


def array_path(entry, name):
    return entry.path / "actions_states" / f"{name}.npy"


def read_array(path):
    if not path.is_file():
        raise ValueError(f"{path.parent.name}/{path.name} is missing")
    try:  # mapped: a header that promises more than is there asks for no memory
        array = np.lib.format.open_memmap(path, mode="r")
        if array.dtype.kind not in "fiu":
            raise ValueError(f"{array.dtype} is not a kind of number that is read")
        return torch.from_numpy(np.array(array, np.float32))
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path.name} is damaged: {error}") from error


def in_frames(features, tokens):
    """(T*N, D), (T, N, D) or (T, H, W, D) -> (T, N, D)."""
    if features.ndim == 4:
        return features.flatten(1, 2)
    if features.ndim == 3:
        return features
    if features.ndim != 2:
        raise ValueError(f"the feature map is {shape(features)}, not (T*N, D), (T, N, D)")
    if not tokens or len(features) % tokens:
        raise ValueError(
            f"the feature map is {shape(features)}, which is no whole number of frames of "
            f"{tokens or 'an unknown number of'} tokens"
        )
    return features.unflatten(0, (-1, tokens))


def refuse_misfits(arrays, tokens, width, action_width):
    """Raises ValueError; cuts rows that lie after the last frame."""
    features = arrays["features"]
    if features.ndim != 3 or len(features) < 2 or not features.numel():
        raise ValueError(f"features are {shape(features)}; two frames (T + 1, N, D) are needed")
    for what, found, right in zip(
        ("tokens a frame", "wide"), features.shape[1:], (tokens, width), strict=True
    ):
        if right is not None and found != right:
            raise ValueError(f"features are {shape(features)}: {found} {what}, not {right}")
    steps, actions = len(features) - 1, arrays["actions"]
    if action_width is None:
        action_width = actions.shape[-1]
    for name in sorted(arrays.keys() - {"features"}):
        right = action_width - (name == "extrinsics")
        arrays[name] = rows_of(arrays[name], name, steps, right)
    for name, array in arrays.items():
        if not array.isfinite().all():
            raise ValueError(f"{name} hold values that are not finite")


def rows_of(array, name, steps, width):
    if array.ndim != 2 or len(array) < steps or array.shape[1] != width:
        raise ValueError(f"{name} are {shape(array)}; ({steps}, {width}) is needed")
    return array[:steps]


def shape(array):
    return f"({', '.join(map(str, array.shape))})"
