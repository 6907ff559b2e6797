"""What a comparison says of each method, in a sentence: does it help, by how much, how surely?"""

from dataclasses import dataclass

from report.comparison import REFERENCE_NAMES
from report.metrics import ZERO
from report.statistics import FEWEST

HELPS, HARMS, UNTOLD, FEW = "helps", "harms", "cannot be told", "too few sources"  # outcomes
OPPOSITE = {HELPS: HARMS, HARMS: HELPS}
DIRECTIONS = {"lower": ("rise", "fall"), "higher": ("fall", "rise")}  # worse, better


@dataclass(frozen=True)
class Verdict:
    outcome: str | None  # None without anything to compare
    head: str
    body: str

    @property
    def sentence(self):
        return f"{self.head}: {self.body}."


def outcome(row):
    """What the interval of the gain in a table's row says; None of a row without a gain."""
    if row["gain"] is None:
        return None
    if row["low"] is None:
        return FEW
    return HELPS if row["low"] > 0 else HARMS if row["high"] < 0 else UNTOLD


def verdicts(tables):
    """One for each method, from the tables of a comparison by metric: of the first that was
    measured of those that may decide. Of a baseline alone what can be said of it."""
    leads = [metric for metric in tables if metric.leads] or list(tables)
    metric = next((metric for metric in leads if tables[metric]), leads[-1])
    other = next((metric for metric in tables if metric == "psnr_db"), None)
    pictures = {row["method"]: row for row in tables.get(other, ())}
    repeated = pictures.get(REFERENCE_NAMES["repeat_last"])
    found = [
        verdict(row, leads[0], metric, (other, pictures.get(row["method"])), repeated)
        for row in tables[metric]
        if row["gain"] is not None and not row["control"]
    ]
    return found or [nothing_to_tell(tables[metric], leads, pictures, repeated)]


def verdict(row, first, metric, other, repeated=None):
    """row: of the method in the table of `metric`; first: what should decide; other: PSNR, and the
    method's row in its table; repeated: that of the repeated last frame, where there are any."""
    parts, (psnr, pictures) = [moved(row, metric) + where(row)], other
    if metric != first:
        parts.insert(0, f"{first.called} was not measured in all runs")
    elif (
        pictures
        and psnr != metric
        and outcome(pictures)
        and OPPOSITE.get(outcome(row)) == outcome(pictures)
    ):
        parts.append(f"but {moved(pictures, psnr)}: the two disagree")
    if pictures and repeated:
        parts.append(against(pictures, repeated))
    words = {
        HELPS: " helps",
        HARMS: " harms",
        UNTOLD: " makes no difference that can be told",
        FEW: f": too few sources to say ({row['sources']}; an interval needs {FEWEST})",
    }
    if metric.learned:
        parts.append("learning lowers it whether that helps or not")
        return Verdict(UNTOLD, f"{row['method']} cannot be judged", "; ".join(parts))
    return Verdict(outcome(row), row["method"] + words[outcome(row)], "; ".join(parts))


def moved(row, metric):
    """By how much, and between what: "PSNR rises by 0.5 dB (95 %: 0.2 to 0.8)"."""
    low, high, unit = row["low"], row["high"], "%" if metric.relative else metric.unit
    worse, better = DIRECTIONS[metric.better]
    scale = max(abs(row[key] or 0) for key in ("gain", "low", "high"))
    if abs(row["gain"]) < ZERO:
        change = f"{metric.called} does not change on average"
    else:
        change = f"{metric.called} {better if row['gain'] > 0 else worse}s by "
        change += f"{size(row['gain'], scale)} {unit}".rstrip()
    if low is None or low == high:
        return change
    low_shown, high_shown = size(low, scale), size(high, scale)
    if outcome(row) == UNTOLD:
        return f"{change} (95 %: from a {worse} of {low_shown} to a {better} of {high_shown})"
    ends = (low_shown, high_shown) if low > 0 else (high_shown, low_shown)
    return f"{change} (95 %: {' to '.join(ends)})"


def where(row):
    """On how many videos, of how many sources."""
    videos, sources = (counted(row[key], key[:-1]) for key in ("videos", "sources"))
    return f", better on {100 * row['improved']:.0f} % of {videos} of {sources}"


def counted(count, thing):
    return f"{count} {thing}{'' if count == 1 else 's'}"


def against(pictures, repeated):
    """The PSNR of a run against that of the last given frame, repeated."""
    more = repeated["mean"] - pictures["mean"]
    if more > 0:
        return f"repeating the last frame still has {size(more)} dB more PSNR"
    return f"its PSNR is {size(more)} dB above that of repeating the last frame"


def size(value, scale=None):
    """Without its sign, to as many places as suit the largest number beside it."""
    scale = abs(value) if scale is None else scale
    if scale >= 1000:
        return f"{abs(value):,.0f}" if scale < 1e6 else f"{abs(value):.3g}"
    shown = f"{abs(value):.{1 if scale >= 1 else 2}f}"
    return shown if float(shown) or not value else f"{abs(value):.1g}"


def nothing_to_tell(rows, leads, pictures, repeated):
    """Of a baseline alone, or of runs that share no score."""
    if not rows:
        words = " nor ".join(metric.called for metric in leads)
        return Verdict(None, "Nothing can be told", f"the runs share neither {words}")
    name = rows[0]["method"]
    parts = ["there are no results of a run that adapts"]
    if name in pictures and repeated:
        parts.append(against(pictures[name], repeated))
    return Verdict(None, f"Nothing to compare {name} with", "; ".join(parts))
