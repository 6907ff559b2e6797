"""The training of an adapter: pairs, optimiser, state."""

import json
import math

import torch
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from tqdm import tqdm

import backbones
from common.errors import UsageError
from common.loading import pick_device
from devices import ranks
from litevsr.data import UNSEEN, Pairs, source_of, together
from litevsr.files import WEIGHTS, load_adapter, save_adapter
from litevsr.progress import check, draw_curve
from litevsr.restorer import Restorer, new_adapter
from litevsr.unrolling import draw_walks, training_loss
from nano.recipe import average
from runs.identity import fingerprint
from runs.results import read_json, save_whole, write_json

WARM_UP, MAX_GRAD_NORM = 200, 1.0
ALONE = 500  # first iterations, without unrolling
HEAD = 128  # channels of a head
PARTS = ("adapter", "average", "optimizer")  # of the state
CHECKED = 8  # pairs that no training shows

SETTINGS, CURVE = "settings.json", "curve.json"
# what may differ when the same training goes on
FREE = ("out", "work", "recompute", "workers", "save_every", "device")


class Trainer:
    """Iteration n draws from streams of its own number: a resumed training is the same."""

    def __init__(self, args):
        self.args, self.rank = args, ranks.rank()
        # draws are of all processes' clips: two of batch 4 learn what one of batch 8 does
        self.whole = ranks.count() * args.batch
        self.mine = slice(self.rank * args.batch, (self.rank + 1) * args.batch)
        self.device = pick_device(args.device)
        ranks.start(self.device, ranks.DAY)  # the first encodes while the others wait
        source, geometry = source_of(args.data), backbones.geometry(args.checkpoint)
        self.size = args.size or geometry.size
        refuse_misfit(geometry, self.size, args)
        self.settings = settings_of(args)
        refuse_other(args.work, self.settings)
        self.model = backbones.load(args.checkpoint, self.device)
        self.model.recompute(args.recompute)
        self.pairs = Pairs(source, args.frames, self.size, args.scale, not args.bicubic)
        text = next(self.model.embed_each([""]))
        self.text = {name: value.to(self.device) for name, value in text.items()}
        self.checked = self.encode(self.loaded(range(UNSEEN, UNSEEN + CHECKED)))
        self.restorer = Restorer(self.model, self.new_adapter())
        if self.rank == 0:  # what is refused above leaves no trace
            args.work.mkdir(parents=True, exist_ok=True)
            write_json(args.work / SETTINGS, self.settings)
        self.cached = self.encode_once() if args.cache else None
        self.adapter = self.restorer.adapter
        self.average = AveragedModel(self.adapter, multi_avg_fn=average)
        self.optimizer = torch.optim.AdamW(self.adapter.parameters(), args.lr, weight_decay=0.01)
        self.step, self.curve = 0, []
        self.state = args.work / "state.pt"
        if self.state.exists():
            saved = torch.load(self.state, map_location=self.device, weights_only=True)
            if missing := [name for name in PARTS if name not in saved]:
                raise UsageError(f"--work {args.work}: its state has no {missing[0]}; give another")
            for name in PARTS:
                getattr(self, name).load_state_dict(saved[name])
            self.step, self.loss = saved["step"], saved["loss"]
            known = read_json(args.work / CURVE) or []
            self.curve = [row for row in known if row["step"] <= self.step]

    def new_adapter(self):
        args = self.args
        if args.start:
            return load_adapter(args.start, self.model, "--start")[0].requires_grad_(True).train()
        torch.manual_seed(0)  # the same in every process
        heads = args.heads or max(1, self.model.hidden_width // HEAD)
        shape = {"layers": args.layers or 2, "every": args.every or 1}
        return new_adapter(self.model, self.checked[0], self.size, heads, **shape).to(self.device)

    # Pairs

    def loaded(self, numbers, batch=1):
        """Batches of (sharp, damaged) of those pair numbers, (batch, 3, F, H, W) each."""
        loader = DataLoader(
            self.pairs, batch, sampler=numbers, num_workers=self.args.workers,
            multiprocessing_context="spawn" if self.args.workers else None, collate_fn=together,
        )  # fmt: skip
        for pair in loader:
            if isinstance(pair, UsageError):
                raise pair
            yield pair

    @torch.no_grad()
    def encode(self, batches):
        """Latents of the sharp and of the damaged clips of all batches, (M, C, T, h, w) each."""
        both = [[self.model.encode(x.to(self.device)) for x in pair] for pair in batches]
        return [torch.cat(latents) for latents in zip(*both, strict=True)]

    def encode_once(self):
        """Those of pairs 0..cache - 1, 16-bit, from the work folder where they are already."""
        path = self.args.work / "pairs.pt"
        if self.rank == 0 and not path.exists():
            count = self.args.cache
            bar = tqdm(self.loaded(range(count)), "encoding pairs", count, disable=None)
            save_whole([x.half().cpu() for x in self.encode(bar)], path)
        ranks.broadcast()  # the first has written it
        return torch.load(path, weights_only=True)

    def batches(self):
        """For every iteration to come, the latents of its pairs."""
        batch, steps = self.args.batch, range(self.step, self.args.iterations)
        if self.cached is not None:
            for step in steps:
                drawn = torch.Generator().manual_seed(step)
                rows = torch.randint(self.args.cache, (self.whole,), generator=drawn)[self.mine]
                yield [latents[rows].to(self.device).float() for latents in self.cached]
            return
        first = [step * self.whole + self.mine.start for step in steps]
        numbers = [number + i for number in first for i in range(batch)]
        for pair in self.loaded(numbers, batch):
            yield self.encode([pair])

    # Iterations

    def run(self):
        bar = tqdm(
            desc="training", unit="it", initial=self.step, total=self.args.iterations, disable=None
        )
        recent = []
        for latents, low in self.batches():
            recent.append(self.train_step(latents, low))
            bar.update()
            if self.step % self.args.save_every == 0 or self.step == self.args.iterations:
                loss = sum(recent) / len(recent)
                bar.set_postfix(loss=f"{loss:.4f}")
                recent = []
                if self.rank == 0:
                    self.save(loss)
        bar.close()
        if self.rank == 0:  # a kill may have come after the state
            self.save_adapter()
            if not self.curve or self.curve[-1]["step"] < self.step:
                self.check(self.loss)

    def save_adapter(self):
        weights = self.settings[WEIGHTS]
        save_adapter(self.args, self.model, self.average.module, self.step, weights)

    def train_step(self, latents, low):
        # noise on the CPU: the same on every device, whatever was drawn before
        torch.manual_seed(10_000 + self.step)
        drawn = (
            torch.randn(self.whole, *latents.shape[1:]),
            *draw_walks(self.whole, alone=self.step < ALONE),
        )
        noise, walks, counts = (x[self.mine].to(self.device) for x in drawn)
        for group in self.optimizer.param_groups:
            group["lr"] = self.args.lr * self.rate()
        # a cache would keep what the walk made without a gradient
        fast = {"dtype": torch.bfloat16, "cache_enabled": False}
        with torch.autocast(self.device.type, **fast, enabled=self.device.type == "cuda"):
            loss = training_loss(self.restorer, latents, noise, low, self.text, walks, counts)
        reported = loss.detach().clone()
        ranks.average([reported])
        if not reported.isfinite():
            raise UsageError(f"iteration {self.step}: the loss is not finite; try a smaller --lr")
        self.optimizer.zero_grad()
        loss.backward()
        ranks.average([parameter.grad for parameter in self.adapter.parameters()])
        torch.nn.utils.clip_grad_norm_(self.adapter.parameters(), MAX_GRAD_NORM)
        self.optimizer.step()
        self.average.update_parameters(self.adapter)
        self.step += 1
        return reported.item()

    def rate(self):
        done = self.step / self.args.iterations
        return min((self.step + 1) / WARM_UP, 0.5 + 0.5 * math.cos(math.pi * done))

    def save(self, loss):
        """The state and the adapter, then what it reaches on pairs that it does not learn from."""
        parts = {name: getattr(self, name).state_dict() for name in PARTS}
        save_whole(parts | {"step": self.step, "loss": loss}, self.state)
        self.save_adapter()
        self.check(loss)

    def check(self, loss):
        averaged = Restorer(self.model, self.average.module)
        found = check(averaged, self.text, *self.checked, self.args.work / "samples.png")
        self.curve.append({"step": self.step, "loss": loss} | found)
        write_json(self.args.work / CURVE, self.curve)
        draw_curve(self.curve, self.args.work)


def refuse_misfit(geometry, size, args):
    """Raises UsageError where crops of that size and length fit neither model nor scale, or heads
    not the model's width."""
    shown, multiple = f"--size {size[1]}x{size[0]}", geometry.size_multiple
    if any(side % multiple for side in size):
        raise UsageError(f"{shown}: this checkpoint needs multiples of {multiple}")
    if any(side % args.scale for side in size):
        raise UsageError(f"{shown}: no multiple of --scale {args.scale}")
    width = geometry.hidden_width
    if args.heads and (width % args.heads or width // args.heads % 2):
        raise UsageError(f"--heads {args.heads}: must part the model's width of {width} evenly")
    try:
        geometry.latents_of(args.frames)
    except ValueError as error:
        raise UsageError(f"--frames {args.frames}: {error}") from error


def settings_of(args):
    found = {k: str(v) for k, v in sorted(vars(args).items()) if k not in FREE}
    return found | {"processes": str(ranks.count()), WEIGHTS: fingerprint(args.checkpoint)}


def refuse_other(work, asked):
    """A work folder belongs to one training. Raises UsageError."""
    path = work / SETTINGS
    found = json.loads(path.read_text()) if path.exists() else asked
    if found != asked:
        keys = sorted(found.keys() | asked.keys())
        other = next(key for key in keys if found.get(key) != asked.get(key))
        if other == WEIGHTS and WEIGHTS in found:  # older versions did not say
            raise UsageError(
                f"--work {work}: holds a training on other weights than those that --checkpoint "
                f"{asked['checkpoint']} has now; give another --work"
            )
        raise UsageError(
            f"--work {work}: holds a training with --{other.replace('_', '-')} "
            f"{found.get(other)}, asked for is {asked.get(other)}; give another --work"
        )
