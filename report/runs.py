"""Finished runs, and whether they can be compared: the same videos, windows, noise and weights."""

from dataclasses import dataclass
from pathlib import Path

from common.errors import UsageError
from common.results import GENERATION, read_json

FACTS = ("manifest_sha256", "checkpoint_sha256")  # of config.json
BY_CONTENT = {"videos", "checkpoint"}  # compared as those, not as paths
NEEDED = {"id", "source", "video_sha256", "psnr_db", "ssim", "diverged", "adapt_seconds"}


@dataclass(frozen=True)
class RunFolder:
    path: Path
    config: dict
    done: dict  # records by video id
    skipped: dict  # reasons by video id
    damaged: list  # files that hold no whole record

    @property
    def name(self):
        return self.path.name

    @property
    def arguments(self):
        return self.config["arguments"]

    @property
    def is_baseline(self):
        return self.arguments["steps"] == 0

    def why_missing(self, video):
        return self.skipped.get(video, "not done yet")


def read_run(path):
    """Raises UsageError where `path` is not the folder of a run."""
    if not path.is_dir():
        raise UsageError(f"{path}: no such folder; give folders of runs")
    config = read_json(path / "config.json")
    if config is None:
        raise UsageError(f"{path}: no run; it has no whole config.json, which every run writes")
    missing = {"method", "arguments", *FACTS} - config.keys()
    if missing or not {"steps", "seed"} <= config["arguments"].keys():
        raise UsageError(f"{path}/config.json: is not as a run writes it; run the script again")
    done, skipped, damaged = {}, {}, []
    for file in sorted((path / "videos").glob("*.json")):
        record = read_json(file)
        if isinstance(record, dict) and record.get("status") == "skipped" and "reason" in record:
            skipped[record["id"]] = short(record["reason"])
        elif isinstance(record, dict) and record.get("status") == "done" and record.keys() > NEEDED:
            done[record["id"]] = record
        else:
            damaged.append(file)
    return RunFolder(path, config, done, skipped, damaged)


def short(reason):
    return reason if len(reason) < 100 else f"{reason[:97]}..."


def refuse_mismatch(baseline, run):
    """Raises UsageError with everything in which the run's continuations are made otherwise."""
    found = [
        f"{name} ({baseline.config[name][:12]} there, {run.config[name][:12]} here)"
        for name in FACTS
        if baseline.config[name] != run.config[name]
    ]
    for name in GENERATION:
        there, here = (r.arguments.get(name) for r in (baseline, run))
        if there != here and name not in BY_CONTENT:
            found.append(f"--{name.replace('_', '-')} ({there} there, {here} here)")
    found += [
        f"the file of video {name}"
        for name in sorted(baseline.done.keys() & run.done.keys())
        if baseline.done[name]["video_sha256"] != run.done[name]["video_sha256"]
    ]
    if found:
        raise UsageError(
            f"{run.path} cannot be compared with {baseline.path}: they differ in "
            + ", ".join(found)
        )
