"""What a run leaves behind for each video, and what it shows meanwhile."""

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from common.clip import mean_change
from common.errors import PreflightError, StopRun
from common.values import folder
from runs import identity, results
from runs.baseline import moved
from runs.ending import line
from runs.evaluate import evaluate, reference_scores
from runs.names import printable
from runs.pictures import write_pictures
from runs.samples import combined, scores_together


def add_arguments(group):
    group.add_argument(
        "--out", type=folder, metavar="FOLDER", changes=None,
        help="results; by default results/<script>",
    )  # fmt: skip
    group.add_argument(
        "--save-frames", action="store_true", changes=None, baseline=True,
        help="keep generated and true frames as <id>.npz, 8 bits, for report.fvd",
    )  # fmt: skip


@contextlib.contextmanager
def writing(out):
    """A full disk is not the fault of a video: the run stops, and what is not done stays to do."""
    try:
        yield
    except OSError as error:
        raise StopRun(f"--out {out}: cannot be written ({error})") from error


class Record(dict):
    """What is found out about a video until it is handed over."""

    def __init__(self, hand_over):
        super().__init__()
        self._hand_over, self.handed_over = hand_over, False

    def later(self, clip, frames, method):
        """The frames are scored and all is written in the background. frames: (samples, F, 3, H, W)
        as `generate` gives them, or None."""
        self.handed_over = True
        self._hand_over(clip, self, frames, method)


class Records:
    def __init__(self, args, config, window, lpips):
        self.args, self.config, self.window, self.lpips = args, config, window, lpips
        self.folder, self.last, self.bar = args.out / "videos", "", None

    def path(self, video):
        return self.folder / f"{video.id}.json"

    def changed(self, video):
        """When its record was last written, in nanoseconds."""
        path = self.path(video)
        return path.stat().st_mtime_ns if path.exists() else None

    @contextlib.contextmanager
    def progress(self, total, done):
        with tqdm(total=total, initial=done, unit="video", disable=None) as self.bar:
            yield

    def show(self, line):
        """Says beside the progress bar what is going on, and how the last video went."""
        self.bar.set_postfix_str(printable(line + self.last))

    def say(self, line):
        """A line for people, where there is no progress bar too."""
        self.bar.write(printable(line))

    def skip(self, video, error):
        record = self._identity(video) | {"status": "skipped", "reason": str(error)}
        if isinstance(error, PreflightError):
            record["preflight"] = error.losses
        results.write_json(self.path(video), record)
        self.say(f"{video.id}: SKIPPED, {error}")
        self.bar.update()

    def scored(self, clip, record, frames, reconstruction):
        """The whole record of a video, its mp4 written. frames: the samples, or None.
        reconstruction: the real frames through the autoencoder, where they are wanted."""
        started = time.perf_counter()
        nothing = {f"{name}_seconds": 0.0 for name in results.STAGES} | {"references": {}}
        record = dict.fromkeys(results.METRICS) | nothing | record
        if frames is not None:
            self._score(clip, record, frames, reconstruction)
        record |= self._identity(clip.video) | {
            "status": "done",
            "video_sha256": clip.video_sha256,
            "video_file": clip.video_file,
            "frame_indices": self.window.indices(),
            "preflight": clip.preflight,
            "target_values": clip.target.numel(),
            "cond_motion": mean_change(clip.cond_frames),
            "device": str(clip.target.device),
            **{key: self.config[key] for key in ("git_revision", "source_sha256")},
            "peak_memory_gb": max(v for k, v in record.items() if k.endswith("_peak_memory_gb")),
        }
        record["metrics_seconds"] = time.perf_counter() - started
        record["total_seconds"] += record["metrics_seconds"]
        return record

    def _score(self, clip, record, frames, reconstruction):
        with ThreadPoolExecutor(1) as pool:  # encoding takes other time than scoring
            writing = pool.submit(self._write_pictures, clip, frames[0])
            record |= combined([evaluate(sample, clip, self.lpips) for sample in frames])
            record |= scores_together(frames, clip.truth)
            if self.args.baseline:
                name = clip.video.id
                record["moved_from_baseline"] = moved(self.args.baseline, name, frames[0])
            if reconstruction is not None:
                record["references"] = reference_scores(clip, reconstruction, self.lpips)
            writing.result()

    def write(self, video, record):
        identity.refuse_other(self.args.out, self.config)  # as it may be by now
        results.write_json(self.path(video), record)

    def announce(self, record):
        self.say(line(record))
        self.last = "" if record["psnr_db"] is None else f", PSNR {record['psnr_db']:.2f} dB"
        self.bar.update()

    def _write_pictures(self, clip, frames):
        name = self.folder / clip.video.id
        if self.args.save_frames:
            results.save_frames(name, frames, clip.truth)
        results.replace_file(
            name.with_name(f"{name.name}.mp4"), lambda path: write_pictures(path, clip, frames)
        )

    def _identity(self, video):
        facts = {"id": video.id, "caption": video.caption, "source": video.source}
        return facts | {"seed": self.args.seed, "columns": video.columns}
