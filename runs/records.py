"""What a run leaves behind for each video or latent clip, and what it shows meanwhile."""

import contextlib

from tqdm import tqdm

from common.errors import PreflightError, StopRun
from common.values import folder
from runs import identity, results
from runs.names import printable


def add_arguments(group):
    group.add_argument(
        "--out", type=folder, metavar="FOLDER", changes=None,
        help="results; by default results/<script>",
    )  # fmt: skip


def add_adapters(group):
    group.add_argument(
        "--save-adapter", action="store_true", changes=None,
        help="keep each video's adapted parameters (full_tta.py: all weights, each time)",
    )  # fmt: skip


@contextlib.contextmanager
def writing(out):
    """A full disk is not the fault of a video: the run stops, and what is not done stays to do."""
    try:
        yield
    except OSError as error:
        raise StopRun(f"--out {out}: cannot be written ({error})") from error


class Record(dict):
    """What is found out about a video until it is handed over."""

    def __init__(self, hand_over):
        super().__init__()
        self._hand_over, self.handed_over = hand_over, False

    def later(self, clip, *results):
        """All is scored and written, in the background where that helps. results: of a video the
        frames (samples, F, 3, H, W) as `generate` gives them, or None, and the method."""
        self.handed_over = True
        self._hand_over(clip, self, *results)


class Records:
    def __init__(self, args, config):
        self.args, self.config = args, config
        self.folder, self.last, self.bar = args.out / "videos", "", None

    def path(self, video):
        return self.folder / f"{video.id}.json"

    def changed(self, video):
        """When its record was last written, in nanoseconds."""
        path = self.path(video)
        return path.stat().st_mtime_ns if path.exists() else None

    @contextlib.contextmanager
    def progress(self, total, done):
        unit = self.args.kind.NOUN
        with tqdm(total=total, initial=done, unit=unit, disable=None) as self.bar:
            yield

    def show(self, line):
        """Says beside the progress bar what is going on, and how the last video went."""
        self.bar.set_postfix_str(printable(line + self.last))

    def say(self, line):
        """A line for people, where there is no progress bar too."""
        self.bar.write(printable(line))

    def skip(self, video, error):
        record = self.identity(video) | {"status": "skipped", "reason": str(error)}
        if isinstance(error, PreflightError):
            record["preflight"] = error.losses
        results.write_json(self.path(video), record)
        self.say(f"{video.id}: SKIPPED, {error}")
        self.bar.update()

    def write(self, video, record):
        identity.refuse_other(self.args.out, self.config)  # as it may be by now
        results.write_json(self.path(video), record)

    def announce(self, line, last=""):
        """The line of a finished video. last: what is shown of it beside the progress bar."""
        self.say(line)
        self.last = last
        self.bar.update()

    def identity(self, video):
        facts = {"id": video.id, "caption": video.caption, "source": video.source}
        return facts | {"seed": self.args.seed, "columns": video.columns}

    def made_with(self):
        return {key: self.config[key] for key in ("git_revision", "source_sha256")}
