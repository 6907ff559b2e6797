"""python -m litevsr.train and litevsr.restore, on a tiny random model."""

import json
import shutil
import sys
import types

import av
import numpy as np
import pytest
import sharded
import torch
from safetensors.torch import load_file
from test_data import BAD, needs_bad_inputs
from test_litevsr_clips import moving

import litevsr.restore
import litevsr.scores
import litevsr.train
import litevsr.trainer
import litevsr.video
from benchmarks import restoration_study
from common.video import read_frames, write_video
from litevsr.trainer import Trainer

TINY = ["--frames", 5, "--batch", 2, "--heads", 2, "--workers", 0, "--save-every", 2]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for i in range(2):
        write_video(folder / f"{i}.mp4", moving(8 + i), 24)
    return folder


@pytest.fixture
def train(script, toy_checkpoint, clips, monkeypatch):
    monkeypatch.setattr(litevsr.trainer, "CHECKED", 2)  # not eight pairs at every state

    def run(out, *flags):
        given = ["--checkpoint", toy_checkpoint, "--data", clips, "--size", "48x32", *TINY]
        return script(litevsr.train, "--out", out, *given, *flags)

    return run


def weights(out):
    return load_file(out / "adapter.safetensors")


@pytest.mark.parametrize("cache", [0, 6])
def test_killed_and_started_again_equals_undisturbed(train, cache, tmp_path, monkeypatch):
    flags = ["--iterations", 5, "--cache", cache]
    assert train(tmp_path / "whole", *flags) == 0
    own, steps = Trainer.train_step, []

    def killed(self, *given):
        steps.append(self.step)
        if len(steps) == 4:  # one step after the last state
            raise KeyboardInterrupt
        return own(self, *given)

    monkeypatch.setattr(Trainer, "train_step", killed)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", *flags)
    assert train(tmp_path / "killed", *flags) == 0
    assert steps == [0, 1, 2, 3, 2, 3, 4]
    ours, theirs = weights(tmp_path / "killed"), weights(tmp_path / "whole")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert all((tmp_path / "whole" / "work" / f"{n}.png").is_file() for n in ("curve", "samples"))


@pytest.mark.slow  # three processes start
def test_two_processes_learn_what_one_does_of_twice_the_batch(
    train, toy_checkpoint, clips, tmp_path
):
    flags = ["--iterations", 3, "--lr", 0.2]  # of which the warm-up leaves a hundredth
    assert train(tmp_path / "one", *flags, "--batch", 4) == 0
    given = ["--checkpoint", toy_checkpoint, "--data", clips, "--size", "48x32", *TINY, *flags]
    sharded.run(2, "-m", "litevsr.train", "--out", tmp_path / "two", *given)
    one, two = (
        torch.load(tmp_path / out / "work" / "state.pt", weights_only=True)["adapter"]
        for out in ("one", "two")
    )
    assert max((one[k] - two[k]).abs().max() for k in one) < 1e-5
    injected = [value for name, value in one.items() if name.startswith("injections")]
    assert min(value.abs().max() for value in injected) > 1e-3  # they were zero


def test_it_learns(train, tmp_path):
    """Two clips by heart, in a few iterations: the loss falls below a frozen model's."""
    flags = ["--iterations", 30, "--cache", 2, "--lr", 1e-2, "--save-every", 15, "--bicubic"]
    assert train(tmp_path / "out", *flags) == 0
    first, last = json.loads((tmp_path / "out" / "work" / "curve.json").read_text())
    assert last["loss"] < 0.9 * first["loss"]
    assert set(last["attention"]) == {str(sigma / 10) for sigma in range(1, 11)}
    assert all(0 < share < 1 for share in last["attention"].values())


def test_an_adapter_is_trained_further(script, toy_checkpoint, clips, adapter, tmp_path, capsys):
    given = ["--checkpoint", toy_checkpoint, "--data", clips, "--size", "48x32", "--frames", 5]
    given += ["--batch", 2, "--workers", 0, "--iterations", 2, "--lr", 1e-9]  # nearly none
    assert script(litevsr.train, *given, "--start", adapter, "--out", tmp_path / "out") == 0
    ours, theirs = weights(tmp_path / "out"), weights(adapter)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)
    assert any(value.any() for name, value in theirs.items() if "injections" in name)
    capsys.readouterr()
    assert script(litevsr.train, *given, "--start", clips, "--out", tmp_path / "other") == 2
    assert f"--start {clips}: no adapter of litevsr.train" in capsys.readouterr().err


def test_a_work_folder_belongs_to_one_training(train, tmp_path, capsys):
    assert train(tmp_path / "out", "--iterations", 2) == 0
    assert train(tmp_path / "out", "--iterations", 2, "--lr", 1e-3) == 2
    said = capsys.readouterr().err
    assert "holds a training with --lr 0.0001, asked for is 0.001; give another --work" in said


