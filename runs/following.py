"""A run of several processes (torchrun): the first claims, reads, scores and writes, the others
follow. They are sent each clip; noise and draws they make themselves, from the same streams."""

import contextlib
from dataclasses import replace

from common.errors import VideoError
from common.loading import pick_device
from common.loss import preflight
from devices import agreement, ranks
from devices.placement import within_memory
from devices.shards import whole
from runs import team
from runs.clips import on_device
from runs.run import Run


def open_run(args):
    """A Run, or, in the other processes of torchrun, what follows it."""
    if ranks.count() > 1:
        team.gather(pick_device(args.device))
    return Follower(args) if ranks.rank() else Run(args)


class Follower:
    """Takes part in the computations of the first process's Run, in their order. It writes
    nothing."""

    def __init__(self, args):
        self.args, self.ends_here = args, ranks.broadcast()

    @contextlib.contextmanager
    def working(self, model):
        self.model = model
        agreement.wait_for_turn()
        model.placement.begin(0)
        yield

    def pending(self):
        """The videos that the first process takes, which may have to wait for other workers."""
        while True:
            agreement.wait_for_turn()
            video = ranks.broadcast()
            if video is None:
                return
            yield video

    @contextlib.contextmanager
    def recorded(self, video):
        """What happens to a video happens to it in all processes."""
        record = Followed()
        try:
            yield record
        except VideoError:
            return
        if self.args.save_adapter:
            for part in record.method.named_parameters().values():
                whole(part.detach())  # the first process gathers it to be saved

    def load_clip(self, video):
        """As the first process sends it. Raises VideoError where that skips it."""
        clip = on_device(told(), self.model.device)
        within_memory(self.model, lambda: preflight(self.model, clip))
        return replace(clip, preflight=told())

    def show(self, line):
        """The first process does."""

    def exit_code(self):
        return ranks.broadcast()


class Followed(dict):
    """A record that nobody keeps."""

    def later(self, clip, frames, method):
        self.method = method


def told():
    """What the first process sends; its VideoError is raised here too."""
    found = ranks.broadcast()
    if isinstance(found, VideoError):
        raise VideoError(str(found))
    return found
