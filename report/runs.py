"""Finished runs, and whether they can be compared: the same videos, windows, noise and weights."""

from dataclasses import dataclass
from pathlib import Path

from common.errors import UsageError
from report.metrics import are_declared
from runs.flags import effort_of, generation, is_table, spelt, tells_apart, value_of
from runs.identity import is_baseline, read_config
from runs.names import printable
from runs.results import read_record

FACTS = ("manifest_sha256", "checkpoint_sha256")  # of config.json: videos and weights
FILES = {"video_sha256": "file", "truth_sha256": "truth", "second_take_sha256": "second take"}
TEXT = str | None
FACTS_ARE = dict.fromkeys(("method", *FACTS), str) | {"lpips_sha256": TEXT, "source_sha256": TEXT}
FLAGS_ARE = {"steps": int, "seed": int, "script": TEXT, "script_sha256": TEXT}
PLAIN = (str, int, float, bool, type(None))


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
    def flags(self):
        """What each changes, by its name in the arguments."""
        return self.config["flags"]

    @property
    def seed(self):
        return self.arguments["seed"]

    @property
    def setting(self):
        """What comparable runs agree in, whatever their seed."""
        flags = [(name, str(self.arguments.get(name))) for name in generation(self.flags)]
        return *(self.config[fact] for fact in FACTS), *sorted(flags)

    @property
    def kind(self):
        return kind_of(self.config)

    @property
    def original(self):
        """The kind of the run that this one is a control of; None of what is no control."""
        if self.arguments.get("control") is None:
            return None
        if not self.config.get("control_of"):  # it adapts itself, or has one file for all videos
            return kind_of(self.config | {"arguments": self.arguments | {"control": None}})
        return kind_of(lent) if (lent := lent_to(self.config)) else ()

    @property
    def effort(self):
        return effort_of(self.flags, self.arguments)

    @property
    def is_baseline(self):
        return is_baseline(self.arguments)

    @property
    def versions(self):
        """SHA-256s of the code below the script, as its videos were made with, where they say."""
        own = self.config.get("source_sha256")
        found = {record.get("source_sha256", own) for record in self.done.values()}
        return sorted(digest[:12] for digest in found if digest)

    def why_missing(self, video):
        return self.skipped.get(video, "not done yet")


def kind_of(config):
    """What runs of one method agree in, whatever their seed; of what takes another run's adapters
    as a control that run's kind in place of these files. A flag without a value is as none."""
    arguments, lent = config["arguments"], lent_to(config)
    names = {n for n, value in arguments.items() if value is not None} - {"seed"}
    facts = [config.get(name) for name in ("method", *FACTS)]
    facts.append(kind_of(lent) if lent else config.get("adapter_sha256"))
    told = [(n, arguments[n]) for n in sorted(names) if tells_apart(config["flags"], n)]
    return *facts, str(told)


def lent_to(config):
    """What config.json of a control says of the run whose adapters it takes, or None."""
    lent = config.get("control_of")
    whole = isinstance(lent, dict) and isinstance(lent.get("arguments"), dict)
    return lent if whole and is_table(lent.get("flags")) else None


def efforts(*runs):
    """Of each run {name: value} of the flags whose more is more time in any of them; None of one
    that is older than the flag."""
    names = dict.fromkeys(name for run in runs for name in run.effort)
    return [{name: run.arguments.get(name) for name in names} for run in runs]


def read_runs(paths):
    """Runs, named by the last parts of their paths that tell them apart."""
    for path in paths:
        refuse_absent(path)
    parts = [path.resolve().parts for path in paths]
    count = 1
    while count < max(map(len, parts)) and len({p[-count:] for p in parts}) < len(set(parts)):
        count += 1
    return [read_run(p, "/".join(names[-count:])) for p, names in zip(paths, parts, strict=True)]


def refuse_absent(path):
    if not path.is_dir():
        raise UsageError(f"{path}: no such folder; give folders of runs")


def read_run(path, name):
    """Raises UsageError where `path` is not the folder of a run."""
    refuse_absent(path)
    config = read_config(path)
    if config is None:
        raise UsageError(f"{path}: no run; it has no whole config.json, which every run writes")
    refuse_malformed(path / "config.json", config)
    done, skipped, damaged = {}, {}, []
    for file in sorted((path / "videos").glob("*.json")):
        record = read_record(file)
        if record is None:
            damaged.append(file)
        elif record["status"] == "done":
            done[record["id"]] = record
        else:
            skipped[record["id"]] = short(record["reason"])
    return RunFolder(path, printable(name), config, done, skipped, damaged)


def refuse_malformed(file, config):
    """Raises UsageError that names what no run writes into its config.json."""
    arguments = config["arguments"]
    for found, kinds in ((config, FACTS_ARE), (arguments, FLAGS_ARE)):
        for key, kind in kinds.items():
            value = found.get(key)
            if not isinstance(value, kind) or isinstance(value, bool):
                right = "a whole number" if kind is int else "text"
                raise malformed(file, key, value, right)
    if arguments["steps"] < 0:
        raise malformed(file, "steps", arguments["steps"], "a whole number")
    for key in (key for key, value in arguments.items() if not is_plain(value)):
        raise malformed(file, key, arguments[key], "what a flag can be")
    if not are_declared(config.get("metrics")):
        raise malformed(file, "metrics", config["metrics"], "what each metric is")
    if not is_table(config.get("flags")):
        raise malformed(file, "flags", config.get("flags"), "what each flag changes")


def malformed(file, key, value, right):
    shown = short(repr(value) if is_plain(value) else "nested")
    return UsageError(
        f"{file}: {short(printable(key))} is {printable(shown)}, not {right}; it is not as a run "
        "writes it, run the script again"
    )


def is_plain(value):
    """Text, a number, nothing, or a list or dict of those."""
    inner = value.values() if isinstance(value, dict) else value
    return isinstance(value, PLAIN) or all(isinstance(part, PLAIN) for part in inner)


def short(text):
    return text if len(text) < 100 else f"{text[:97]}..."


def refuse_mismatch(baseline, run):
    """Raises UsageError with everything but the seed in which the run's continuations are made
    otherwise."""
    compared = [(name, *(r.config[name][:12] for r in (baseline, run))) for name in FACTS]
    flags = baseline.flags | run.flags
    # a baseline may take more time, as a control
    idle = efforts(baseline, run)[1] if run.is_baseline else {}
    compared += [
        (spelt(flags, name), *(value_of(flags, name, r.arguments) for r in (baseline, run)))
        for name in dict.fromkeys([*generation(baseline.flags), *generation(run.flags)])
        if name not in idle
    ]
    found = [
        printable(f"{name} ({short(str(there))} there, {short(str(here))} here)")
        for name, there, here in compared
        if there != here
    ]
    found += [
        f"the {file} of video {printable(name)}"
        for name in sorted(baseline.done.keys() & run.done.keys())
        for key, file in FILES.items()
        if len({each.done[name].get(key) for each in (baseline, run)} - {None}) > 1
    ]
    if found:
        raise UsageError(
            f"{run.path} cannot be compared with {baseline.path}: they differ in "
            + ", ".join(found[:10])
            + (f" and {len(found) - 10} more" if len(found) > 10 else "")
        )
