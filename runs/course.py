"""Where each video of a run begins, and what it leaves to the next: a state (--carry-over,
--reptile), or its adapter (--start-from bank)."""

import contextlib

import torch

from common.adapters import adapter_of
from common.errors import UsageError, VideoError
from common.start import Start, carries
from runs import carry, results
from runs.records import writing

START = "start"  # what --reptile has learned, in --out


class Course:
    def __init__(self, args, linked):
        """linked: whether what is learned from a video depends on those before it."""
        self.args, self.out = args, args.out
        self.chain = carry.Chain(args.out, linked)
        self.carried, self.bank = None, None

    @contextlib.contextmanager
    def working(self):
        """Within it a worker is alone at the run, where it has to be."""
        with self.chain.working():
            if carries(self.args):
                self.carried = carry.Carried(self.chain)
            elif self.chain.links:
                before = self.chain.items[: self.chain.passed]
                self.bank = Bank(self.out / "videos", [item.id for item in before])
            yield

    def start_of(self, clip):
        """Of the video as a common.start.Start; None where it begins on its own."""
        if self.carried:
            return Start(self.carried.state)
        return self.bank.start_of(clip) if self.bank else None

    def keep(self, clip, method):
        """To be called before the video's record is written, when the method is not needed any
        more; gives what that has to have."""
        if not self.chain.links:
            return {}
        places = {item.id: place for place, item in enumerate(self.chain.items)}
        place = places[clip.video.id]
        if self.carried:
            with writing(self.out):
                self.carried.keep(clip.video.id, clip.start.leaves)
                if self.args.reptile and clip.start.leaves:
                    clip.start.put(clip.start.leaves["parameters"])
                    path = self.carried.folder / clip.video.id
                    seen = sorted({item.source for item in self.chain.items[: place + 1]})
                    results.save_adapter(path, method, self.args, learned_on=seen)
        return {"place": place}

    def settle(self, record):
        """To be called after the video's record is written."""
        if self.carried:
            self.publish(record["id"])
            self.carried.settle(record["id"])
        elif self.bank:
            self.bank.add(record)

    def take_back(self):
        """To be called where a video is skipped after `keep`."""
        if self.carried:
            self.carried.take_back()

    def publish(self, name):
        """Gives the start that was saved with a video that is done, where there is one, its place
        in --out."""
        for kind in ("safetensors", "adapter"):
            saved, start = self.out / carry.FOLDER / f"{name}.{kind}", self.out / f"{START}.{kind}"
            with writing(self.out), contextlib.suppress(FileNotFoundError):
                if saved.is_dir():  # which takes no other's place
                    results.discard(start)
                saved.replace(start)


class Bank:
    """The adapters in a run's folder of videos, of which a video begins at that of the nearest: by
    the mean, for each channel, of the latents that its generation continues."""

    def __init__(self, folder, names):
        """names: ids of the earlier videos."""
        self.folder, self.means = folder, {}
        for record in (results.read_record(folder / f"{name}.json") for name in names):
            self.add(record)

    def add(self, record):
        """A video whose adaptation diverged is not begun at."""
        if record["status"] == "done" and not record["diverged"]:
            if not isinstance(record.get("latent_mean"), list):
                raise UsageError(
                    f"--out {self.folder.parent}: {record['id']}.json has no latent_mean"
                )
            self.means[record["id"]] = torch.tensor(record["latent_mean"], dtype=torch.float64)

    def start_of(self, clip):
        mean = clip.cond_latents.double().mean((0, 2, 3, 4)).cpu()
        far = {name: float((mean - other).norm()) for name, other in self.means.items()}
        nearest = min(far, key=far.get, default=None)
        facts = {
            "latent_mean": mean.tolist(),
            "started_from": nearest,
            "distance": far.get(nearest),
        }
        try:
            return Start(adapter=nearest and adapter_of(self.folder, nearest), **facts)
        except VideoError as error:
            raise UsageError(
                f"--out {self.folder.parent}: has lost the adapter of {nearest}, at which "
                f"{clip.video.id} begins; choose another folder"
            ) from error
