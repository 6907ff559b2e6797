"""A run on clips of frame features: a predictor adapts to the first frames of each, or goes on from
one to the next, and its errors are measured before and after."""

import contextlib
import math
import time

import predictors
from common.errors import UsageError, VideoError
from common.loading import pick_device
from common.stages import stage
from devices import ranks
from predictors.adaptation import Adaptation
from runs import carry, identity, latents, results
from runs import latent_scores as scores
from runs.baseline import baseline_beside
from runs.ending import ending
from runs.latent_summary import line, means, summarise
from runs.plan import print_plan
from runs.records import writing
from runs.whole import LATENT_CLIP
from runs.work import Work


class LatentRun:
    """Opens or resumes the run in args.out. Raises UsageError where that holds another one."""

    def __init__(self, args):
        if ranks.count() > 1:
            raise UsageError(f"{args.script}.py: of torchrun one process, --nproc-per-node 1")
        self.args, self.out, self.carries = args, args.out, latents.carries(args)
        self.chain = carry.Chain(args.out, self.carries)
        items, manifest_sha256 = latents.chosen(args)
        self.config = identity.describe(args, manifest_sha256)
        self.work = Work(args, self.config, items, self._done_among)
        self.records, self.show = self.work.records, self.work.records.show
        self.baseline = baseline_beside(self.out, self.config)
        if not self.ends_here:
            self.work.open(latents.setting(args))

    def _done_among(self, items, folder):
        return self.chain.done_among(items, latents.done_among(items, folder))

    @property
    def ends_here(self):
        """Whether no predictor is needed: --dry-run, a shard without clips, or all is done."""
        return self.work.ends_here

    def load_predictor(self):
        try:
            return predictors.load_predictor(self.args.checkpoint, pick_device(self.args.device))
        except predictors.CheckpointError as error:
            raise UsageError(f"--checkpoint: {error}") from error

    @contextlib.contextmanager
    def working(self, method):
        """Within it clips are worked on, by a worker alone where one goes on to the next."""
        self.predictor, self.device = method.predictor, next(method.predictor.parameters()).device
        self.adaptation = Adaptation(method, self.args.grad_clip)
        summary = self.work.working(lambda: summarise(self.out, self.config))
        with self.chain.working():
            self.carried = carry.Carried(self.chain)
            with summary:
                yield

    def pending(self):
        """The clips still to do, in their order."""
        for _, item in self.chain.in_turn(self.work.pending()):
            yield item

    def recorded(self, item):
        """Gives the clip's Record, a dict to be filled and handed over with `later`. A VideoError
        in the block is recorded as the reason why the clip is skipped."""
        return self.work.recorded(item, self._write)

    def load_clip(self, item):
        """The clip in its two parts; weights and optimiser are where its adaptation begins. Raises
        VideoError where it cannot be used."""
        p = self.predictor
        sizes = {"width": p.embed_dim, "action_width": p.action_embed_dim}
        clip = item.read(tokens=p.patches, extrinsics=p.use_extrinsics, **sizes)
        if p.use_extrinsics and clip.extrinsics is None:
            raise VideoError("extrinsics are missing, and this predictor reads them")
        self.carried.into(self.adaptation, self.args.carry_over)
        return scores.in_parts(item, clip, self.args)

    def errors_before(self, parts):
        """Of the untouched predictor, and as it is now, before it adapts to this clip."""
        given = self.predictor, parts, self.args
        with self.adaptation.untouched():
            seen, ahead = scores.seen_errors(*given), scores.errors_ahead(*given)
        if not all(map(math.isfinite, [*seen, *ahead])):
            raise VideoError("the predictor's error on it is not finite")
        now = scores.seen_errors(*given) if self.carries else seen
        return scores.named(
            untouched_loss=seen, untouched_look_ahead_loss=ahead, pre_adapt_loss=now
        )

    def adapt(self, parts):
        """The steps on the frames that it may see; what they cost."""
        costs, name, steps = {}, parts.item.id, self.args.steps
        with stage(costs, "adapt", self.device):
            record = self.adaptation.adapt(
                parts.seen,
                lambda step, loss, _: self.show(f"{name} step {step}/{steps} loss {loss:.4f}"),
            )
        stays = "carried" if self.carries else "baseline"
        adapted = bool(record["losses"]) and not record["diverged"]
        return record | costs | {"kept": "adapted" if adapted else stays}

    def errors_after(self, parts):
        given = self.predictor, parts, self.args
        return scores.named(
            post_adapt_loss=scores.seen_errors(*given), look_ahead_loss=scores.errors_ahead(*given)
        )

    def _write(self, parts, record):
        """Writes the state that goes on to the next clip, the adapter and the JSON."""
        item, parameters = parts.item, self.adaptation.parameters
        if self.work.lost(item):
            self.chain.stand_back()
            return
        with writing(self.out):
            if self.args.save_adapter:
                results.save_adapter(self.work.folder / item.id, self.adaptation.method, self.args)
            if self.carries:
                diverged = record["diverged"]  # then what was there before it goes on
                state = self.carried.state if diverged else self.adaptation.state_dict()
                self.carried.keep(item.id, state)
        record |= self.records.identity(item) | scores.distances(parameters, self.adaptation.start)
        record |= self.records.made_with() | {
            "status": "done",
            "kind": LATENT_CLIP,
            "place": item.place,
            "video_sha256": item.sha256(),
            "clip_files": item.facts(),
            "frames": len(parts.whole.features),
            "frames_seen": len(parts.seen.features),
            "target_values": parts.seen.features[self.args.context_frames :].numel(),
            "adapted_parameters": sum(p.numel() for p in parameters.values()),
            "device": str(self.device),
            "peak_memory_gb": record["adapt_peak_memory_gb"],
            "total_seconds": time.perf_counter() - self.work.started,
        }
        if record := self.work.finish(item, lambda: record):
            if self.carries:
                self.carried.settle(item.id)
            self.records.announce(line(record))
        else:
            self.chain.stand_back()

    def exit_code(self):
        """Writes and prints the summary; 3 where clips of this range were skipped, else 0. Of a
        --dry-run it prints the plan."""
        args, work = self.args, self.work
        if args.dry_run:
            about = [f"  {latents.setting(args)}"]
            print_plan(args, about, work.items, work.todo, "memory: that of the predictor")
            return 0
        if not work.items:
            print("--shard {}/{}: holds no clip".format(*args.shard))
            return 0
        summary = summarise(self.out, self.config)
        lines = means(args, summary) if summary["videos_done"] else []
        return work.exit_code(summary, ending(args, self.config, summary, lines, self.baseline))
