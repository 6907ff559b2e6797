"""A method beside its controls: what can be claimed of its gain, in a table and in a sentence."""

from dataclasses import dataclass

import numpy as np

from common.metrics import CLEAN_OF
from common.start import BANK
from report.controls import what_it_is
from report.metrics import ZERO, main_metric, unit
from report.statistics import FEWEST, clustered_interval, harmed
from report.table import TOO_FEW, number
from report.verdict import DIRECTIONS, FEW, HARMS, HELPS, UNTOLD, Verdict, moved, outcome, size
from runs.identity import goes_on

SPENT = ("adapt_seconds", "generate_seconds")
WORDS = {
    "--control random": "a random change of the same norm",
    "--control other": "what was learned on another video",
}
MEANING = (
    "Ahead: the method's gain less that of the other run, paired by video, with the 95 % interval "
    "over sources. s a video: adapting and sampling. No sampling changes the loss on the "
    "true future; runs that spend the time otherwise are to be compared in PSNR."
)
FROM_LEARNING = "so the gain comes from what was learned"
CONCLUSIONS = {  # by whether the method is told to be ahead of random, and of other; None: not run
    (True, True): f"{FROM_LEARNING} on each video",
    (True, None): f"{FROM_LEARNING}, on this video or on any (--control other would tell)",
    (True, False): f"{FROM_LEARNING}; nothing shows that it was to be learned on the video itself",
    (None, True): f"{FROM_LEARNING} on each video",
    (None, False): "so nothing shows that the gain comes from the video itself",
    (None, None): "where the gain comes from is not known (--control random and other would tell)",
}
CARRIED = {  # --control other is not for these
    (True, None): f"{FROM_LEARNING}, on this video or on those before it",
    (None, None): "where the gain comes from is not known (--control random would tell)",
}
UNSHOWN = "so nothing shows that the gain comes from what was learned"


@dataclass(frozen=True)
class Beside:
    method: str
    rows: list  # the baseline's, the method's and those of its controls
    claim: Verdict

    @property
    def readable(self):
        """The rows as strings for people."""
        shown = [cells(row) for row in self.rows]
        return [{key: row.get(key, "") for key in shown[-1]} for row in shown]  # a control has all


def beside_controls(comparison):
    """One Beside for each method that has controls."""
    metric, found = main_metric(comparison), []
    for method in comparison.judged:
        names = [n for n, of in comparison.controls.items() if method.name in of]
        controls = [m for m in comparison.methods if m.name in names]
        if controls and comparison.scored(metric):
            shown = [comparison.baseline, method, *controls]
            rows = [row_of(comparison, each, method, metric) for each in shown]
            said = claim(rows, metric, comparison.metrics, conclusions(method.runs[0].arguments))
            found.append(Beside(method.name, rows, said))
    return found


def conclusions(arguments):
    """Those of a run with these arguments: its hints name controls that it may have."""
    started = arguments.get("start_from"), arguments.get("adapter")
    found = CONCLUSIONS | (CARRIED if any(started) or goes_on(arguments) else {})
    if arguments.get("start_from") == BANK:
        found = {told: words.partition(" (--control")[0] for told, words in found.items()}
    return found


def row_of(comparison, each, method, metric):
    """Gains of a run, and by how much the method is ahead of it, as (mean, low, high) by metric."""
    shown = [metric, CLEAN_OF.get(metric), "psnr_db"]
    gains, ahead = {}, {}
    for name in (m for m in comparison.metrics.values() if m in shown and comparison.scored(m)):
        videos = comparison.scored(name)
        sources = comparison.sources(videos)
        own, its = (comparison.gains(m, name, videos) for m in (method, each))
        gains[name] = floats(clustered_interval(its, sources))
        ahead[name] = floats(clustered_interval(own - its, sources))
    videos = comparison.scored(metric)
    records = [run.done[video] for run in each.runs for video in videos]
    return {
        "run": each.name,
        "control": what_it_is(each, comparison.baseline),
        "gains": gains if each is not comparison.baseline else {},
        "ahead": ahead if each is not method else {},
        "harmed": harmed(comparison.differences(each, metric, videos)),
        "seconds": float(np.mean([sum(r.get(key, 0.0) for key in SPENT) for r in records])),
        "sources": len(set(comparison.sources(videos))),
    }


