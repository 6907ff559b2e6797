"""Whole runs of the script on the bundled checkpoint and demo clips."""

import csv
import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from oracles import SHARED
from workers import start_worker

import adasteer
import backbones
import delta_c
import film_tta
import full_tta
import last_layer_tta
import lora_tta
import norm_tta
import runs
from backbones.longcat import LongCat
from common.errors import UsageError

ROOT = Path(adasteer.__file__).parent
QUICK = ["--steps", 2, "--sampling-steps", 2, "--sampling=enhance_hf=false", "--future-draws", 1]


def results(out):
    """The videos' results without times and peak memory."""
    found = {}
    for path in sorted((out / "videos").glob("*.json")):
        record = json.loads(path.read_text())
        found[path.stem] = {
            k: v for k, v in record.items() if not k.endswith(("_seconds", "peak_memory_gb"))
        }
    return found


def write_manifest(path, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([["filename", "caption"], *rows])
    return path


def demo_rows():
    with open(ROOT / "nano" / "demo" / "manifest.csv") as file:
        return [
            (ROOT / "nano" / "demo" / row["filename"], row["caption"])
            for row in csv.DictReader(file)
        ]


def finished_run(out, *flags):
    """The folder of a run in this process, for a fixture that several tests read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["adasteer.py", *map(str, flags), "--out", str(out)])
        assert adasteer.main() == 0
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One uninterrupted run over the four demo clips."""
    out = tmp_path_factory.mktemp("whole") / "out"
    command = [sys.executable, ROOT / "adasteer.py", *QUICK, "--out", out]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out, done


def test_a_run_writes_what_it_promises(whole):
    out, done = whole
    found = results(out)
    assert len(found) == 4
    for name, record in found.items():
        assert record["status"] == "done" and record["id"] == name and record["caption"]
        assert len(record["losses"]) == len(record["sigmas"]) == 2
        assert len(record["psnr_db_per_frame"]) == len(record["ssim_per_frame"]) == 14
        assert record["preflight"]["loss"] < record["preflight"]["zero_loss"]
        assert record["frame_indices"]["generated"] == [32, 46]
        assert (out / "videos" / f"{name}.mp4").stat().st_size > 1000
        assert any(line.startswith(f"{name}: loss") for line in done.stdout.splitlines())
    config = json.loads((out / "config.json").read_text())
    assert config["arguments"]["steps"] == 2 and len(config["manifest_sha256"]) == 64
    summary = json.loads((out / "summary.json").read_text())
    mean = sum(record["psnr_db"] for record in found.values()) / 4
    assert summary["videos_done"] == 4 and summary["mean_psnr_db"] == pytest.approx(mean)
    assert not [p for p in out.rglob("*") if p.name.endswith(".tmp")]


def kill_after(process, out, videos, delay):
    """kill -9 once `videos` results are there and `delay` seconds have passed."""
    while len(list((out / "videos").glob("*.json"))) < videos and process.is_alive():
        time.sleep(0.02)
    time.sleep(delay)
    process.kill()
    process.join(60)


def test_killed_and_started_again_equals_uninterrupted(whole, tmp_path, script):
    out, flags = tmp_path / "out", [*QUICK, "--out", tmp_path / "out"]
    for videos, delay in ((1, 0.0), (2, 0.25)):  # between two videos, and in the middle of one
        kill_after(start_worker(tmp_path / "said", *flags), out, videos, delay)
    kept = {p: p.stat().st_mtime_ns for p in (out / "videos").glob("*.json")}
    assert len(kept) >= 2  # all four where this process waited long for its turn
    assert script(adasteer, *flags) == 0
    assert results(out) == results(whole[0])
    assert all(p.stat().st_mtime_ns == then for p, then in kept.items())


def test_two_ranges_equal_one_run(whole, tmp_path, script):
    for start, end in ((2, 4), (1, 2)):
        flags = ["--batch-start", start, "--batch-end", end, "--out", tmp_path]
        assert script(adasteer, *QUICK, *flags) == 0
    found = results(tmp_path)
    assert len(found) == 3 and found.items() < results(whole[0]).items()
    assert json.loads((tmp_path / "summary.json").read_text())["videos_done"] == 3


def test_a_half_written_result_is_done_again(whole, tmp_path, script):
    flags = [*QUICK, "--limit", 1, "--out", tmp_path]
    assert script(adasteer, *flags) == 0
    (path,) = (tmp_path / "videos").glob("*.json")
    path.write_text(path.read_text()[:100])
    assert script(adasteer, *flags) == 0
    assert results(tmp_path)[path.stem] == results(whole[0])[path.stem]


def test_of_a_finished_run_nothing_is_worked_on(whole):
    """As in a notebook whose cell is run twice."""
    args = runs.parse_args(None, adasteer.AdaSteer, [*map(str, QUICK), "--out", str(whole[0])])
    with pytest.raises(UsageError, match="nothing is to be done there"):
        with runs.Run(args).working(None):
            pass


def test_the_baseline_has_the_same_noise_and_no_adaptation(whole, tmp_path, script):
    flags = ["--sampling-steps", 2, "--sampling=enhance_hf=false", "--limit", 2, "--out", tmp_path]
    assert script(adasteer, "--steps", 0, *flags) == 0
    for name, record in results(tmp_path).items():
        adapted = results(whole[0])[name]
        assert (
            record["kept"] == "baseline"
            and record["losses"] == []
            and not any(record["norms"].values())
        )
        assert record["preflight"] == adapted["preflight"]
        assert record["psnr_db"] != adapted["psnr_db"]
        assert record["psnr_db"] == pytest.approx(adapted["psnr_db"], abs=1.0)


def test_order_and_company_in_the_list_change_nothing(whole, tmp_path, script):
    rows = demo_rows()[::-1][:2]
    path = write_manifest(tmp_path / "list.csv", rows)
    assert script(adasteer, *QUICK, "--videos", path, "--out", tmp_path / "out") == 0
    for name, record in results(tmp_path / "out").items():
        assert record == results(whole[0])[name]


def test_another_run_in_the_folder_is_refused(whole, tmp_path, script, capsys):
    before = results(whole[0])
    assert script(adasteer, *QUICK, "--lr", 0.1, "--out", whole[0]) == 2
    error = capsys.readouterr().err
    assert "--out" in error and "--lr is 0.002 there, 0.1 here" in error and error.count("\n") == 1
    path = write_manifest(tmp_path / "list.csv", demo_rows()[:1])
    assert script(adasteer, *QUICK, "--videos", path, "--out", whole[0]) == 2
    assert "manifest_sha256" in capsys.readouterr().err
    assert results(whole[0]) == before


def test_device_and_shard_bounds_may_differ(whole, script):
    assert script(adasteer, *QUICK, "--device", "cpu", "--limit", 3, "--out", whole[0]) == 0


def test_bad_clips_are_skipped_and_recorded(whole, tmp_path, script, capsys):
    (tmp_path / "broken.mp4").write_bytes(b"this is no video")
    odd = tmp_path / "ünï code 1.MP4"
    odd.write_bytes(demo_rows()[1][0].read_bytes())
    rows = [
        ("broken.mp4", "x"),
        ("absent.mp4", "y"),
        demo_rows()[1],
        (odd.name, "a ball, “rolling”"),
    ]
    path = write_manifest(tmp_path / "list.csv", rows)
    assert script(adasteer, *QUICK, "--videos", path, "--out", tmp_path / "out") == 3
    found = results(tmp_path / "out")
    assert [found[name]["status"] for name in ("absent", "broken")] == ["skipped", "skipped"]
    assert "no such file" in found["absent"]["reason"]
    assert found["scene_1"] == results(whole[0])["scene_1"]
    assert found["ünï code 1"]["caption"] == "a ball, “rolling”"
    assert "broken: SKIPPED" in capsys.readouterr().out


def test_a_clip_too_short_for_its_window_is_skipped(tmp_path, script):
    flags = ["--anchor", 90, "--limit", 1, "--out", tmp_path]
    assert script(adasteer, *QUICK, *flags) == 3
    (record,) = results(tmp_path).values()
    assert "has 97 frames, 104 are needed" in record["reason"]


def test_a_flipped_sign_is_refused_by_the_preflight(tmp_path, script, monkeypatch, capsys):
    load = backbones.load
    monkeypatch.setattr(backbones, "load", lambda *a, **k: load(*a, **k, network_sign=1))
    assert script(adasteer, *QUICK, "--out", tmp_path) == 1
    assert "sign of the velocity" in capsys.readouterr().err
    found = results(tmp_path)
    assert len(found) == 3
    for record in found.values():
        losses = record["preflight"]
        assert losses["negated_loss"] < losses["zero_loss"] < losses["loss"]
        assert record["status"] == "skipped" and record["reason"].startswith("preflight")


def test_a_bad_start_does_not_hide_a_flipped_sign(tmp_path, script, monkeypatch):
    """Three failed preflights stop the run also where an unreadable file came first. Then the
    folder may be used again with other flags, as no video in it is done."""
    (tmp_path / "broken.mp4").write_bytes(b"this is no video")
    path = write_manifest(tmp_path / "list.csv", [("broken.mp4", "x"), *demo_rows()])
    load, flags = backbones.load, [*QUICK, "--videos", path, "--out", tmp_path / "out"]
    with monkeypatch.context() as patch:
        patch.setattr(backbones, "load", lambda *a, **k: load(*a, **k, network_sign=1))
        assert script(adasteer, *flags) == 1
    assert len(results(tmp_path / "out")) == 4
    assert script(adasteer, *flags, "--limit", 2, "--lr", 0.1) == 3


def test_frames_that_are_not_finite_are_no_result(tmp_path, script, monkeypatch):
    decode = LongCat.decode
    monkeypatch.setattr(LongCat, "decode", lambda self, z: decode(self, z) * float("nan"))
    assert script(adasteer, *QUICK, "--limit", 1, "--out", tmp_path) == 3
    (record,) = results(tmp_path).values()
    assert record["reason"] == "the generated frames are not finite"


def test_a_video_that_changed_is_not_taken_for_the_old_one(tmp_path, script, capsys):
    clip = tmp_path / "a.mp4"
    for row, code in ((0, 0), (1, 2)):
        clip.write_bytes(demo_rows()[row][0].read_bytes())
        flags = ["--videos", clip, "--prompt", "x", "--out", tmp_path / "out"]
        assert script(adasteer, *QUICK, *flags) == code
    assert "is not the file that" in capsys.readouterr().err


@pytest.mark.skipif(not (SHARED / "clips").is_dir(), reason=f"no real clips in {SHARED}")
def test_real_clips(tmp_path, script):
    """The model beats predicting zero on each, by far less than its negation; three steps act."""
    flags = ["--videos", SHARED / "clips" / "metadata.csv", "--limit", 4, "--groups", 1]
    assert script(adasteer, *QUICK, *flags, "--out", tmp_path) == 0
    found = results(tmp_path)
    assert len(found) == 4
    for record in found.values():
        losses = record["preflight"]
        assert losses["loss"] < losses["zero_loss"] < losses["negated_loss"]
        assert record["kept"] == "adapted" and record["source"] != record["id"]
        assert record["columns"]["license"]


def test_early_stopping_and_forgetting_are_recorded(tmp_path, script):
    """With the demo's list the other clip is its first, for the first itself the second."""
    manifest = ROOT / "nano" / "demo" / "manifest.csv"
    flags = ["--stop-every", 1, "--forgetting", manifest, "--limit", 2, "--lr", 1e-2]
    assert script(adasteer, *QUICK, *flags, "--out", tmp_path) == 0
    first, second = results(tmp_path).values()
    assert first["forgetting"]["id"] == "scene_1" and second["forgetting"]["id"] == "scene_0"
    for record in (first, second):
        assert [step for step, _ in record["anchor_losses"]] == [0, 1, 2]
        best = min(record["anchor_losses"], key=lambda entry: entry[1])[0]
        assert record["best_step"] == best and record["stop_step"] is None
        assert record["kept"] == ("adapted" if best else "baseline")
        losses = record["forgetting"]
        assert (losses["loss_before"] == losses["loss_after"]) == (best == 0)


def test_captions_frames_and_references(tmp_path, script, capsys):
    """A list of poor captions is refused, unless one is given for all or they are wanted."""
    rows = [(path, "videos") for path, _ in demo_rows() * 6]
    path = write_manifest(tmp_path / "list.csv", [])
    with open(path, "a", newline="") as file:
        for n, (video, caption) in enumerate(rows):
            name = f"{n}.mp4"
            (tmp_path / name).symlink_to(video)
            csv.writer(file).writerow([name, caption])
    flags = ["--videos", path, "--limit", 1, *QUICK, "--steps", 0, "--save-frames"]
    assert script(adasteer, *flags, "--out", tmp_path / "a") == 2
    assert "100 % are the same" in capsys.readouterr().err
    assert script(adasteer, *flags, "--allow-poor-captions", "--out", tmp_path / "b") == 0
    assert script(adasteer, *flags, "--caption", "A scene.", "--out", tmp_path / "c") == 0
    (record,) = results(tmp_path / "c").values()
    assert record["caption"] == "A scene."
    ceiling, still = record["references"]["reconstruction"], record["references"]["repeat_last"]
    assert ceiling["psnr_db"] > 20 and ceiling["psnr_db"] > still["psnr_db"]
    assert len(record["flow_error_px_per_frame"]) == 14 and record["temporal_psnr_db"] > 10
    summary = json.loads((tmp_path / "c" / "summary.json").read_text())
    assert summary["mean_references"]["reconstruction"]["psnr_db"] == ceiling["psnr_db"]
    with np.load(tmp_path / "c" / "videos" / f"{record['id']}.npz") as saved:
        assert saved["generated"].shape == saved["truth"].shape == (14, 64, 64, 3)
        error = (saved["generated"] / 255.0 - saved["truth"] / 255.0) ** 2
    psnr = -10 * np.log10(error.mean((1, 2, 3))).mean()
    assert psnr == pytest.approx(record["psnr_db"], abs=0.05)


def test_the_official_layout_runs_from_the_command_line(toy_checkpoint, tmp_path, script):
    """A random model cannot pass the preflight; without it everything else must work, Wan VAE
    included."""
    flags = ["--checkpoint", toy_checkpoint, "--no-preflight", "--limit", 1, "--out", tmp_path]
    assert script(adasteer, *QUICK, *flags) == 0
    (record,) = results(tmp_path).values()
    assert record["status"] == "done" and record["adapted_parameters"] == 16


VARIANT = '''
class AdaSteer:
    """One gain on the timestep embedding."""

    @staticmethod
    def add_arguments(parser):
        parser.add_argument("--start", type=float, default=1.0, help="of the gain")

    def __init__(self, model, clip, args):
        self.model, self.args = model, args
        self.gain = torch.tensor(args.start, device=model.device, requires_grad=True)

    def named_parameters(self):
        return {"gain": self.gain}

    def optimizer(self):
        optimizer = torch.optim.AdamW([self.gain], lr=self.args.lr)
        return optimizer, common.constant(optimizer)

    def loss(self, draw):
        return common.flow_matching_loss(self.model, *draw)

    def attached(self):
        return self.model.timestep_embedding(lambda i, e, sigma: e * self.gain)

'''


def test_a_copy_of_the_script_with_another_class_runs(tmp_path, script, monkeypatch):
    text = (ROOT / "adasteer.py").read_text()
    start, end = text.index("class AdaSteer"), text.index("def main")
    variant = tmp_path / "my_variant.py"
    variant.write_text(
        (text[:start] + VARIANT.lstrip() + "\n" + text[end:]).replace("AdaSteer", "Gain")
    )
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("my_variant", None)
    module = importlib.import_module("my_variant")
    flags = [*QUICK, "--limit", 1, "--start", 1.0, "--out", tmp_path / "out"]
    assert script(module, *flags) == 0
    (record,) = results(tmp_path / "out").values()
    assert record["adapted_parameters"] == 1 and record["norms"]["gain"] != 1.0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["method"] == "Gain"


VARIANTS = [
    (adasteer, "--target hidden --offload blocks"), (adasteer, "--time-slope --dims 8 --profile"),
    (last_layer_tta, ""), (last_layer_tta, "--site last-modulation --stop-every 1"),
    (delta_c, "--solver closed-form --weights fp8"), (lora_tta, "--ffn --weights fp8"),
    (lora_tta, "--blocks last:2 --offload blocks --save-adapter"), (norm_tta, "--with-delta"),
    (film_tta, "--mode scale --groups 3 --checkpointing 4"),
    (full_tta, "--ewc 1 --stop-every 1"), (full_tta, "--optimizer sgd --offload vae"),
]  # fmt: skip


@pytest.mark.parametrize(("module", "flags"), VARIANTS)
def test_variants_from_the_command_line(module, flags, tmp_path, script):
    out = tmp_path / "out"
    assert script(module, *QUICK, "--limit", 1, *flags.split(), "--out", out) == 0
    (record,) = results(out).values()
    assert record["status"] == "done" and not record["diverged"] and record["psnr_db"] > 15


def test_one_conditioning_frame(tmp_path, script):
    """15 frames are no 4k + 1: the reference of the autoencoder fills them up."""
    flags = ["--cond-frames", 1, "--context-latents", 1, "--limit", 1, "--out", tmp_path]
    flags += ["--steps", 0]
    assert script(adasteer, *QUICK, *flags) == 0
    (record,) = results(tmp_path).values()
    assert record["references"]["reconstruction"]["psnr_db"] > record["psnr_db"]


def test_a_folder_of_many_files_needs_one_prompt(tmp_path, script, capsys):
    for i in range(20):
        os.link(demo_rows()[0][0], tmp_path / f"clip_{i}.mp4")
    flags = ["--videos", tmp_path, "--dry-run", "--out", tmp_path / "out"]
    assert script(adasteer, *flags, "--prompt", "a ball rolls") == 0
    assert script(adasteer, *flags, "--caption", "a ball rolls") == 0
    assert capsys.readouterr().out.count("a ball rolls") >= 40
    assert script(adasteer, *flags) == 2
