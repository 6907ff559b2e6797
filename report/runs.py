"""Finished runs, and whether they can be compared: the same videos, windows, noise and weights."""

from dataclasses import dataclass
from pathlib import Path

from common.errors import UsageError
from common.identity import GENERATION
from common.results import read_json

FACTS = ("manifest_sha256", "checkpoint_sha256")  # of config.json
BY_CONTENT = {"videos", "checkpoint"}  # compared as those, not as paths
NEEDED = {  # of a record, and what each is
    "id": str, "source": str, "caption": str, "video_sha256": str, "columns": dict,
    "preflight": dict, "losses": list, "frame_indices": dict, "distances": dict, "diverged": bool,
    "adapt_seconds": float | int, "peak_memory_gb": float | int, "adapted_parameters": int,
    "psnr_db": float | int | None, "ssim": float | int | None,
}  # fmt: skip


@dataclass(frozen=True)
class RunFolder:
    path: Path
    name: str
    config: dict
    done: dict  # records by video id
    skipped: dict  # reasons by video id
    damaged: list  # files that hold no whole record

    @property
    def arguments(self):
        return self.config["arguments"]

    @property
    def setting(self):
        """What comparable runs agree in, whatever their seed."""
        flags = [str(self.arguments.get(k)) for k in GENERATION if k not in {*BY_CONTENT, "seed"}]
        return *(self.config[fact] for fact in FACTS), *flags

    @property
    def is_baseline(self):
        return self.arguments["steps"] == 0

    def why_missing(self, video):
        return self.skipped.get(video, "not done yet")


def read_runs(paths):
    """Runs, named by the last parts of their paths that tell them apart."""
    parts = [path.resolve().parts for path in paths]
    count = 1
    while count < max(map(len, parts)) and len({p[-count:] for p in parts}) < len(set(parts)):
        count += 1
    return [read_run(p, "/".join(names[-count:])) for p, names in zip(paths, parts, strict=True)]


def read_run(path, name):
    """Raises UsageError where `path` is not the folder of a run."""
    if not path.is_dir():
        raise UsageError(f"{path}: no such folder; give folders of runs")
    config = read_json(path / "config.json")
    if config is None:
        raise UsageError(f"{path}: no run; it has no whole config.json, which every run writes")
    arguments = config.get("arguments") if isinstance(config, dict) else None
    whole = isinstance(arguments, dict) and {"steps", "seed"} <= arguments.keys()
    if not whole or not {"method", *FACTS} <= config.keys():
        raise UsageError(f"{path}/config.json: is not as a run writes it; run the script again")
    done, skipped, damaged = {}, {}, []
    for file in sorted((path / "videos").glob("*.json")):
        record = read_json(file)
        status = record.get("status") if isinstance(record, dict) else None
        if status == "skipped" and {"id", "reason"} <= record.keys():
            skipped[record["id"]] = short(record["reason"])
        elif status == "done" and is_whole(record):
            done[record["id"]] = record
        else:
            damaged.append(file)
    return RunFolder(path, name, config, done, skipped, damaged)


def is_whole(record):
    return all(key in record and isinstance(record[key], kind) for key, kind in NEEDED.items())


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
