"""A run on videos: what they share beside what every run does (work.py), and how one is handed
over."""

import contextlib
import time
from dataclasses import replace

import av

from common.adapters import check_adapters
from common.clip import Window
from common.errors import UsageError, VideoError
from common.loading import geometry_of
from common.metrics import load_lpips, lpips_sha256
from common.stages import stage, traced
from devices import agreement, ranks
from devices.placement import within_memory
from runs import identity, results
from runs.background import Behind
from runs.baseline import find_baseline
from runs.clips import Clips
from runs.course import Course
from runs.ending import ending, line, means
from runs.evaluate import reconstruct
from runs.plan import memory, print_plan
from runs.scores import Scores
from runs.summary import summarise
from runs.todo import chosen_videos, done_among, other_videos, setting
from runs.work import Work

PROBLEMS = (ValueError, RuntimeError, av.FFmpegError)  # of scoring one video


class Run:
    """Opens or resumes the run in args.out. Raises UsageError where that holds another one."""

    def __init__(self, args):
        self.args, self.out, self.geometry = args, args.out, geometry_of(args)
        self.window = Window.of(args, self.geometry)
        videos, manifest_sha256 = chosen_videos(args)
        self.others, others_sha256 = other_videos(args)
        lpips, no_lpips = load_lpips(args.lpips_weights)
        self.config = identity.describe(
            args, manifest_sha256, no_lpips or "alex", forgetting_sha256=others_sha256,
            lpips_sha256=lpips_sha256(args.lpips_weights),
        )  # fmt: skip
        self.course = Course(args, args.kind.carries(args))
        self.work = Work(args, self.config, videos, self._done_among)
        self.todo, self.show = self.work.todo, self.work.records.show
        self.scores = Scores(args, self.work.records, self.window, lpips)
        self.baseline = find_baseline(args, self.config)
        check_adapters(args, self.todo)
        identity.refuse_unfinished(args, self.config, self.todo)
        if self.course.chain.last and not args.dry_run:  # one that was killed before it could
            self.course.publish(self.course.chain.last)
        if not self.ends_here:
            no_lpips = no_lpips and f"LPIPS is not computed: {no_lpips}"
            self.work.open(setting(args, self.geometry, self.window), no_lpips)
        ranks.broadcast(self.ends_here)  # what follows it, see following.py

    def _done_among(self, videos, folder):
        return self.course.chain.done_among(videos, done_among(videos, folder))

    @property
    def ends_here(self):
        """Whether no model is needed: --dry-run, a shard without videos, or all is done."""
        return self.work.ends_here

    @contextlib.contextmanager
    def working(self, model):
        """Within it videos are worked on: prompts, placement, claims, progress bar, and the threads
        beside the model, which all end with it. Raises UsageError where nothing is left to do."""
        if self.ends_here:
            raise UsageError(
                f"--out {self.out}: nothing is to be done there; choose another folder"
            )
        self.model, work = model, self.work
        others, is_free = self.others, lambda name: work.claims.is_free(name)
        clips = Clips(self.args, self.window, model, self.todo, others, is_free)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.course.working())
            stack.enter_context(work.working(lambda: summarise(self.out)))
            self.clips = stack.enter_context(clips)
            self.behind = stack.enter_context(Behind(model.device))
            yield

    def pending(self):
        """The videos still to do, one after the other, those that other workers have at the end.
        Raises StopRun where the model predicts none of the first few."""
        for place, video in self.course.chain.in_turn(self.work.pending()):
            self.place = place
            agreement.begin_turn()
            ranks.broadcast(video)
            yield video
            if not self.work.done:
                self.clips.refuse_blind_model()
        agreement.begin_turn()
        ranks.broadcast(None)

    @contextlib.contextmanager
    def recorded(self, video):
        """Gives the video's Record, a dict to be filled and handed over with `later`. A VideoError
        in the block is recorded as the reason why the video is skipped."""
        with self.work.recorded(video, self._write) as record, self._trace():
            yield record

    def load_clip(self, video):
        """The video as a Clip, with its preflight. Raises VideoError where it cannot be used."""
        self.show(f"{video.id} loading")
        try:
            clip = self.clips.load(video, self.place)
        except VideoError as error:
            ranks.broadcast(error)
            raise
        ranks.broadcast(clip.preflight)
        return replace(clip, start=self.course.start_of(clip))

    def _trace(self):
        """Of the first video that is not skipped, where --profile asks for it."""
        path = self.out / "trace.json.gz"
        if not self.args.profile or self.clips.passed:
            return contextlib.nullcontext()
        self.work.records.bar.write(f"profiling the first video: {path}")
        return traced(path, self.model.device)

    def _write(self, clip, record, frames, method):
        """Scores the generated frames, where there are any, and writes the video's mp4, adapter and
        JSON, all but the adapter in the background."""
        tensors = results.whole_tensors(method) if self.args.save_adapter else None
        if frames is not None and not frames.isfinite().all():
            if not self.work.skip(clip.video, VideoError("the generated frames are not finite")):
                self.course.chain.stand_back()
            return
        if self.work.lost(clip.video):
            self.course.chain.stand_back()
            return
        identity.refuse_other(self.out, self.config)  # one that began beside this one
        if self.args.save_adapter:
            name = self.out / "videos" / clip.video.id
            results.save_adapter(name, method, self.args, tensors)
        record |= self.course.keep(clip, method)
        again = None  # methods are compared with the baseline's references
        if frames is not None and identity.is_baseline(vars(self.args)):
            with stage(record, "reference", self.model.device):
                again = within_memory(self.model, lambda: reconstruct(self.model, clip), alone=True)
        record |= clip.costs | {
            "placement": self.model.placement.describe(),
            "total_seconds": time.perf_counter() - self.work.started,
        }
        self.behind.begin(lambda: self._finish(clip, record, frames, again))
        if self.course.chain.links:
            self.behind.finish()  # whether it is skipped decides where the next begins

    def _finish(self, clip, record, frames, reconstruction):
        try:
            record = self.work.finish(
                clip.video, lambda: self.scores.of(clip, record, frames, reconstruction)
            )
        except PROBLEMS as error:  # of this video alone; the next is adapted to already
            why = VideoError(f"not scored: {type(error).__name__}: {error}")
            if self.work.skip(clip.video, why):
                self.course.take_back()
            else:
                self.course.chain.stand_back()
            return
        if not record:
            self.course.chain.stand_back()
        else:
            self.course.settle(record)
            score = record["psnr_db"]
            last = "" if score is None else f", PSNR {score:.2f} dB"
            self.work.records.announce(line(record), last)

    def exit_code(self):
        return ranks.broadcast(self._exit_code())

    def _exit_code(self):
        """Writes and prints the summary; 3 where videos of this range were skipped, else 0. Of a
        --dry-run it prints the plan."""
        args, work = self.args, self.work
        if args.dry_run:
            frames = [
                f"  {name} frames {start}..{stop - 1}"
                for name, (start, stop) in self.window.indices().items()
            ]
            print_plan(args, frames, work.items, self.todo, memory(args, self.geometry))
            return 0
        if not work.items:
            print("--shard {}/{}: holds no video".format(*args.shard))
            return 0
        summary = summarise(self.out)
        scores = means(args, summary, self.baseline) if summary["videos_done"] else []
        return work.exit_code(summary, ending(args, self.config, summary, scores, self.baseline))
