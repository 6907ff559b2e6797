"""A sweep that chooses its settings on one part of the data and reports them on another:

    choose: {shifts: [noise 2, blur 2], sources: 25 %}
    report: {shifts: [clean, dark 3, jpeg 3], sources: 75 %}

Every row runs on each list of `choose`; then of each entry of `rows` the setting with the largest
mean gain there runs on each list of `report`. No kind of shift and no source is in both; clean, the
list itself, is no shift. Sources are shared out in the order of the SHA-256 of their names.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from runs.lists import SHIFTS
from sweeps.files import PARTS, check_keys, short, wrong

CLEAN = "clean"
SEVERITIES = range(1, 6)


@dataclass(frozen=True)
class Set:
    """A shift in a part of the sources: one list of videos."""

    part: str  # choose or report
    shift: str  # as prepare.shift's folder is called, noise-2; or clean
    share: float  # of the sources
    folder: Path  # of the sweep

    @property
    def name(self):
        return f"{self.part}_{self.shift}"

    @property
    def list(self):
        return self.folder / "lists" / f"{self.name}.csv"

    @property
    def shifted(self):
        """All clips under the shift."""
        if self.shift == CLEAN:
            return whole_list(self.folder)
        return self.folder / "shifts" / self.shift / "manifest.csv"


def whole_list(folder):
    return folder / "lists" / "all.csv"


def sets_of(path, content, folder):
    """The Sets of a sweep file, those of `choose` first; none where it has no parts. Raises
    UsageError on parts that are not as they should be, or that share what they must not."""
    given = [part for part in PARTS if part in content]
    if not given:
        return []
    if len(given) < len(PARTS):
        (missing,) = set(PARTS) - set(given)
        raise wrong(path, f"has {given[0]} and no {missing}; settings need both, or neither")
    shifts, shares = {}, {}
    for part in PARTS:
        where = f"{part} of the file"
        check_keys(path, where, content[part], {"shifts", "sources"}, {"shifts", "sources"})
        shifts[part] = shifts_of(path, where, content[part]["shifts"])
        shares[part] = share_of(path, where, content[part]["sources"])
    refuse_shared(path, shifts, shares)
    return [Set(part, shift, shares[part], folder) for part in PARTS for shift in shifts[part]]


def shifts_of(path, where, given):
    """["noise 2", "clean"] -> ["noise-2", "clean"]"""
    found = []
    for text in given if isinstance(given, list) and given else [given]:
        kind, _, severity = str(text).partition(" ")
        known = text == CLEAN or (kind in SHIFTS and severity in map(str, SEVERITIES))
        if not known or text in found:
            raise wrong(
                path,
                f"shifts of {where} must be a list of clean or a kind and its severity, as "
                f"[clean, noise 2], each once, got {short(text)}; kinds are {', '.join(SHIFTS)}",
            )
        found.append(str(text))
    return [text.replace(" ", "-") for text in found]


def share_of(path, where, given):
    """ "25 %" -> 0.25"""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?%", str(given))
    if not match or not 0 < float(match[1]) < 100:
        raise wrong(path, f"sources of {where} must be a share as 25 %, got {short(given)}")
    return float(match[1]) / 100


def refuse_shared(path, shifts, shares):
    """Raises UsageError where settings would be chosen on what is reported."""
    kinds = {part: {re.sub(r"-\d$", "", shift) for shift in shifts[part]} for part in PARTS}
    if both := sorted(kinds["choose"] & kinds["report"] - {CLEAN}):
        raise wrong(
            path,
            f"{' and '.join(both)} in choose and in report: settings would be chosen on a shift "
            "that is reported; give each part its own",
        )
    if sum(shares.values()) > 1 + 1e-9:
        raise wrong(
            path,
            f"choose and report want {100 * sum(shares.values()):g} % of the sources: settings "
            "would be chosen on sources that are reported; at most 100 %",
        )


def without(tokens, flag):
    """The tokens without a flag and its value, also as --flag=value."""
    tokens = [token for token in tokens if not token.startswith(f"{flag}=")]
    at = [i for i, token in enumerate(tokens) if token == flag]
    gone = {i + k for i in at for k in (0, 1)}
    return [token for i, token in enumerate(tokens) if i not in gone]
