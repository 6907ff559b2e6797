"""A run: the videos that are still to do, one after the other, and what they share."""

import itertools
import sys
import time
from contextlib import nullcontext
from dataclasses import replace

import av

from common.clip import Window, load_clip, read_footage
from common.errors import PreflightError, StopRun, UsageError, VideoError
from common.evaluate import reconstruct
from common.loss import beats_zero, preflight
from common.metrics import load_lpips, lpips_sha256
from common.names import printable
from common.stages import stage, traced
from devices.placement import within_memory
from runs import identity, results
from runs.background import Ahead, Behind
from runs.cache import Cache
from runs.claims import Claims
from runs.exits import BEFORE_STOP, STOPPED
from runs.prompts import Prompts
from runs.records import Records, writing
from runs.todo import chosen_videos, is_done, other_videos, print_plan, written

PROBLEMS = (ValueError, RuntimeError, av.FFmpegError)  # of scoring one video
FAILED_PREFLIGHTS = 3  # at the start of a range: the run stops


def add_arguments(group):
    group.add_argument(
        "--save-adapter", action="store_true", changes=None,
        help="keep each video's adapted parameters (full_tta.py: all weights, each time)",
    )  # fmt: skip


class Run:
    """Opens or resumes the run in args.out. Raises UsageError where that holds another one."""

    def __init__(self, args):
        self.args, self.out, self.window = args, args.out, Window.of(args)
        self.videos, manifest_sha256 = chosen_videos(args)
        self.others, others_sha256 = other_videos(args)
        lpips, no_lpips = load_lpips(args.lpips_weights)
        self.config = identity.describe(
            args, manifest_sha256, others_sha256, lpips_sha256(args.lpips_weights), no_lpips
        )
        goes_on = identity.same_run(self.out, self.config)
        self.records = Records(args, self.config, self.window, lpips)
        self.before = written(self.out / "videos")
        self.todo = [v for v in self.videos if not self._is_done(v)]
        done = len(self.videos) - len(self.todo)
        if args.dry_run:
            print_plan(args, self.window, self.videos, self.todo)
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
        if goes_on:
            edited = identity.edited_source(self.out, self.config)
            print(f"{done} already done, {len(self.todo)} to do{edited}")
        else:
            results.write_json(self.out / "config.json", self.config)
        self.claims = Claims(self.out / "videos")

    def clips(self, model):
        """Loads the videos still to do, one after the other; those that cannot be used are recorded
        as skipped. Raises StopRun where the model predicts none of the first few."""
        self.model, self.cache = model, Cache(self.args.cache)
        self.prompts = Prompts(model, self.cache, self.args.checkpoint)
        captions = [video.caption for video in (*self.others, *self.todo)]
        self.negative = self.prompts.get(self.args.negative_prompt, captions)
        self.prompts.get(captions[0], captions)
        model.placement.begin(self.prompts.embedded)
        self.other_clips = self._load_others()
        done = len(self.videos) - len(self.todo)
        self.ahead = Ahead(lambda v: read_footage(v, self.window, model.frame_size), model.device)
        self.behind = Behind(model.device)
        BEFORE_STOP.insert(0, self.behind.finish)  # before the claims are given back
        self.passed = self.missed = 0
        with self.records.progress(len(self.videos), done):
            for place, video in self.claims.in_turn(self.todo, self.records.say):
                if self.records.changed(video) != self.before.get(video.id):
                    self.records.bar.update()  # another worker has done it
                    self.claims.release(video.id)
                    continue
                try:
                    clip = self._load(video, place)
                except VideoError as error:
                    self._skip(video, error)
                else:
                    with self._trace():
                        yield clip
                if self.missed == FAILED_PREFLIGHTS and not self.passed and not done:
                    raise StopRun(self._suspicion())
            self.behind.finish()

    def _load(self, video, place):
        results.remove_unfinished(self.out / "videos", video.id)
        self.started = time.perf_counter()
        self.show(f"{video.id} loading")
        footage, following = self.ahead.take(video), self._following(place)
        if following:
            self.ahead.begin(following)
        clip = self._encode(video, place, footage)
        losses = within_memory(self.model, lambda: preflight(self.model, clip))
        if self.args.preflight and not beats_zero(losses):
            self.missed += 1
            raise PreflightError(losses)
        self.passed += 1
        return replace(clip, preflight=losses, other=self._other(clip))

    def _following(self, place):
        """The next video that no other worker has, or None."""
        rest = itertools.islice(self.todo, place + 1, None)
        return next((v for v in rest if self.claims.is_free(v.id)), None)

    def _encode(self, video, place=0, footage=None):
        size, seed = self.model.frame_size, self.args.seed
        footage = footage or read_footage(video, self.window, size)
        captions = (v.caption for v in itertools.islice(self.todo, place, None))
        text = within_memory(self.model, lambda: self.prompts.get(video.caption, captions))
        return within_memory(
            self.model,
            lambda: load_clip(
                self.model, video, self.window, size, text, self.negative, seed, footage
            ),
        )

    def _load_others(self):
        """The first two clips of --forgetting: one of them is not the video that is adapted to."""
        try:
            return [self._encode(video) for video in self.others]
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
        """Scores the generated frames, where there are any, and writes the video's mp4, adapter and
        JSON, all but the adapter in the background."""
        if frames is not None and not frames.isfinite().all():
            self._skip(clip.video, VideoError("the generated frames are not finite"))
            return
        if self._lost(clip.video):
            return
        identity.refuse_other(self.out, self.config)  # one that began beside this one
        if self.args.save_adapter:
            results.save_adapter(self.out / "videos" / clip.video.id, method)
        again = None  # methods are compared with the baseline's references
        if frames is not None and not self.args.steps:
            with stage(record, "reference", self.model.device):
                again = within_memory(self.model, lambda: reconstruct(self.model, clip))
        record |= clip.costs | {
            "placement": self.model.placement.describe(),
            "total_seconds": time.perf_counter() - self.started,
        }
        self.behind.begin(lambda: self._finish(clip, record, frames, again))

    def _finish(self, clip, record, frames, reconstruction):
        try:
            with writing(self.out):
                record = self.records.scored(clip, record, frames, reconstruction)
                if self._lost(clip.video):
                    return
                self.records.write(clip.video, record)
        except PROBLEMS as error:  # of this video alone; the next is adapted to already
            self._skip(clip.video, VideoError(f"not scored: {type(error).__name__}: {error}"))
            return
        self.claims.release(clip.video.id)
        self.records.announce(record)

    def _lost(self, video):
        """Whether another worker took the video over, while this one stood still."""
        if not (self.out / "videos").is_dir():
            raise StopRun(f"--out {self.out}: has vanished")
        lost = not self.claims.holds(video.id)
        if lost:
            self.claims.release(video.id)
            self.records.say(f"{video.id}: another worker took it over; that one's result counts")
        return lost

    def _skip(self, video, error):
        if self._lost(video):
            return
        with writing(self.out):
            self.records.skip(video, error)
        self.claims.release(video.id)

    def exit_code(self):
        """Writes and prints the summary; 3 where videos of this range were skipped, else 0."""
        summary = results.summarise(self.out)
        done, skipped = summary["videos_done"], summary["videos_skipped"]
        psnr = summary["mean_psnr_db"]
        if done:
            future = results.change(summary["mean_future_loss_before"], summary["mean_future_loss"])
            shown = [] if future == "-" else [f"loss on the true future {future}"]
            shown += [] if psnr is None else [f"mean PSNR {psnr:.2f} dB"]
            print(f"{done} videos done: {', '.join([*shown, f'{self.out}/summary.json'])}")
        for name, reason in skipped.items():
            print(printable(f"skipped {name}: {reason}"), file=sys.stderr)
        here = {video.id for video in self.videos}
        if here - written(self.out / "videos").keys():
            print("other workers have the rest; the same command waits for it", file=sys.stderr)
            return STOPPED
        return 3 if skipped.keys() & here else 0

    def _is_done(self, video):
        return video.id in self.before and is_done(video, self.records.path(video))

    def _suspicion(self):
        return (
            f"the model does worse than predicting zero on the first {self.missed} videos. Suspect "
            "the sign of the velocity, the normalisation of the latents (vae/config.json) or the "
            f"prompts; the losses are in {self.out}/videos. --no-preflight adapts all the same"
        )
