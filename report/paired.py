"""Methods and their baseline: scores of the videos that all runs share, and paired differences."""

from dataclasses import dataclass, field, replace

import numpy as np

from report.metrics import ZERO


@dataclass(frozen=True)
class Method:
    """Runs that differ in the seed only; scores are means over those, per video."""

    name: str
    runs: list

    @property
    def seeds(self):
        return [run.seed for run in self.runs]

    @property
    def adapts_nothing(self):
        return self.runs[0].is_baseline

    def at(self, seeds):
        """Its runs at those seeds alone."""
        return replace(self, runs=[run for run in self.runs if run.seed in seeds])

    def scores(self, metric, videos):
        """(seeds, videos)."""
        return np.array([[run.done[video][metric] for video in videos] for run in self.runs])

    def mean_of(self, key, videos):
        return float(np.mean([[run.done[video][key] for video in videos] for run in self.runs]))

    def record(self, video):
        """Of the first seed."""
        return self.runs[0].done[video]


@dataclass(frozen=True)
class Comparison:
    """Runs at the same seeds."""

    baseline: Method
    methods: list  # without the baseline
    videos: list  # ids that every run has
    notes: list  # what is left out, and why
    left_out: dict  # metrics that were measured in different ways, and why
    metrics: dict  # Metric by name, as the runs declare them
    controls: dict = field(default_factory=dict)  # names of the methods that each is a control of

    @property
    def judged(self):
        """The methods that are no controls of others."""
        return [method for method in self.methods if method.name not in self.controls]

    def scored(self, metric):
        """The shared videos that have this score in every run; where gains are relative, without
        those whose baseline has none to be relative to."""
        if metric in self.left_out:
            return []
        runs = [run for method in [self.baseline, *self.methods] for run in method.runs]
        found = [v for v in self.videos if all(r.done[v].get(metric) is not None for r in runs)]
        if metric not in self.metrics or not self.metrics[metric].relative:
            return found
        return [v for v in found if all(r.done[v][metric] > ZERO for r in self.baseline.runs)]

    @property
    def generated(self):
        """Whether the runs made pictures; with --no-generate, and of latent clips, they did not."""
        without = self.baseline.runs[0].arguments.get("generate") is False
        return self.of_videos and not without

    @property
    def of_videos(self):
        """Not of clips of frame features, of which there is nothing to see."""
        return "frame_indices" in self.baseline.record(self.videos[0])

    def sources(self, videos):
        return [self.baseline.record(video)["source"] for video in videos]

    def differences(self, method, metric, videos):
        """(seeds, videos) over the baseline at the same seed; larger is better. Where gains are
        relative, in per cent of the baseline's."""
        metric, before = self.metrics[metric], self.baseline.scores(metric, videos)
        sign = 1 if metric.better == "higher" else -1
        found = sign * (method.scores(metric, videos) - before)
        return 100 * found / before if metric.relative else found

    def gains(self, method, metric, videos):
        """(videos,), means over the seeds."""
        return self.differences(method, metric, videos).mean(axis=0)
