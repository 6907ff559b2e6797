"""A run: which videos of the list are still to do, and where their results go."""

import sys
import time
from dataclasses import replace

from tqdm import tqdm

from common import results
from common.captions import captioned
from common.claims import Claims
from common.clip import Window, load_clip, mean_change, side_by_side
from common.data import list_videos, sha256, write_video
from common.errors import PreflightError, StopRun, UsageError, VideoError
from common.evaluate import evaluate, references
from common.loss import beats_zero, preflight
from common.metrics import load_lpips

# what may differ when a run goes on: it changes no number, or is known by its content
NEUTRAL = {
    "videos", "checkpoint", "out", "batch_start", "batch_end", "limit", "device", "checkpointing",
    "dry_run", "forgetting", "shard", "lpips_weights", "allow_poor_captions", "save_frames",
    "save_adapter",
}  # fmt: skip
FAILED_PREFLIGHTS = 3  # at the start of a range: the run stops


class Run:
    """Opens or resumes the run in args.out. Raises UsageError where that holds another one."""

    def __init__(self, args):
        self.args, self.out, self.window, self.last = args, args.out, Window.of(args), ""
        videos, manifest_sha256 = list_videos(
            args.videos, args.prompt, allow_empty=args.caption or args.allow_poor_captions
        )
        self.videos = in_range(captioned(videos, args), args)
        self.others, others_sha256 = [], None
        if args.forgetting:
            self.others, others_sha256 = list_videos(args.forgetting, flag="--forgetting")
        self.lpips, no_lpips = load_lpips(args.lpips_weights)
        self.config = results.describe(args, manifest_sha256, others_sha256, no_lpips)
        goes_on = results.same_run(self.out, self.config, NEUTRAL)
        self.before = {video.id: self._changed(video) for video in self.videos}
        self.todo = [video for video in self.videos if not self._is_done(video)]
        if args.dry_run:
            self._print_plan()
            raise SystemExit(0)
        if not self.videos:
            print("--shard {}/{}: holds no video".format(*args.shard))
            raise SystemExit(0)
        if not self.todo:
            raise SystemExit(self.exit_code())
        try:
            (self.out / "videos").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--out {self.out}: cannot be written ({error.strerror})") from error
        if no_lpips:
            print(f"LPIPS is not computed: {no_lpips}", file=sys.stderr)
        if not goes_on:
            results.write_json(self.out / "config.json", self.config)
        self.claims = Claims(self.out / "videos")

    def clips(self, model):
        """Loads the videos still to do, one after the other; those that cannot be used are recorded
        as skipped. Raises StopRun where the model predicts none of the first few."""
        texts, self.model = self._embed(model), model
        self.other_clips = self._load_others(model, texts)
        done = len(self.videos) - len(self.todo)
        self.passed = self.missed = 0
        with tqdm(total=len(self.videos), initial=done, unit="video", disable=None) as self.bar:
            for video in self.claims.in_turn(self.todo, self.show):
                if self._changed(video) != self.before[video.id]:  # another worker has done it
                    self.bar.update()
                    continue
                results.remove_unfinished(self.out / "videos", video.id)
                self.started = time.perf_counter()
                results.reset_peak_memory(model.device)
                self.show(f"{video.id} loading")
                try:
                    yield self._load(model, video, texts)
                except VideoError as error:
                    self._skip(video, error)
                if self.missed == FAILED_PREFLIGHTS and not self.passed and not done:
                    raise StopRun(self._suspicion())

    def _changed(self, video):  # in nanoseconds
        path = self._path(video)
        return path.stat().st_mtime_ns if path.exists() else None

    def _embed(self, model):
        """Text of every caption and of the negative prompt, by prompt."""
        captions = [video.caption for video in self.todo + self.others[:2]]
        prompts = list(dict.fromkeys([self.args.negative_prompt, *captions]))
        text = model.embed(prompts)
        return {prompt: text[i : i + 1] for i, prompt in enumerate(prompts)}

    def _load(self, model, video, texts):
        text, negative_text = texts[video.caption], texts[self.args.negative_prompt]
        clip = load_clip(
            model, video, self.window, model.frame_size, text, negative_text, self.args.seed
        )
        losses = preflight(model, clip)
        if self.args.preflight and not beats_zero(losses):
            self.missed += 1
            raise PreflightError(losses)
        self.passed += 1
        return replace(clip, preflight=losses, other=self._other(clip, self.other_clips))

    def _load_others(self, model, texts):
        """The first two clips of --forgetting: one of them is not the video that is adapted to."""
        try:
            return [
                load_clip(
                    model, v, self.window, model.frame_size, texts[v.caption], texts[v.caption],
                    self.args.seed,
                )
                for v in self.others[:2]
            ]  # fmt: skip
        except VideoError as error:
            raise UsageError(f"--forgetting {self.args.forgetting}: {error}") from error

    def _other(self, clip, others):
        for other in others:
            if other.video_sha256 != clip.video_sha256:
                return other
        if others:
            raise UsageError(
                f"--forgetting {self.args.forgetting}: holds no video but {clip.video.id} itself"
            )
        return None

    def show(self, line):
        """Says beside the progress bar what is going on, and how the last video went."""
        self.bar.set_postfix_str(line + self.last)

    def write(self, clip, record, frames, method):
        """Scores the generated frames and writes the video's mp4, adapter and JSON."""
        if not frames.isfinite().all():
            self._skip(clip.video, VideoError("the generated frames are not finite"))
            return
        results.refuse_other(self.out, self.config, NEUTRAL)  # one that began beside this one
        started = time.perf_counter()
        record |= evaluate(frames, clip.truth, clip.cond_frames[-1], self.lpips)
        name = self.out / "videos" / clip.video.id
        if self.args.save_frames:
            results.save_frames(name, frames, clip.truth)
        results.replace_file(
            name.with_name(f"{name.name}.mp4"),
            lambda path: write_video(path, side_by_side(clip, frames), clip.fps),
        )
        if self.args.save_adapter:
            results.save_adapter(name, method)
        record |= self._identity(clip.video) | {
            "status": "done",
            "video_sha256": clip.video_sha256,
            "frame_indices": self._frame_indices(),
            "preflight": clip.preflight,
            "target_values": clip.target.numel(),
            "cond_motion": mean_change(clip.cond_frames),
            "references": references(self.model, clip, self.lpips),
            "device": str(clip.target.device),
            "git_revision": self.config["git_revision"],
            "encode_seconds": clip.encode_seconds,
            "metrics_seconds": time.perf_counter() - started,
            "total_seconds": time.perf_counter() - self.started,
            "peak_memory_gb": results.peak_memory_gb(clip.target.device),
        }
        results.write_json(self._path(clip.video), record)
        self.bar.write(results.line(record))
        self.last = "" if record["psnr_db"] is None else f", PSNR {record['psnr_db']:.2f} dB"
        self.bar.update()

    def exit_code(self):
        """Writes and prints the summary; 3 where videos of this range were skipped, else 0."""
        summary = results.summarise(self.out)
        done, skipped = summary["videos_done"], summary["videos_skipped"]
        psnr, ssim = summary["mean_psnr_db"], summary["mean_ssim"]
        if done:
            psnr = "-" if psnr is None else f"{psnr:.2f} dB"
            print(f"{done} videos done: mean PSNR {psnr}, SSIM {ssim:.3f}; {self.out}/summary.json")
        for name, reason in skipped.items():
            print(f"skipped {name}: {reason}", file=sys.stderr)
        return 3 if skipped.keys() & {video.id for video in self.videos} else 0

    def _path(self, video):
        return self.out / "videos" / f"{video.id}.json"

    def _is_done(self, video):
        record = results.read_json(self._path(video)) or {}
        if record.get("status") != "done":
            return False
        if video.path.is_file() and sha256(video.path) != record["video_sha256"]:
            raise UsageError(
                f"--videos: {video.path} is not the file that {self._path(video)} was made from; "
                "choose another --out"
            )
        return True

    def _identity(self, video):
        facts = {"id": video.id, "caption": video.caption, "source": video.source}
        return facts | {"seed": self.args.seed, "columns": video.columns}

    def _frame_indices(self):  # half-open, as in Python
        w = self.window
        return {
            "tta": [w.anchor - w.tta_frames, w.anchor],
            "conditioning": [w.anchor - w.cond_frames, w.anchor],
            "generated": [w.anchor, w.stop],
        }

    def _skip(self, video, error):
        record = self._identity(video) | {"status": "skipped", "reason": str(error)}
        if isinstance(error, PreflightError):
            record["preflight"] = error.losses
        results.write_json(self._path(video), record)
        self.bar.write(f"{video.id}: SKIPPED, {error}")
        self.bar.update()

    def _suspicion(self):
        return (
            f"the model does worse than predicting zero on the first {self.missed} videos. Suspect "
            "the sign of the velocity, the normalisation of the latents (vae/config.json) or the "
            f"prompts; the losses are in {self.out}/videos. --no-preflight adapts all the same"
        )

    def _print_plan(self):
        print(
            f"{self.args.method} on {len(self.videos)} videos of {self.args.videos} -> {self.out}"
        )
        for name, (start, stop) in self._frame_indices().items():
            print(f"  {name} frames {start}..{stop - 1}")
        for name, value in sorted(vars(self.args).items()):
            print(f"  {name} = {value}")
        for video in self.videos:
            print(f"{'to do' if video in self.todo else 'done '}  {video.id}: {video.caption}")


def in_range(videos, args):
    """From --batch-start to --batch-end, of those the first --limit, of those the shard."""
    chosen = videos[args.batch_start : args.batch_end]
    if not chosen:
        raise UsageError(
            f"--batch-start {args.batch_start}: {args.videos} lists {len(videos)} videos, the "
            "range holds none of them"
        )
    chosen, (index, count) = chosen[: args.limit], args.shard
    first, last = (len(chosen) * i // count for i in (index, index + 1))
    return chosen[first:last]
