"""The videos of a run as clips: read ahead, with the prompts that they need, checked by the
preflight."""

import itertools
from dataclasses import fields, replace

import torch

from common.clip import Clip, load_clip, read_footage
from common.errors import PreflightError, StopRun, UsageError, VideoError
from common.loss import beats_zero, preflight
from devices import agreement, ranks
from devices.placement import within_memory
from runs.background import Ahead
from runs.cache import Cache
from runs.prompts import Prompts

FAILED_PREFLIGHTS = 3  # at the start of a range: the run stops


class Clips:
    """A context, which ends the thread that reads ahead. todo: the run's videos in their turn;
    others: those that forgetting is measured on; is_free(id): whether no other worker has a
    video."""

    def __init__(self, args, window, model, todo, others, is_free):
        self.args, self.window, self.model = args, window, model
        self.todo, self.is_free, self.passed, self.missed = todo, is_free, 0, 0
        self.prompts = Prompts(model, Cache(args.cache), args.checkpoint)
        captions = [video.caption for video in (*others, *todo)]
        self.negative = self.prompts.get(args.negative_prompt, captions)
        self.prompts.get(captions[0], captions)
        agreement.begin_turn()  # prompts may have taken long
        model.placement.begin(self.prompts.embedded)
        self.others = self._load_others(others)
        self.ahead = Ahead(lambda v: read_footage(v, window, model.frame_size), model.device)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.ahead.stop()

    def load(self, video, place):
        """The video in place `place` of todo as a Clip. Raises VideoError where it cannot be
        used."""
        footage, following = self.ahead.take(video), self._following(place)
        if following:
            self.ahead.begin(following)
        clip = self._encode(video, place, footage)
        clip = replace(clip, other=self._other(clip))
        ranks.broadcast(on_device(clip, "cpu"))  # to those that follow
        losses = within_memory(self.model, lambda: preflight(self.model, clip))
        if self.args.preflight and not beats_zero(losses):
            self.missed += 1
            raise PreflightError(losses)
        self.passed += 1
        return replace(clip, preflight=losses)

    def refuse_blind_model(self):
        """Raises StopRun where the model predicts none of the first few."""
        if self.missed == FAILED_PREFLIGHTS and not self.passed:
            raise StopRun(
                f"the model does worse than predicting zero on the first {self.missed} videos. "
                "Suspect the sign of the velocity, the normalisation of the latents "
                "(vae/config.json) or the prompts; the losses are in "
                f"{self.args.out}/videos. --no-preflight adapts all the same"
            )

    def _following(self, place):
        """The next video that no other worker has, or None."""
        rest = itertools.islice(self.todo, place + 1, None)
        return next((v for v in rest if self.is_free(v.id)), None)

    def _encode(self, video, place=0, footage=None):
        size, seed = self.model.frame_size, self.args.seed
        footage = footage or read_footage(video, self.window, size)
        captions = (v.caption for v in itertools.islice(self.todo, place, None))
        text = within_memory(
            self.model, lambda: self.prompts.get(video.caption, captions), alone=True
        )
        return within_memory(
            self.model,
            lambda: load_clip(
                self.model, video, self.window, size, text, self.negative, seed, footage
            ),
            alone=True,
        )

    def _load_others(self, others):
        """The first two clips of --forgetting: one of them is not the video that is adapted to."""
        try:
            return [self._encode(video) for video in others]
        except VideoError as error:
            raise UsageError(f"--forgetting {self.args.forgetting}: {error}") from error

    def _other(self, clip):
        for other in self.others:
            if other.video_sha256 != clip.video_sha256:
                return other
        if self.others:
            raise UsageError(
                f"--forgetting {self.args.forgetting}: holds no video but {clip.video.id} itself"
            )
        return None


def on_device(value, device):
    """A Clip, with its other clip and its texts."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: on_device(each, device) for name, each in value.items()}
    if isinstance(value, Clip):
        parts = {field.name: getattr(value, field.name) for field in fields(value)}
        return Clip(**{name: on_device(part, device) for name, part in parts.items()})
    return value
