"""The items of a run, videos or latent clips: which are still to do, who has them, and what became
of each."""

import contextlib
import sys
import time

from common.errors import StopRun, UsageError, VideoError
from runs import identity, results
from runs.claims import Claims
from runs.exits import STOPPED
from runs.names import printable
from runs.records import Record, Records, writing
from runs.todo import written


class Work:
    """Opens or resumes the run in args.out. Raises UsageError where that holds another one.

    items: those of this worker, in their order. done_among(items, folder): ids of those that the
    records in `folder` say are done."""

    def __init__(self, args, config, items, done_among):
        self.args, self.out, self.config, self.items = args, args.out, config, items
        self.folder = args.out / "videos"
        self.goes_on = identity.same_run(self.out, config)
        self.records = Records(args, config)
        self.before = written(self.folder)
        done = done_among(items, self.folder)
        self.todo = [item for item in items if item.id not in done]
        self.done = len(items) - len(self.todo)

    @property
    def ends_here(self):
        """Whether no model is needed: --dry-run, a shard without items, or all is done."""
        return self.args.dry_run or not self.todo

    def open(self, setting, note=None):
        """Makes the folder and prints how far the run is. setting: a line on what it does; note: a
        line for stderr."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--out {self.out}: cannot be written ({error.strerror})") from error
        if note:
            print(note, file=sys.stderr)
        if self.goes_on:
            edited = identity.edited_source(self.out, self.config)
            print(f"{self.done} already done, {len(self.todo)} to do{edited}")
        else:
            with writing(self.out):
                results.write_json(self.out / "config.json", self.config)
        print(setting)

    @contextlib.contextmanager
    def working(self, summarise):
        """Within it items are claimed and the progress bar shows; stopped or not, summarise() is
        called at its end, which writes summary.json."""
        with contextlib.ExitStack() as stack:
            stack.callback(lambda: self.folder.is_dir() and summarise())  # it may have vanished
            self.claims = stack.enter_context(Claims(self.folder))
            stack.enter_context(self.records.progress(len(self.items), self.done))
            yield

    def pending(self):
        """(place in todo, item) of those still to do, one after the other, those that other workers
        have at the end."""
        for place, item in self.claims.in_turn(self.todo, self.records.say):
            if self.records.changed(item) != self.before.get(item.id):
                self.records.bar.update()  # another worker has done it
                self.claims.release(item.id)
                continue
            yield place, item

    @contextlib.contextmanager
    def recorded(self, item, hand_over):
        """Gives the item's Record, a dict to be filled and handed over with `later`. A VideoError
        in the block is recorded as the reason why the item is skipped."""
        results.remove_unfinished(self.folder, item.id)
        self.started, record = time.perf_counter(), Record(hand_over)
        try:
            yield record
        except VideoError as error:
            self.skip(item, error)
            return
        if not record.handed_over:
            raise RuntimeError(f"{item.id}: its record was not handed over with record.later()")

    def lost(self, item):
        """Whether another worker took the item over, while this one stood still."""
        if not self.folder.is_dir():
            raise StopRun(f"--out {self.out}: has vanished")
        lost = not self.claims.holds(item.id)
        if lost:
            self.claims.release(item.id)
            self.records.say(f"{item.id}: another worker took it over; that one's result counts")
        return lost

    def skip(self, item, error):
        """Gives whether it was this worker's to skip."""
        if self.lost(item):
            return False
        with writing(self.out):
            self.records.skip(item, error)
        self.claims.release(item.id)
        return True

    def finish(self, item, scored):
        """Writes the record that scored() gives, and gives it; None where the item was lost."""
        with writing(self.out):
            record = scored()
            if self.lost(item):
                return None
            self.records.write(item, record)
        self.claims.release(item.id)
        return record

    def exit_code(self, summary, lines):
        """Prints the lines; 3 where items of this range were skipped, else 0."""
        for line in lines:
            print(printable(line))
        skipped, here = summary["videos_skipped"], {item.id for item in self.items}
        if here - written(self.folder).keys():
            print("other workers have the rest; the same command waits for it", file=sys.stderr)
            return STOPPED
        return 3 if skipped.keys() & here else 0
