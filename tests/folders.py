"""Folders of runs as the scripts write them, for tests of what reads them."""

import json

import runs
from adasteer import AdaSteer
from report.runs import read_runs
from runs.whole import STAGES

METRICS = {
    "future_loss": None, "future_loss_before": None, "kernel_score": None, "energy_score": None,
    "psnr_db": 20.0, "ssim": 0.6, "lpips": None, "temporal_psnr_db": 25.0, "temporal_ssim": 0.5,
    "flow_error_px": 1.0, "warping_error": 0.1, "truth_warping_error": 0.1,
}  # fmt: skip


FRAMES = [name for name in METRICS if not name.startswith("future")]
FLAGS = runs.parse_args(None, AdaSteer, []).flags  # what each changes
BEFORE = 0.2  # loss on the true future of a model that is not adapted


def make_run(
    folder, gains, steps=5, seed=42, sources=None, futures=None, samples=None, **arguments
):
    """A run's folder as the scripts write it; gains in dB by video, None for a skipped one.
    futures: losses on the true future by video; samples: the scores of all samples together."""
    videos = folder / "videos"
    videos.mkdir(parents=True)
    flags = {
        "steps": steps, "seed": seed, "lr": 5e-3, "videos": "list.csv", "out": str(folder),
        "checkpoint": "nano", "anchor": 32, "cond_frames": 13, "gen_frames": 14,
        "script": "adasteer", "script_sha256": "d" * 64,
    }  # fmt: skip
    config = {
        "method": "AdaSteer", "arguments": flags | arguments, "flags": FLAGS,
        "manifest_sha256": "a" * 64, "checkpoint_sha256": "b" * 64, "lpips_sha256": None,
        "source_sha256": "e" * 64,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    for i, gain in enumerate(gains):
        name = f"v{i:03d}"
        record = {"id": name, "source": sources[i] if sources else name, "caption": "a red ball"}
        if gain is None:
            record |= {"status": "skipped", "reason": "too short"}
        else:
            record |= METRICS | {
                "status": "done", "video_sha256": "c" * 64, "columns": {"motion": str(i)},
                "psnr_db": 20 + i % 7 + gain, "psnr_db_per_frame": [22.0 + gain, 20.0, None],
                "losses": [0.5, None, 0.4][:steps], "anchor_losses": [[0, 0.5], [2, 0.4]],
                "stop_step": None, "diverged": False, "kept": "adapted", "seed": seed,
                "preflight": {"loss": 0.4, "zero_loss": 1.5, "negated_loss": 6.0},
                "frame_indices": {
                    "tta": [3, 32], "conditioning": [19, 32], "generated": [32, 46]
                },
                "references": {"repeat_last": {}, "reconstruction": {}},
                **{f"{stage}_seconds": 0.5 for stage in STAGES},
                "adapt_seconds": 0.1 * steps, "peak_memory_gb": 1.0, "adapted_parameters": 64,
                "target_values": 12288, "cond_motion": 0.01 * i, "norms": {"d": 1.0},
                "distances": {"d": 1.0}, "relative_distances": {"d": 0.5},
            }  # fmt: skip
            record |= samples or {}
            record |= future_of(futures[i], steps) if futures else {}
            if arguments.get("generate") is False:
                record |= dict.fromkeys(FRAMES) | {"references": {}}
                record.pop("psnr_db_per_frame")
        (videos / f"{name}.json").write_text(json.dumps(record))
    return folder


def future_of(loss, steps):
    return {
        "future_loss_before": BEFORE, "future_loss": loss,
        "future_loss_per_sigma": [loss * x for x in (3, 1, 0.5, 0.3, 0.2)],
        "future_loss_per_latent": [loss * x for x in (0.5, 1, 1.5)],
        "future_losses": [[2, (loss + BEFORE) / 2], [4, loss]] if steps else [],
    }  # fmt: skip


def runs_in(folder):
    """Gives run folders in a row: (name, gains, flags)."""

    def call(*rows):
        return read_runs([make_run(folder / name, gains, **kw) for name, gains, kw in rows])

    return call


def change(path, edit):
    """Edits the content of a JSON file."""
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