def floats(values):
    return tuple(None if value is None else float(value) for value in values)


def cells(row):
    """A row as strings, the interval behind each mean."""
    shown = {"run": row["run"], "control": row["control"], "s a video": number(row["seconds"])}
    shown["harmed"] = f"{100 * row['harmed']:.0f} %" if row["gains"] else ""
    for title, found in (("gain", row["gains"]), ("ahead", row["ahead"])):
        for metric, gain in found.items():
            shown[f"{title}, {metric}"] = with_interval(*gain, unit(metric))
    return shown


def with_interval(mean, low, high, unit):
    ends = [mean] if low is None else [mean, low, high]
    scale = max(map(abs, ends))
    mean, *ends = (signed(value, scale) for value in ends)
    return f"{mean}{unit} ({' to '.join(ends) or TOO_FEW})"


def claim(rows, metric, metrics, words=CONCLUSIONS):
    """The sentence on the method of rows[1] beside the controls in rows[2:], with one of
    `conclusions` as its words."""
    own, controls, pictures = rows[1], rows[2:], metrics.get("psnr_db")
    head = f"{own['run']} beside its controls"
    gain = as_row(own["gains"][metric])
    result = outcome(gain)
    if result == FEW:
        few = f"too few sources to say what a gain comes from ({own['sources']}; it needs {FEWEST})"
        return Verdict(FEW, head, few)
    parts, sure = [moved(gain, metric)], False
    if result == HELPS:
        more, sure = explained(controls, metric, words)
        parts += more
    else:
        parts.append("no gain is told that could be explained")
    parts += [spent(own, each, pictures) for each in controls if each["control"] not in WORDS]
    return Verdict(HARMS if result == HARMS else HELPS if sure else UNTOLD, head, joined(parts))


def joined(parts):
    return "; ".join(filter(None, parts))


def as_row(gain):
    return dict(zip(("gain", "low", "high"), gain, strict=True))


def explained(controls, metric, conclusions):
    """What each kind of control says of a gain, and the conclusion; whether it is from learning."""
    parts, ahead = [], dict.fromkeys(WORDS)
    for each in controls:
        if each["control"] in WORDS:
            lead, words = outcome(as_row(each["ahead"][metric])), WORDS[each["control"]]
            kind = each["control"]
            ahead[kind] = ahead[kind] is not False and lead == HELPS  # of all of a kind
            parts.append(against(words, each["gains"][metric], lead, metric))
    random, other = told = tuple(ahead.values())
    conclusion = UNSHOWN if random is False else conclusions[told]
    return [*parts, conclusion], True in told and False not in told


def against(words, gain, lead, metric):
    """lead: what the interval of the method's gain less the control's says."""
    own, change = outcome(as_row(gain)), change_of(gain[0], metric)
    if lead == UNTOLD:
        return f"it cannot be told from {words} ({change})"
    if lead == HARMS:
        return f"{words} gains more ({change})"
    return f"{words} {'gains less' if own == HELPS else 'shows no gain'} ({change})"


def change_of(mean, metric):
    if abs(mean) < ZERO:
        return "no change"
    worse, better = DIRECTIONS[metric.better]
    unit = "%" if metric.relative else metric.unit
    return f"{better if mean > 0 else worse}s by {size(mean)} {unit}".rstrip()


def spent(own, control, metric):
    """The method's PSNR against that of a run that spends its time without adapting; None where
    there are no pictures."""
    if metric not in control["gains"]:
        return None
    words = {HELPS: "is above", HARMS: "is below", UNTOLD: "cannot be told from"}
    ours, theirs = (signed(row["gains"][metric][0]) for row in (own, control))
    lead = words.get(outcome(as_row(control["ahead"][metric])), words[UNTOLD])
    return (
        f"its {metric.called} gain ({ours} {metric.unit}) {lead} that of {control['run']} "
        f"({theirs} {metric.unit}), which does not adapt and takes "
        f"{control['seconds'] / max(own['seconds'], ZERO):.2g} times as long"
    )


def signed(value, scale=None):
    return f"{'-' if value < 0 else '+'}{size(value, scale)}"
