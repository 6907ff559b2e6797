"""The whole record of a finished video: its scores, where frames were generated, and its mp4."""

import time
from concurrent.futures import ThreadPoolExecutor

from common.clip import mean_change
from common.errors import UsageError
from runs import results
from runs.baseline import moved
from runs.evaluate import clean_scores, evaluate, reference_scores
from runs.pictures import write_pictures
from runs.samples import combined, scores_together
from runs.whole import METRICS, STAGES


def add_arguments(group):
    group.add_argument(
        "--save-frames", action="store_true", changes=None, baseline=True,
        help="keep generated and true frames as <id>.npz, 8 bits, for report.fvd",
    )  # fmt: skip


def check(args):
    if args.save_frames and not args.generate:
        raise UsageError("--save-frames: nothing is sampled with --no-generate")


class Scores:
    def __init__(self, args, records, window, lpips):
        self.args, self.records, self.window, self.lpips = args, records, window, lpips

    def of(self, clip, record, frames, reconstruction):
        """The record with all that is known by now, its mp4 written. frames: the samples, or None.
        reconstruction: the real frames through the autoencoder, where they are wanted."""
        started = time.perf_counter()
        nothing = {f"{name}_seconds": 0.0 for name in STAGES} | {"references": {}}
        record = dict.fromkeys(METRICS) | nothing | record
        if frames is not None:
            self._score(clip, record, frames, reconstruction)
        record |= self.records.identity(clip.video) | {
            "status": "done",
            "video_sha256": clip.video_sha256,
            "video_file": clip.video_file,
            **clip.files,
            "frame_indices": self.window.indices(),
            "preflight": clip.preflight,
            "target_values": clip.target.numel(),
            "cond_motion": mean_change(clip.cond_frames),
            "device": str(clip.target.device),
            **self.records.made_with(),
            "peak_memory_gb": max(v for k, v in record.items() if k.endswith("_peak_memory_gb")),
        }
        record["metrics_seconds"] = time.perf_counter() - started
        record["total_seconds"] += record["metrics_seconds"]
        return record

    def _score(self, clip, record, frames, reconstruction):
        with ThreadPoolExecutor(1) as pool:  # encoding takes other time than scoring
            writing = pool.submit(self._write_pictures, clip, frames[0])
            record |= combined([evaluate(sample, clip, self.lpips) for sample in frames])
            record |= combined([clean_scores(sample, clip, self.lpips) for sample in frames])
            record |= scores_together(frames, clip.truth)
            if self.args.baseline:
                name = clip.video.id
                record["moved_from_baseline"] = moved(self.args.baseline, name, frames[0])
            if reconstruction is not None:
                record["references"] = reference_scores(clip, reconstruction, self.lpips)
            writing.result()

    def _write_pictures(self, clip, frames):
        name = self.records.folder / clip.video.id
        if self.args.save_frames:
            results.save_frames(name, frames, clip.truth)
        results.replace_file(
            name.with_name(f"{name.name}.mp4"), lambda path: write_pictures(path, clip, frames)
        )
