"""A run: which videos of the list are still to do, in which order, and what they share."""

import sys
import time
from contextlib import nullcontext
from dataclasses import replace

import av

from common import identity, results
from common.background import Ahead, Behind
from common.cache import Cache, References, embedded
from common.captions import captioned
from common.claims import Claims
from common.clip import Window, load_clip, read_footage
from common.data import list_videos, sha256
from common.errors import PreflightError, StopRun, UsageError, VideoError
from common.evaluate import reconstruct
from common.exits import BEFORE_STOP
from common.loss import beats_zero, preflight
from common.metrics import load_lpips, lpips_sha256
from common.placement import within_memory
from common.records import Records
from common.stages import stage, traced

PROBLEMS = (OSError, ValueError, RuntimeError, av.FFmpegError)  # of scoring and writing
FAILED_PREFLIGHTS = 3  # at the start of a range: the run stops


class Run:
    """Opens or resumes the run in args.out. Raises UsageError where that holds another one."""

    def __init__(self, args):
        self.args, self.out, self.window = args, args.out, Window.of(args)
        videos, manifest_sha256 = list_videos(
            args.videos, args.prompt, allow_empty=args.caption or args.allow_poor_captions
        )
        self.videos = in_range(captioned(videos, args), args)
        self.others, others_sha256 = [], None
        if args.forgetting:
            self.others, others_sha256 = list_videos(args.forgetting, flag="--forgetting")
        lpips, no_lpips = load_lpips(args.lpips_weights)
        self.config = identity.describe(
            args, manifest_sha256, others_sha256, lpips_sha256(args.lpips_weights), no_lpips
        )
        goes_on = identity.same_run(self.out, self.config)
        self.records = Records(args, self.config, self.window, lpips)
        self.before = {video.id: self.records.changed(video) for video in self.videos}
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
        self.model, self.cache = model, Cache(self.args.cache)
        self.references = References(self.cache, self.args, model, self.config["lpips"])
        captions = [video.caption for video in self.todo + self.others[:2]]
        self.texts, new = embedded(
            model, [self.args.negative_prompt, *captions], self.cache, self.args.checkpoint
        )
        model.placement.begin(new)
        self.other_clips = self._load_others()
        done = len(self.videos) - len(self.todo)
        self.ahead = Ahead(lambda v: read_footage(v, self.window, model.frame_size), model.device)
        self.behind = Behind(model.device)
        BEFORE_STOP.insert(0, self.behind.finish)  # before the claims are given back
        self.passed = self.missed = 0
        with self.records.progress(len(self.videos), done):
            for video in self.claims.in_turn(self.todo, self.show):
                if self.records.changed(video) != self.before[video.id]:
                    self.records.bar.update()  # another worker has done it
                    self.claims.release(video.id)
                    continue
                try:
                    clip = self._load(video)
                except VideoError as error:
                    self._skip(video, error)
                else:
                    with self._trace():
                        yield clip
                if self.missed == FAILED_PREFLIGHTS and not self.passed and not done:
                    raise StopRun(self._suspicion())
            self.behind.finish()

    def _load(self, video):
        results.remove_unfinished(self.out / "videos", video.id)
        self.started = time.perf_counter()
        self.show(f"{video.id} loading")
        footage, following = self.ahead.take(video), self._following(video)
        if following:
            self.ahead.begin(following)
        clip = self._encode(video, footage)
        losses = within_memory(self.model, lambda: preflight(self.model, clip))
        if self.args.preflight and not beats_zero(losses):
            self.missed += 1
            raise PreflightError(losses)
        self.passed += 1
        return replace(clip, preflight=losses, other=self._other(clip))

    def _following(self, video):
        """The next video that no other worker has, or None."""
        rest = self.todo[self.todo.index(video) + 1 :]
        return next((v for v in rest if self.claims.is_free(v.id)), None)

    def _encode(self, video, footage=None):
        encode = None
        if self.args.cache_latents:
            encode = self.cache.encoder(self.model, self.args.checkpoint, video, self.window)
        texts = [self.texts[x] for x in (video.caption, self.args.negative_prompt)]
        size, seed = self.model.frame_size, self.args.seed
        return within_memory(
            self.model,
            lambda: load_clip(self.model, video, self.window, size, *texts, seed, footage, encode),
        )

    def _load_others(self):
        """The first two clips of --forgetting: one of them is not the video that is adapted to."""
        try:
            return [self._encode(video) for video in self.others[:2]]
        except VideoError as error:
            raise UsageError(f"--forgetting {self.args.forgetting}: {error}") from error

    def _other(self, clip):
        for other in self.other_clips:
            if other.video_sha256 != clip.video_sha256:
                return other
        if self.other_clips:
            raise UsageError(
                f"--forgetting {self.args.forgetting}: holds no video but {clip.video.id} itself"
            )
        return None

    def _trace(self):
        """Of the first video, where --profile asks for it."""
        path = self.out / "trace.json.gz"
        if not self.args.profile or self.passed > 1:
            return nullcontext()
        self.records.bar.write(f"profiling the first video: {path}")
        return traced(path, self.model.device)

    def show(self, line):
        self.records.show(line)

    def write(self, clip, record, frames, method):
        """Scores the generated frames and writes the video's mp4, adapter and JSON, all but the
        adapter in the background."""
        if not frames.isfinite().all():
            self._skip(clip.video, VideoError("the generated frames are not finite"))
            return
        identity.refuse_other(self.out, self.config)  # one that began beside this one
        if self.args.save_adapter:
            results.save_adapter(self.out / "videos" / clip.video.id, method)
        with stage(record, "reference", self.model.device):
            record["references"], again = self.references.load(clip), None
            if record["references"] is None:
                again = within_memory(self.model, lambda: reconstruct(self.model, clip))
        record |= clip.costs | {
            "placement": self.model.placement.describe(),
            "total_seconds": time.perf_counter() - self.started,
        }
        self.behind.begin(lambda: self._finish(clip, record, frames, again))

    def _finish(self, clip, record, frames, reconstruction):
        try:
            record = self.records.finish(clip, record, frames, reconstruction)
        except PROBLEMS as error:  # of this video alone; the next is adapted to already
            self._skip(clip.video, VideoError(f"not scored: {type(error).__name__}: {error}"))
            return
        self.claims.release(clip.video.id)
        self.references.save(clip, record["references"])
        self.records.announce(record)

    def _skip(self, video, error):
        try:
            self.records.skip(video, error)
        except OSError as problem:
            raise StopRun(f"--out {self.out}: cannot be written ({problem})") from problem
        self.claims.release(video.id)

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

    def _is_done(self, video):
        record = results.read_json(self.records.path(video)) or {}
        if record.get("status") != "done":
            return False
        if video.path.is_file() and sha256(video.path) != record["video_sha256"]:
            raise UsageError(
                f"--videos: {video.path} is not the file that {self.records.path(video)} was made "
                "from; choose another --out"
            )
        return True

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
        for name, (start, stop) in self.window.indices().items():
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
