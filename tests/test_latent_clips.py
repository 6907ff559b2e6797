"""Clips of features: those of prepare.features, and the study's folders."""

import csv

import numpy as np
import pytest
import torch
from oracles import SHARED
from safetensors.torch import load_file, save_file

from predictors.clips import read_clips

TOKENS, WIDTH, ACTION = 4, 6, 2


def random(*size):
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(size)))


def write_prepared(folder, names=("b", "a"), frames=5, **changes):
    """A folder as prepare.features writes it; `changes` replace arrays, None takes one out."""
    (folder / "clips").mkdir(parents=True)
    arrays = {
        "features": random(frames, TOKENS, WIDTH).half(),
        "actions": random(frames - 1, ACTION),
        "states": random(frames - 1, ACTION) + 1,
    } | changes
    arrays = {name: array for name, array in arrays.items() if array is not None}
    with open(folder / "manifest.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "source", "category", "sha256"])
        for name in names:
            rows.writerow([name, f"video {name}", "pans", "0"])
            save_file(arrays, folder / "clips" / f"{name}.safetensors")
    return arrays


def write_study(folder, features, actions, extrinsics=None, name="clip_00000"):
    for place, array in {
        "feature_maps/vjepa2_vitl16.npy": features,
        "actions_states/actions.npy": actions,
        "actions_states/extrinsics.npy": extrinsics,
    }.items():
        path = folder / name / place
        path.parent.mkdir(parents=True, exist_ok=True)
        if array is not None:
            np.save(path, array.numpy())
    return folder / name


def test_a_prepared_folder_has_all_actions_and_states(tmp_path):
    written = write_prepared(tmp_path, extrinsics=random(5, ACTION - 1))
    first, second = read_clips(tmp_path)
    assert (first.id, second.id) == ("b", "a")  # the manifest's order
    clip = first.read(TOKENS, WIDTH, ACTION)
    assert (clip.id, clip.source, clip.category) == ("b", "video b", "pans")
    assert torch.equal(clip.features, written["features"].float())
    assert torch.equal(clip.actions, written["actions"])
    assert torch.equal(clip.states, written["states"])
    assert torch.equal(clip.extrinsics, written["extrinsics"][:4])
    assert first.files() == [tmp_path / "clips" / "b.safetensors"]
    assert read_clips(tmp_path / "manifest.csv")[1].read().extrinsics is not None


@pytest.mark.parametrize("size", [
    (5 * TOKENS, WIDTH), (5, TOKENS, WIDTH), (5, 2, 2, WIDTH)
], ids=str)  # fmt: skip
def test_the_studys_shapes(tmp_path, size):
    features, actions = random(5, TOKENS, WIDTH), random(10, ACTION)
    write_study(tmp_path, features.view(size), actions, random(10, ACTION - 1))
    (entry,) = read_clips(tmp_path)
    clip = entry.read(TOKENS, WIDTH, ACTION)
    assert (clip.id, clip.source, clip.category) == ("clip_00000", "clip_00000", "")
    assert torch.equal(clip.features, features)
    assert clip.actions.shape == clip.states.shape == (4, ACTION)
    assert torch.equal(clip.actions[0], actions[1])  # row 1, moved to the front
    assert not clip.actions[1:].any() and not clip.states.any()
    assert clip.extrinsics.shape == (4, ACTION - 1)
    assert [path.name for path in entry.files()] == [
        "vjepa2_vitl16.npy", "actions.npy", "extrinsics.npy"
    ]  # fmt: skip


def test_the_studys_clips_in_order_without_extrinsics(tmp_path):
    for name in ("clip_00002", "clip_00001"):
        write_study(tmp_path, random(5, TOKENS, WIDTH), random(2, ACTION), name=name)
    (tmp_path / "logs").mkdir()
    entries = read_clips(tmp_path)
    assert [entry.id for entry in entries] == ["clip_00001", "clip_00002"]
    assert entries[0].read().extrinsics is None


@pytest.mark.skipif(not (SHARED / "oracles").is_dir(), reason=f"no oracles at {SHARED}")
def test_written_as_the_study_does_the_oracles_clips_come_back(tmp_path):
    oracle = load_file(SHARED / "oracles" / "vjepa2_ac" / "tta" / "clips.safetensors")
    original = torch.zeros(16, oracle["actions"].shape[2])
    original[0], original[1] = 9.0, oracle["actions"][3, 0]  # row 0 is never used
    write_study(tmp_path, oracle["features"][3].flatten(0, 1), original)
    clip = read_clips(tmp_path)[0].read(tokens=oracle["features"].shape[2])
    for name in ("features", "actions", "states"):
        assert torch.equal(getattr(clip, name), oracle[name][3])


FEATURES, ACTIONS = random(5, TOKENS, WIDTH), random(10, ACTION)
BAD_STUDY = {
    "no feature map": ((None, ACTIONS), "holds no arrays"),
    "no actions": ((FEATURES, None), "actions.npy is missing"),
    "one row of actions": ((FEATURES, ACTIONS[:1]), r"actions.npy is \(1, 2\); row 1"),
    "flat actions": ((FEATURES, ACTIONS[:, 0]), r"actions.npy is \(10\)"),
    "one frame": ((FEATURES[:1], ACTIONS), "two frames"),
    "half a frame": ((FEATURES.flatten(0, 1)[:-1], ACTIONS), "no whole number of frames of 4"),
    "a row": ((FEATURES[0, 0], ACTIONS), r"the feature map is \(6\)"),
    "other tokens": ((FEATURES[:, :3], ACTIONS), "3 tokens a frame, not 4"),
    "other width": ((FEATURES[..., :5], ACTIONS), "5 wide, not 6"),
    "other actions": ((FEATURES, random(10, 3)), r"actions are \(4, 3\); \(4, 2\) is needed"),
    "not finite": ((FEATURES / 0, ACTIONS), "features hold values that are not finite"),
    "no numbers": ((FEATURES.to(torch.complex64), ACTIONS), "complex64 is not a kind of number"),
    "wide extrinsics": ((FEATURES, ACTIONS, random(10, 2)), r"extrinsics are \(10, 2\); \(4, 1\)"),
    "short extrinsics": ((FEATURES, ACTIONS, random(3, 1)), r"extrinsics are \(3, 1\); \(4, 1\)"),
}


@pytest.mark.parametrize("case", BAD_STUDY)
def test_a_bad_clip_of_the_study_says_why(tmp_path, case):
    arrays, reason = BAD_STUDY[case]
    write_study(tmp_path, *arrays)
    with pytest.raises(ValueError, match=reason):
        read_clips(tmp_path)[0].read(TOKENS, WIDTH, ACTION)


def test_flat_features_need_the_number_of_tokens(tmp_path):
    write_study(tmp_path, FEATURES.flatten(0, 1), ACTIONS)
    with pytest.raises(ValueError, match="an unknown number of tokens"):
        read_clips(tmp_path)[0].read()


@pytest.mark.parametrize("content", [b"", b"no array", "cut", "zip", "pickle"])
def test_a_damaged_array_of_the_study(tmp_path, content):
    folder = write_study(tmp_path, FEATURES, ACTIONS)
    path = folder / "feature_maps" / "vjepa2_vitl16.npy"
    if content == "cut":
        content = path.read_bytes()[:-9]
    if content == "zip":
        np.savez(tmp_path / "other.npz", FEATURES.numpy())
        content = (tmp_path / "other.npz").read_bytes()
    if content == "pickle":
        np.save(path, np.array([{}], object), allow_pickle=True)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="vjepa2_vitl16.npy is damaged"):
        read_clips(tmp_path)[0].read()