def test_what_is_learned_is_kept_though_it_cannot_be_checked(train, tmp_path, monkeypatch):
    """A large model may have no room for it."""

    def no_room(*_):
        raise MemoryError

    monkeypatch.setattr(litevsr.trainer, "check", no_room)
    with pytest.raises(MemoryError):
        train(tmp_path / "out", "--iterations", 4)
    assert (tmp_path / "out" / "adapter.safetensors").is_file()
    assert torch.load(tmp_path / "out" / "work" / "state.pt", weights_only=True)["step"] == 2


def test_other_weights_below_an_adapter(
    train, restore, script, toy_checkpoint, clips, adapter, tmp_path, capsys
):
    """A training does not go on upon them; restoring says so."""
    assert train(tmp_path / "out", "--iterations", 2) == 0
    (other := tmp_path / "other").mkdir()
    shutil.copytree(toy_checkpoint, other, dirs_exist_ok=True)
    (other / "note.txt").write_text("another")
    work = tmp_path / "out" / "work"
    settings = json.loads((work / "settings.json").read_text())
    (work / "settings.json").write_text(json.dumps(settings | {"checkpoint": str(other)}))
    capsys.readouterr()
    assert train(tmp_path / "out", "--iterations", 2, "--checkpoint", other) == 2
    assert "holds a training on other weights than those that" in capsys.readouterr().err
    assert restore(clips / "0.mp4", tmp_path / "high.mp4") == 0
    assert "was trained on other weights" not in capsys.readouterr().err
    assert restore(clips / "0.mp4", tmp_path / "high.mp4", "--checkpoint", other) == 0
    said = capsys.readouterr().err
    assert f"--adapter {adapter}: was trained on other weights than those of --checkpoint" in said


@pytest.mark.parametrize(("flags", "right"), [
    (["--heads", 3], "--heads 3: must part the model's width of"),
    (["--data", "nowhere"], "--data nowhere: no such file or folder"),
    (["--size", "50x32"], "--size 50x32: this checkpoint needs multiples of 16"),
    (["--size", "48x32", "--scale", 5], "--size 48x32: no multiple of --scale 5"),
    (["--start", "nowhere", "--layers", 3], "--layers 3: --start has its own; leave it out"),
    (["--frames", 6], "--frames 6: frames must number 4k + 1, got 6"),
])  # fmt: skip
def test_what_cannot_be_trained_is_one_line(flags, right, train, tmp_path, capsys):
    assert train(tmp_path / "out", *flags) == 2
    said = capsys.readouterr().err
    assert right in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()  # the right flags are no other training


# Restoring


def test_a_study_of_what_is_restored(script, toy_checkpoint, adapter, clips, tmp_path, capsys):
    given = ["--checkpoint", toy_checkpoint, "--adapter", adapter, "--videos", clips]
    out = tmp_path / "scores.json"
    assert script(restoration_study, *given, "--out", out) == 0
    said = capsys.readouterr().out
    ways = {"bicubic", "frozen", "1 steps", "4 steps"}
    assert all(f"{way} against bicubic, psnr_db: " in said for way in ways - {"bicubic"})
    found = json.loads(out.read_text())
    assert found["clips"].keys() == {"0", "1"} and found["clips"]["0"].keys() == ways
    assert len(found["attention"]) == 10
    assert script(restoration_study, *given, "--adapt", 1) == 2
    assert "0.mp4: --adapt needs frames of 16x16 or more" in capsys.readouterr().err


@pytest.fixture(scope="module")
def adapter(toy_checkpoint, clips, tmp_path_factory):
    out = tmp_path_factory.mktemp("adapter") / "out"
    given = ["--checkpoint", toy_checkpoint, "--data", clips, "--size", "48x32", *TINY]
    argv, sys.argv = sys.argv, ["train", "--out", *map(str, [out, *given, "--iterations", 2])]
    try:
        litevsr.train.main()
    finally:
        sys.argv = argv
    return out


def test_what_is_bundled_is_better_than_bicubic(script, tmp_path, capsys):
    given = ["nano/litevsr/low.mp4", "--scale", 4, "--truth", "nano/demo/scene_0.mp4"]
    assert script(litevsr.restore, *given, "--out", tmp_path / "high.mp4") == 0
    said = capsys.readouterr()
    assert "other weights" not in said.err
    rows = said.out.splitlines()[2:4]
    found = [dict(pair.split() for pair in row.split(": ")[1].split(", ")) for row in rows]
    assert [row.split(":")[0] for row in rows] == ["restored", "bicubic"]
    for name in ("psnr_db", "luma_psnr_db", "temporal_psnr_db"):
        assert float(found[0][name]) > float(found[1][name])
    assert script(litevsr.restore, *given, "--checkpoint", tmp_path) == 2
    assert "needs an --adapter that was made for it" in capsys.readouterr().err


