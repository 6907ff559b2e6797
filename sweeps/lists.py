"""The lists of a sweep that chooses its settings: clips under each shift, split by their sources.

In its folder: lists/all.csv, the clips as they are; shifts/<kind>-<severity>, what prepare.shift
makes of them; lists/<part>_<shift>.csv, those of a part's sources.
"""

import hashlib
import subprocess
import sys
from dataclasses import dataclass

from common.data import sha256
from common.errors import UsageError
from common.loading import geometry_of
from runs.identity import ROOT
from runs.lists import list_videos, write_list
from runs.results import read_json
from sweeps.files import PARTS, load_yaml
from sweeps.parts import CLEAN, sets_of, whole_list
from sweeps.rows import first_args

RULES = "shift.json"  # of prepare.shift: what a folder was made with


@dataclass(frozen=True)
class Lists:
    sets: list
    args: object  # as a row's script parses them without a part: the clips, and their window

    @classmethod
    def of(cls, path, out, before, after):
        """None of a sweep file without parts. Raises UsageError."""
        sets = sets_of(path, load_yaml(path), out)
        return cls(sets, first_args(path, out, before, after)) if sets else None

    @property
    def all(self):
        return whole_list(self.sets[0].folder)

    def commands(self):
        """{folder: words} of what makes the shifted clips, as long and large as the rows need."""
        size, frames = "{1}x{0}".format(*self.size), self.args.anchor + self.args.gen_frames
        found = {}
        for each in (each for each in self.sets if each.shift != CLEAN):
            kind, _, severity = each.shift.rpartition("-")
            folder = each.shifted.parent.absolute()
            words = [sys.executable, "-m", "prepare.shift", str(self.all.absolute())]
            words += ["--kind", kind, "--severity", severity, "--size", size]
            found[folder] = [*words, "--min-frames", str(frames), "--out", str(folder)]
        return found

    @property
    def size(self):
        """(height, width) of what the model sees."""
        return self.args.size or geometry_of(self.args).size

    def is_made(self, folder):
        """Whether a folder has its shifted clips. Raises UsageError where they are of another list,
        size or length."""
        made = read_json(folder / RULES)
        asked = {"size": list(self.size), "min_frames": self.args.anchor + self.args.gen_frames}
        asked |= {"list": sha256(self.all)}
        if made and (other := [name for name in asked if made.get(name) != asked[name]]):
            raise UsageError(
                f"{folder}: was made with another {' and '.join(other)} (the videos of --videos "
                "and --limit, size and window of the rows); delete it, or choose another --out"
            )
        return bool(made) and (folder / "manifest.csv").is_file()

    def shared_out(self):
        """The videos that --limit leaves, and each part's sources. Raises UsageError where there
        are too few."""
        videos, _ = list_videos(self.args.videos, self.args.prompt, allow_empty=True)
        videos = videos[: self.args.batch_end]  # the sweep's --limit: what is encoded, too
        shares = {each.part: each.share for each in self.sets}
        return videos, shared_out({video.source for video in videos}, shares)

    def make(self):
        """Writes the list of each set, and the shifted clips that are not there yet. Raises
        UsageError where there are too few sources, a shift takes none of a part's clips, or those
        that are there are others."""
        videos, sources = self.shared_out()
        if not any(video.columns.get("source") for video in videos):
            print(
                f"--videos {self.args.videos}: has no column source, so that each clip counts as "
                "one: clips of the same film may be among those chosen on and those reported",
                file=sys.stderr,
            )
        self.all.parent.mkdir(parents=True, exist_ok=True)
        write_list(self.all, videos)
        for folder, words in self.commands().items():
            if not self.is_made(folder) and subprocess.call(words, cwd=ROOT) not in (0, 3):
                raise UsageError(f"{folder}: its clips were not made; the reason stands above")
        for each in self.sets:
            under, _ = list_videos(each.shifted, allow_empty=True)
            own = [video for video in under if video.source in sources[each.part]]
            if not own:
                raise UsageError(f"{each.name}: no clip of its sources can take the shift")
            write_list(each.list, own)


def shared_out(names, shares):
    """{part: sources}: the first for `choose`, the last for `report`, at least one each, in the
    order of the SHA-256 of their names. Raises UsageError where there are too few."""
    if len(names) < len(PARTS):
        raise UsageError(
            f"--videos: has {len(names)} source; choose and report need one each (column source), "
            "among the first of --limit"
        )
    order = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    count = min(max(1, round(shares["choose"] * len(order))), len(order) - 1)
    rest = min(max(1, round(shares["report"] * len(order))), len(order) - count)
    return {"choose": set(order[:count]), "report": set(order[len(order) - rest :])}
