"""Videos with states and actions -> features: a tiny random encoder, files of the real layouts."""

import csv
import json

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from transformers import VJEPA2Config, VJEPA2Model

from common.errors import VideoError
from common.video import read_frames, write_video
from predictors.clips import read_clips
from predictors.encoder import encode, load_encoder
from prepare import features
from prepare.recordings import pose_differences, read_table, taken
from runs.exits import run_script

SIZE, TOKENS, WIDTH = 32, 16, 16
FPS = 10


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A folder in the layout of the released encoders."""
    torch.manual_seed(0)
    config = VJEPA2Config(
        patch_size=8, crop_size=SIZE, frames_per_clip=2, hidden_size=WIDTH, num_hidden_layers=1,
        num_attention_heads=1, pred_hidden_size=12, pred_num_hidden_layers=1,
        pred_num_attention_heads=1, pred_num_mask_tokens=1, num_pooler_layers=1,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("encoder")
    VJEPA2Model(config).save_pretrained(folder)
    return folder


def write_clip(path, count, fps=FPS, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = torch.rand(1, 3, 6, 20, generator=torch.Generator().manual_seed(seed))
    wide = torch.nn.functional.interpolate(coarse, (48, 160), mode="bicubic")[0].clamp(0, 1)
    write_video(path, (wide[:, :, t : t + 64] for t in range(count)), fps)


def poses(count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, 7)).cumsum(0).astype(np.float32) * 0.1


def write_list(folder, rows):
    with open(folder / "list.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, sorted({key for row in rows for key in row}))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "list.csv"


@pytest.fixture
def run(monkeypatch, encoder, tmp_path):
    """prepare.features in this process, into tmp_path/out; gives its exit code."""

    def call(source, *flags, model=encoder):
        monkeypatch.setattr("sys.argv", ["features", str(source), "--encoder", str(model),
                            "--out", str(tmp_path / "out"), *map(str, flags)])  # fmt: skip
        with pytest.raises(SystemExit) as end:
            run_script(features.main)
        return end.value.code

    return call


def test_a_frame_is_encoded_by_itself_and_doubled(encoder):
    model = load_encoder(encoder, "cpu")
    pictures = torch.rand(3, 3, SIZE, SIZE)
    found = encode(model, pictures)
    assert found.shape == (3, TOKENS, WIDTH)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    twice = ((pictures[1] - mean) / std)[None, None].repeat(1, 2, 1, 1, 1)
    with torch.no_grad():
        alone = model(pixel_values_videos=twice, skip_predictor=True).last_hidden_state[0]
    torch.testing.assert_close(found[1], alone)


def test_a_csv_of_states(run, encoder, tmp_path, capsys):
    write_clip(tmp_path / "videos" / "a.mp4", 40)
    states = poses(40)
    np.save(tmp_path / "a.npy", states)
    path = write_list(tmp_path, [{
        "filename": "videos/a.mp4", "states": "a.npy", "source": "arm", "category": "lab",
    }])  # fmt: skip
    assert run(path, "--frames", 4, "--fps", 4, "--per-video", 9) == 0
    assert "3 clips, 1 sources" in capsys.readouterr().out  # of 4 frames, 3 apart
    entries = read_clips(tmp_path / "out")
    assert [entry.id for entry in entries] == ["a_000000", "a_000012", "a_000024"]
    clip = entries[1].read(TOKENS, WIDTH, 7)
    assert (clip.source, clip.category, clip.features.shape) == ("arm", "lab", (4, TOKENS, WIDTH))
    at = [12, 15, 18, 21]  # ceil(10 / 4) apart
    np.testing.assert_allclose(clip.states, states[at[:-1]])
    np.testing.assert_allclose(clip.actions, pose_differences(states[at]), rtol=1e-6)
    pictures = read_frames(tmp_path / "videos" / "a.mp4", 0, 22, (SIZE, SIZE))[0][at]
    torch.testing.assert_close(clip.features, encode(load_encoder(encoder, "cpu"), pictures))


def test_given_actions_are_summed_and_states_may_be_absent(run, tmp_path):
    write_clip(tmp_path / "a.mp4", 12)
    actions = np.arange(22, dtype=np.float32).reshape(11, 2)
    lines = ["dx,dy", *(f"{x},{y}" for x, y in actions)]
    (tmp_path / "actions.csv").write_text("\n".join(lines) + "\n")
    np.save(tmp_path / "camera.npy", np.ones((12, 1)))
    path = write_list(tmp_path, [
        {"filename": "a.mp4", "actions": "actions.csv", "extrinsics": "camera.npy", "id": "one"}
    ])  # fmt: skip
    assert run(path, "--frames", 3, "--fps", 5) == 0
    (entry,) = read_clips(tmp_path / "out")
    clip = entry.read(TOKENS, WIDTH, 2)
    assert (clip.id, clip.source) == ("one_000000", "one")
    np.testing.assert_array_equal(clip.actions, [actions[0:2].sum(0), actions[2:4].sum(0)])
    assert not clip.states.any() and clip.extrinsics.tolist() == [[1], [1]]


def test_differences_of_poses_as_the_original_makes_them():
    given = poses(5, seed=3) * 10
    found = pose_differences(given)
    for t in range(4):
        before, after = (Rotation.from_euler("xyz", given[i, 3:6]).as_matrix() for i in (t, t + 1))
        angles = Rotation.from_matrix(after @ before.T).as_euler("xyz")
        expected = np.concatenate([
            given[t + 1, :3] - given[t, :3], angles, given[t + 1, 6:] - given[t, 6:]
        ])  # fmt: skip
        np.testing.assert_allclose(found[t], expected, atol=1e-5)
    kept = taken({"states": given}, [0, 2, 4])
    np.testing.assert_allclose(kept["actions"], pose_differences(given[[0, 2, 4]]))


def test_bad_videos_are_skipped_and_counted_and_a_second_run_makes_none_again(
    run, tmp_path, capsys, monkeypatch
):
    rows = []
    for name, count, states in (
        ("good", 12, poses(12)), ("brief", 5, poses(12)), ("few", 12, poses(8)),
        ("cut", 12, poses(12)), ("narrow", 12, poses(12)[:, :5]), ("nan", 12, poses(12) * np.nan),
        ("odd", 12, poses(12)[0]),
    ):  # fmt: skip
        write_clip(tmp_path / f"{name}.mp4", count)
        np.save(tmp_path / f"{name}.npy", states)
        rows.append({"filename": f"{name}.mp4", "states": f"{name}.npy"})
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(cut.read_bytes()[:-200])
    rows += [{"filename": "gone.mp4", "states": "good.npy"}]
    rows += [{"filename": "good.mp4", "states": "gone.npy", "id": "other"}]
    path, flags = write_list(tmp_path, rows), ("--frames", 4, "--fps", 4)
    assert run(path, *flags) == 0
    said = capsys.readouterr().out
    assert "rejected 2: short, as" in said and "rejected 5: damaged, as" in said
    assert "rejected 1: width, as states are 5 wide" in said
    assert "1 clips, 1 sources" in said
    verdicts = (tmp_path / "out" / "verdicts").glob("[!.]*.json")
    reasons = {p.stem: json.loads(p.read_text())["verdict"].get("rejected") for p in verdicts}
    assert "4 needed" in reasons["brief"] and "states have 8 rows" in reasons["few"]
    assert "without actions" in reasons["narrow"] and "not finite" in reasons["nan"]
    assert "gone.npy" in reasons["other"] and "no such file" in reasons["gone"]
    before = (tmp_path / "out" / "manifest.csv").read_bytes()
    monkeypatch.setattr(features, "encode", lambda *_: pytest.fail("encoded again"))
    assert run(path, *flags) == 0
    assert (tmp_path / "out" / "manifest.csv").read_bytes() == before


def test_what_is_gone_damaged_or_edited_is_made_again(run, tmp_path):
    for name in ("a", "b", "c"):
        write_clip(tmp_path / f"{name}.mp4", 12)
        np.save(tmp_path / f"{name}.npy", poses(12))
    path = write_list(
        tmp_path, [{"filename": f"{n}.mp4", "states": f"{n}.npy"} for n in ("a", "b", "c")]
    )
    flags = ("--frames", 4, "--fps", 4)
    assert run(path, *flags) == 0
    files = {n: tmp_path / "out" / "clips" / f"{n}_000000.safetensors" for n in "abc"}
    whole = {n: file.read_bytes() for n, file in files.items()}
    files["a"].unlink()
    files["b"].write_bytes(whole["b"][:-1])
    np.save(tmp_path / "c.npy", poses(13, seed=1))
    assert run(path, *flags) == 0
    assert files["a"].read_bytes() == whole["a"] and files["b"].read_bytes() == whole["b"]
    assert files["c"].read_bytes() != whole["c"]
    assert not list((tmp_path / "out" / "clips").glob(".*"))


def error_of(run, capsys, *flags, **more):
    assert run(*flags, **more) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    return said


def test_other_settings_want_another_folder(run, tmp_path, capsys):
    write_clip(tmp_path / "a.mp4", 12)
    np.save(tmp_path / "a.npy", poses(12))
    path = write_list(tmp_path, [{"filename": "a.mp4", "states": "a.npy"}])
    assert run(path, "--frames", 4) == 0
    capsys.readouterr()
    assert "choose another folder" in error_of(run, capsys, path, "--frames", 3)


def test_a_folder_of_other_clips_is_left_alone(run, tmp_path, capsys):
    path = write_list(tmp_path, [{"filename": "a.mp4", "states": "a.npy"}])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.csv").write_text("filename,caption\n")
    assert "this did not make" in error_of(run, capsys, path)
    assert (tmp_path / "out" / "manifest.csv").read_text() == "filename,caption\n"


def test_bad_sources(run, tmp_path, capsys):
    assert "no such file or folder" in error_of(run, capsys, tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert "no trajectory.h5" in error_of(run, capsys, tmp_path / "empty")
    for rows, words in (
        ([{"filename": "", "states": "a.npy"}], "line 2: empty filename"),
        ([{"filename": "a.mp4", "states": ""}], "line 2: names no file in a column states"),
        ([{"filename": "a.mp4", "states": "a.npy", "id": "a/b"}], "has a slash"),
        ([{"filename": "a.mp4", "states": "a.npy"}] * 2, "the id 'a' stands 2 times"),
        ([{"filename": "a.mp4", "states": "a.npy"}], "no video passes"),
    ):  # fmt: skip
        assert words in error_of(run, capsys, write_list(tmp_path, rows))


def test_bad_encoders(run, encoder, tmp_path, capsys):
    path = write_list(tmp_path, [{"filename": "a.mp4", "states": "a.npy"}])
    assert "no folder with the config.json" in error_of(run, capsys, path, model=tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "vit"}')
    assert "model_type is 'vit'" in error_of(run, capsys, path, model=other)
    (other / "config.json").write_bytes((encoder / "config.json").read_bytes())
    assert "--encoder" in error_of(run, capsys, path, model=other)  # no weights in it


def write_trajectory(folder, count, camera="22008760", facts=None):
    """As DROID is published: trajectory.h5, metadata_<uuid>.json, recordings/MP4."""
    h5py = pytest.importorskip("h5py")
    write_clip(folder / "recordings" / "MP4" / f"{camera}.mp4", count, fps=60)
    pose = poses(count).astype(np.float64)
    with h5py.File(folder / "trajectory.h5", "w") as file:
        robot = file.create_group("observation/robot_state")
        robot["cartesian_position"], robot["gripper_position"] = pose[:, :6], pose[:, 6]
        file[f"observation/camera_extrinsics/{camera}_left"] = pose[:, :6] + 1
    facts = facts or {
        "left_mp4_path": f"success/2023-07-07/x/recordings/MP4/{camera}.mp4",
        "lab": "AUTOLab", "scene_id": 7,
    }  # fmt: skip
    (folder / "metadata_AUTOLab+1.json").write_text(json.dumps(facts))
    return pose.astype(np.float32)


def test_droid_trajectories(run, tmp_path, capsys):
    root = tmp_path / "droid"
    pose = write_trajectory(root / "AUTOLab" / "success" / "one", 50)
    write_trajectory(root / "AUTOLab" / "success" / "two", 40)
    write_trajectory(root / "AUTOLab" / "success" / "three", 50, facts={"lab": "AUTOLab"})
    damaged = write_trajectory(root / "AUTOLab" / "success" / "four", 50) is not None
    (root / "AUTOLab" / "success" / "four" / "trajectory.h5").write_bytes(b"no HDF5" * damaged)
    assert run(root, "--frames", 4) == 0
    said = capsys.readouterr().out
    assert "rejected 1: short" in said and "rejected 2: damaged" in said
    (entry,) = read_clips(tmp_path / "out")
    clip = entry.read(TOKENS, WIDTH, 7)
    assert clip.id == "AUTOLab_success_one_000000"
    assert (clip.source, clip.category) == ("AUTOLab 7", "AUTOLab")
    np.testing.assert_allclose(clip.states, pose[[0, 15, 30]])  # ceil(60 / 4) apart
    np.testing.assert_allclose(clip.actions[:, :3], np.diff(pose[[0, 15, 30, 45], :3], axis=0))
    np.testing.assert_allclose(clip.extrinsics, pose[[0, 15, 30], :6] + 1)


def test_without_h5py_one_line_says_what_to_install(run, tmp_path, capsys, monkeypatch):
    (tmp_path / "droid").mkdir()
    (tmp_path / "droid" / "trajectory.h5").touch()
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    assert "pip install h5py" in error_of(run, capsys, tmp_path / "droid")


@pytest.mark.parametrize("name, content, words", [
    ("a.csv", b"x,y\n1,2\n3\n", "damaged: a.csv"),
    ("a.csv", b"x,y\n1,2\n3,z\n", "damaged: a.csv"),
    ("a.csv", b"\xff\xfe", "damaged: a.csv"),
    ("a.csv", b"", "not rows of equal width"),
    ("a.npy", b"", "damaged: a.npy"),
    ("a.npy", b"PK\x03\x04 no zip either", "damaged: a.npy"),
])  # fmt: skip
def test_a_table_that_cannot_be_read_says_why(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(VideoError, match=words):
        read_table(tmp_path / name)


def test_complex_numbers_are_no_states(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((3, 7), complex))
    with pytest.raises(VideoError, match="complex128"):
        read_table(tmp_path / "a.npy")