@pytest.fixture
def restore(script, toy_checkpoint, adapter):
    def run(video, out, *flags):
        given = ["--checkpoint", toy_checkpoint, "--adapter", adapter, "--steps", 1]
        return script(litevsr.restore, video, "--out", out, *given, *flags)

    return run


def with_sound(path, frames, fps, codec="aac"):
    """A video with a second of sound in it."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = frames.shape[2:]
        sound = container.add_stream(codec, rate=8000, layout="mono")
        for frame in (frames * 255).byte().permute(0, 2, 3, 1).numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
        tone = np.sin(np.arange(8000) / 5).astype(np.float32)[None]
        kind = "fltp" if codec == "aac" else "s16"
        tone = tone if codec == "aac" else (32767 * tone).astype(np.int16)
        samples = av.AudioFrame.from_ndarray(tone, format=kind, layout="mono")
        samples.sample_rate = 8000
        container.mux(sound.encode(samples))
        container.mux(sound.encode())
    return path


def test_a_video_keeps_its_length_rate_and_sound(restore, tmp_path):
    low = with_sound(tmp_path / "low.mp4", moving(12, 16, 28), 30)
    assert restore(low, tmp_path / "high.mp4", "--overlap", 2) == 0
    frames, fps = read_frames(tmp_path / "high.mp4", 0, 12, (64, 112))
    assert fps == 30 and frames.shape == (12, 3, 64, 112)
    with av.open(str(low)) as before, av.open(str(tmp_path / "high.mp4")) as after:
        video, sound = after.streams.video[0], after.streams.audio[0]
        assert (video.width, video.height, video.frames) == (112, 64, 12)
        packets = [
            [bytes(p) for p in each.demux(each.streams.audio[0]) if p.size]
            for each in (before, after)
        ]
        assert packets[0] == packets[1] and sound.rate == 8000
    assert {p.name for p in tmp_path.iterdir()} == {"low.mp4", "high.mp4"}


def test_sound_that_no_mp4_holds_is_coded_anew(restore, tmp_path):
    low = with_sound(tmp_path / "low.mkv", moving(12, 16, 28), 30, "pcm_s16le")
    assert restore(low, tmp_path / "high.mp4", "--overlap", 2) == 0
    with av.open(str(tmp_path / "high.mp4")) as after:
        sound = after.streams.audio[0]
        assert sound.codec_context.codec.canonical_name == "aac" and sound.rate == 8000
        samples = np.concatenate([f.to_ndarray() for f in after.decode(sound)], axis=1)[0]
        assert abs(len(samples) - 8000) < 2048  # the encoder fills up its last frames
        tone = np.sin(np.arange(8000) / 5)
        found = np.correlate(samples[:8000], tone[2000:6000], "valid").max() / 2000
        assert found == pytest.approx(1, abs=0.1)


def test_nothing_beside_the_frames_can_cost_them(restore, clips, tmp_path, monkeypatch, capsys):
    """A score that cannot be taken, and sound that cannot be joined."""
    write_video(tmp_path / "truth.mp4", moving(8, 256, 384), 24)

    def fails(*_):
        raise ValueError("win_size exceeds image extent")

    monkeypatch.setattr(litevsr.scores, "ssim", fails)
    monkeypatch.setattr(litevsr.video, "join", lambda *_: av.open("no such file"))
    flags = ["--truth", tmp_path / "truth.mp4", "--adapt", 1]
    assert restore(clips / "0.mp4", tmp_path / "high.mp4", *flags) == 0
    said = capsys.readouterr().err
    assert "not scored beyond this: win_size" in said and "its sound cannot be kept" in said
    assert read_frames(tmp_path / "high.mp4", 0, 8, (256, 384))[0].shape[0] == 8


def test_no_file_is_written_over(restore, clips, tmp_path, capsys):
    assert restore(clips / "0.mp4", clips / "0.mp4") == 2
    assert f"would be written over {clips / '0.mp4'}" in capsys.readouterr().err
    assert read_frames(clips / "0.mp4", 0, 8, (64, 96))[0].shape[0] == 8


def test_scores_of_a_network_without_the_truth(restore, clips, tmp_path, monkeypatch, capsys):
    """pyiqa is not among what is installed: a stand-in with its two functions."""
    made = types.SimpleNamespace(
        list_models=lambda metric_mode: ["niqe"] if metric_mode == "NR" else [],
        create_metric=lambda name: lambda frames: frames.mean().reshape(1),
    )
    monkeypatch.setitem(sys.modules, "pyiqa", made)
    assert restore(clips / "0.mp4", tmp_path / "high.mp4", "--quality", "niqe") == 0
    rows = capsys.readouterr().out.splitlines()[-2:]
    assert [row.split()[:2] for row in rows] == [["restored:", "niqe"], ["bicubic:", "niqe"]]
    mean = read_frames(tmp_path / "high.mp4", 0, 1, (256, 384))[0].mean().item()
    assert float(rows[0].split()[2]) == pytest.approx(mean, abs=0.01)
    assert restore(clips / "0.mp4", tmp_path / "high.mp4", "--quality", "psnr") == 2
    assert "--quality psnr: pyiqa has niqe" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    assert restore(clips / "0.mp4", tmp_path / "high.mp4", "--quality", "niqe") == 2
    assert "--quality niqe: pip install pyiqa" in capsys.readouterr().err


def test_scores_against_the_sharp_video_and_adaptation(restore, tmp_path, capsys):
    sharp = moving(6, 64, 96)
    write_video(tmp_path / "sharp.mp4", sharp, 24)
    small = torch.nn.functional.interpolate(sharp, (16, 24), mode="area")
    write_video(tmp_path / "low.mp4", small, 24)
    flags = ["--truth", tmp_path / "sharp.mp4", "--adapt", 2]
    assert restore(tmp_path / "low.mp4", tmp_path / "high.mp4", *flags) == 0
    said = capsys.readouterr()
    assert "loss on the video damaged again: " in said.out
    rows = dict(line.split(": ", 1) for line in said.out.splitlines() if ": psnr_db" in line)
    assert rows.keys() == {"adapted", "not adapted", "bicubic", "adapted - not adapted"}
    values = [float(rows[name].split(",")[0].split()[1]) for name in rows]
    assert values[3] == pytest.approx(values[0] - values[1], abs=2e-3)
    assert all("warping_error" in row and "luma_ssim" in row for row in rows.values())
    assert "--truth" not in said.err
    write_video(tmp_path / "short.mp4", sharp[:4], 24)
    flags = ["--truth", tmp_path / "short.mp4"]
    assert restore(tmp_path / "low.mp4", tmp_path / "high.mp4", *flags) == 0
    assert capsys.readouterr().err.count("short.mp4: ends after 4 frames, the video does not") == 1
    write_video(tmp_path / "other.mp4", moving(6, 32, 48), 24)
    flags = ["--truth", tmp_path / "other.mp4"]
    assert restore(tmp_path / "low.mp4", tmp_path / "high.mp4", *flags) == 2
    assert "frames of 48x32, the result has 96x64" in capsys.readouterr().err


@pytest.mark.parametrize(("flags", "right"), [
    (["--scale", 2], "--scale 2: this adapter enlarges 4 times"),
    (["--overlap", 5], "--overlap 5: windows have 5 frames"),
    (["--tile-overlap", 32], "--tile-overlap 32: tiles are 48x32"),
    (["--adapt", 1, "--truth", "none.mp4"], "none.mp4: no such file"),
])  # fmt: skip
def test_flags_that_do_not_fit_are_one_line(flags, right, restore, clips, tmp_path, capsys):
    assert restore(clips / "0.mp4", tmp_path / "high.mp4", *flags) == 2
    assert right in capsys.readouterr().err


def test_files_that_do_not_fit_are_one_line(restore, clips, tmp_path, capsys):
    assert restore(tmp_path / "none.mp4", tmp_path / "high.mp4") == 2
    assert "none.mp4: no such file" in capsys.readouterr().err
    (tmp_path / "text.mp4").write_text("no video")
    assert restore(tmp_path / "text.mp4", tmp_path / "high.mp4") == 2
    assert "text.mp4: cannot be read" in capsys.readouterr().err
    assert restore(clips / "0.mp4", tmp_path / "high.gif") == 2
    assert "high.gif: must be an .mp4" in capsys.readouterr().err
    assert restore(clips / "0.mp4", tmp_path / "high.mp4", "--adapter", tmp_path) == 2
    assert f"--adapter {tmp_path}: no adapter of litevsr.train" in capsys.readouterr().err


@needs_bad_inputs
def test_of_a_file_that_was_cut_what_is_there_is_restored(capsys):
    path = BAD / "truncated_data_lost.mp4"
    frames, fps = litevsr.video.frames_of(path)
    assert sum(1 for _ in frames) == 28
    assert f"{path}: 28 of 73 announced frames decode" in capsys.readouterr().err


def test_an_adapter_of_another_model_is_refused(restore, clips, adapter, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    for file in adapter.glob("*.*"):
        (other / file.name).write_bytes(file.read_bytes())
    config = json.loads((other / "config.json").read_text()) | {"model": "WanTransformer3DModel"}
    (other / "config.json").write_text(json.dumps(config))
    assert restore(clips / "0.mp4", tmp_path / "high.mp4", "--adapter", other) == 2
    assert "was made for another model, a WanTransformer3DModel" in capsys.readouterr().err