def test_two_feature_maps_are_ambiguous(tmp_path):
    folder = write_study(tmp_path, FEATURES, ACTIONS)
    np.save(folder / "feature_maps" / "other.npy", FEATURES.numpy())
    with pytest.raises(ValueError, match="holds 2 arrays; one is needed"):
        read_clips(tmp_path)[0].read()


BAD_PREPARED = {
    "no states": ({"states": None}, "has no array states"),
    "short actions": ({"actions": random(3, ACTION)}, r"actions are \(3, 2\); \(4, 2\)"),
    "narrow states": ({"states": random(4, 1)}, r"states are \(4, 1\); \(4, 2\)"),
    "flat features": ({"features": random(20, WIDTH)}, "two frames"),
}


@pytest.mark.parametrize("case", BAD_PREPARED)
def test_a_bad_prepared_clip_says_why(tmp_path, case):
    changes, reason = BAD_PREPARED[case]
    write_prepared(tmp_path, **changes)
    with pytest.raises(ValueError, match=reason):
        read_clips(tmp_path)[0].read()


def test_a_prepared_clip_that_is_damaged_or_gone(tmp_path):
    write_prepared(tmp_path)
    damaged, gone = (entry.path for entry in read_clips(tmp_path))
    damaged.write_bytes(damaged.read_bytes()[:-3])
    gone.unlink()
    for entry, reason in zip(read_clips(tmp_path), ("is damaged", "is missing"), strict=True):
        with pytest.raises(ValueError, match=reason):
            entry.read()


BAD_LISTS = {
    "nothing": ({}, "holds neither"),
    "empty": ({"manifest.csv": "id,source\n"}, "lists no clips"),
    "no id": ({"manifest.csv": "name\nx\n"}, "the id '' cannot name a file"),
    "another folder": ({"manifest.csv": "id\n../x\n"}, "the id '../x' cannot name a file"),
    "twice": ({"manifest.csv": "id\nx\nx\n"}, "the id 'x' is not unique"),
    "a quote": ({"manifest.csv": 'id\n"x\n'}, "not a CSV file"),
}


@pytest.mark.parametrize("case", BAD_LISTS)
def test_a_bad_list(tmp_path, case):
    files, reason = BAD_LISTS[case]
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=reason):
        read_clips(tmp_path)


def test_no_such_folder(tmp_path):
    with pytest.raises(ValueError, match="absent: no such folder"):
        read_clips(tmp_path / "absent")
