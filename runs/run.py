"""A run: the videos that are still to do, one after the other, and what they share."""

import contextlib
import sys
import time

import av

from common.adapters import check_adapters
from common.clip import Window
from common.errors import StopRun, UsageError, VideoError
from common.loading import geometry_of
from common.metrics import load_lpips, lpips_sha256
from common.stages import stage, traced
from devices.placement import within_memory
from runs import identity, results
from runs.background import Behind
from runs.baseline import find_baseline
from runs.claims import Claims
from runs.clips import Clips
from runs.ending import ending
from runs.evaluate import reconstruct
from runs.exits import STOPPED
from runs.names import printable
from runs.plan import print_plan
from runs.records import Record, Records, writing
from runs.todo import chosen_videos, is_done, other_videos, setting, written

PROBLEMS = (ValueError, RuntimeError, av.FFmpegError)  # of scoring one video


def add_arguments(group):
    group.add_argument(
        "--save-adapter", action="store_true", changes=None,
        help="keep each video's adapted parameters (full_tta.py: all weights, each time)",
    )  # fmt: skip


class Run:
    """Opens or resumes the run in args.out. Raises UsageError where that holds another one."""

    def __init__(self, args):
        self.args, self.out, self.geometry = args, args.out, geometry_of(args)
        self.window = Window.of(args, self.geometry)
        self.videos, manifest_sha256 = chosen_videos(args)
        self.others, others_sha256 = other_videos(args)
        lpips, no_lpips = load_lpips(args.lpips_weights)
        self.config = identity.describe(
            args, manifest_sha256, others_sha256, lpips_sha256(args.lpips_weights), no_lpips
        )
        goes_on = identity.same_run(self.out, self.config)
        self.records = Records(args, self.config, self.window, lpips)
        self.baseline = find_baseline(args, self.config)
        self.before = written(self.out / "videos")
        self.todo = [v for v in self.videos if not self._is_done(v)]
        check_adapters(args, self.todo)
        self.done = len(self.videos) - len(self.todo)
        if not self.ends_here:
            self._open(goes_on, no_lpips)

    @property
    def ends_here(self):
        """Whether no model is needed: --dry-run, a shard without videos, or all is done."""
        return self.args.dry_run or not self.todo

    def _open(self, goes_on, no_lpips):
        try:
            (self.out / "videos").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--out {self.out}: cannot be written ({error.strerror})") from error
        if no_lpips:
            print(f"LPIPS is not computed: {no_lpips}", file=sys.stderr)
        if goes_on:
            edited = identity.edited_source(self.out, self.config)
            print(f"{self.done} already done, {len(self.todo)} to do{edited}")
        else:
            with writing(self.out):
                results.write_json(self.out / "config.json", self.config)
        print(setting(self.args, self.geometry, self.window))

    @contextlib.contextmanager
    def working(self, model):
        """Within it videos are worked on: prompts, placement, claims, progress bar, and the threads
        beside the model, which all end with it; stopped or not, summary.json is written then."""
        self.model, videos = model, self.out / "videos"
        claims = Claims(videos)
        clips = Clips(self.args, self.window, model, self.todo, self.others, claims.is_free)
        with contextlib.ExitStack() as stack:
            stack.callback(self._summarise)
            self.claims = stack.enter_context(claims)
            stack.enter_context(self.records.progress(len(self.videos), self.done))
            self.clips = stack.enter_context(clips)
            self.behind = stack.enter_context(Behind(model.device))
            yield

    def _summarise(self):
        if (self.out / "videos").is_dir():  # it may have vanished
            results.summarise(self.out)

    def pending(self):
        """The videos still to do, one after the other, those that other workers have at the end.
        Raises StopRun where the model predicts none of the first few."""
        for place, video in self.claims.in_turn(self.todo, self.records.say):
            if self.records.changed(video) != self.before.get(video.id):
                self.records.bar.update()  # another worker has done it
                self.claims.release(video.id)
                continue
            self.place = place
            yield video
            if not self.done:
                self.clips.refuse_blind_model()

    @contextlib.contextmanager
    def recorded(self, video):
        """Gives the video's Record, a dict to be filled and handed over with `later`. A VideoError
        in the block is recorded as the reason why the video is skipped."""
        results.remove_unfinished(self.out / "videos", video.id)
        self.started, record = time.perf_counter(), Record(self._write)
        try:
            with self._trace():
                yield record
        except VideoError as error:
            self._skip(video, error)
            return
        if not record.handed_over:
            raise RuntimeError(f"{video.id}: its record was not handed over with record.later()")

    def load_clip(self, video):
        """The video as a Clip, with its preflight. Raises VideoError where it cannot be used."""
        self.show(f"{video.id} loading")
        return self.clips.load(video, self.place)

    def _trace(self):
        """Of the first video that is not skipped, where --profile asks for it."""
        path = self.out / "trace.json.gz"
        if not self.args.profile or self.clips.passed:
            return contextlib.nullcontext()
        self.records.bar.write(f"profiling the first video: {path}")
        return traced(path, self.model.device)

    def show(self, line):
        self.records.show(line)

    def _write(self, clip, record, frames, method):
        """Scores the generated frames, where there are any, and writes the video's mp4, adapter and
        JSON, all but the adapter in the background."""
        if frames is not None and not frames.isfinite().all():
            self._skip(clip.video, VideoError("the generated frames are not finite"))
            return
        if self._lost(clip.video):
            return
        identity.refuse_other(self.out, self.config)  # one that began beside this one
        if self.args.save_adapter:
            results.save_adapter(self.out / "videos" / clip.video.id, method, self.args)
        again = None  # methods are compared with the baseline's references
        if frames is not None and identity.is_baseline(vars(self.args)):
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
        """Writes and prints the summary; 3 where videos of this range were skipped, else 0. Of a
        --dry-run it prints the plan."""
        if self.args.dry_run:
            print_plan(self.args, self.geometry, self.window, self.videos, self.todo)
            return 0
        if not self.videos:
            print("--shard {}/{}: holds no video".format(*self.args.shard))
            return 0
        summary = results.summarise(self.out)
        for line in ending(self.args, self.config, summary, self.baseline):
            print(printable(line))
        skipped, here = summary["videos_skipped"], {video.id for video in self.videos}
        if here - written(self.out / "videos").keys():
            print("other workers have the rest; the same command waits for it", file=sys.stderr)
            return STOPPED
        return 3 if skipped.keys() & here else 0

    def _is_done(self, video):
        return video.id in self.before and is_done(video, self.records.path(video))
