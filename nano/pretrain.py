"""Makes `nano/checkpoint` from nothing: autoencoder, tokenizer, text encoder and DiT.

    python -m nano.pretrain --steps 20000 --fast     # --device cuda on a GPU

It learns video continuation on the clips of `nano/scenes.py`, in the official sign: given clean
context latents (timestep 0) the DiT predicts latents - noise of the frames that follow. Everything
in between lies in `--work`, with the loss curve and, every ten minutes, a checkpoint and a sheet of
continued scenes; the finished checkpoint, with averaged weights, in `--out`. Interrupted (also by
SIGTERM), it saves, and the same command goes on, with more --steps where asked: the rate stays the
same until the last quarter of them. Under torchrun each process takes its share of a batch, and
learns what one alone would: two processes of one thread are faster than one of two threads.
"""

import argparse
import contextlib
import copy
import json
import shutil
import signal
import time
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

import backbones
from backbones.parts import load_weights
from devices import ranks
from nano.architecture import HEAD, new_dit, new_text_encoder
from nano.dataset import SIZE, prepare
from nano.progress import draw_curve, draw_samples
from nano.recipe import (
    SHIFT,
    Optimizers,
    add_recipe,
    average,
    babbled,
    fill_shape,
    flow_matching_loss,
)
from runs.results import save_whole

COOLDOWN = 0.25  # share of the steps over which the rate falls
TEXT_LENGTH = 64  # tokens


class Trainer:
    def __init__(self, args):
        self.args, self.device = args, torch.device(ranks.own_device(args.device))
        ranks.start(self.device, ranks.DAY)  # the first draws clips while the others wait
        share = args.batch // ranks.count()
        self.mine = slice(ranks.rank() * share, (ranks.rank() + 1) * share)
        if ranks.rank() > 0:  # it reads what the first has made
            ranks.broadcast()
        data, self.tokenizer = prepare(args)
        if ranks.rank() == 0:
            ranks.broadcast()
        self.latents = data["latents"].to(self.device)
        tokens = self.tokenizer(
            [*data["captions"], ""], padding="max_length", max_length=TEXT_LENGTH,
            truncation=True, return_tensors="pt",
        )  # fmt: skip
        self.ids, self.mask = (
            tokens.input_ids.to(self.device),
            tokens.attention_mask.to(self.device),
        )
        torch.manual_seed(1)
        self.models = self.first_models().to(self.device)
        self.average = AveragedModel(self.models, multi_avg_fn=average)
        self.optimizer = Optimizers(self.models, args.lr, args.muon_lr)
        self.weights = self.channel_weights().to(self.device)
        self.step, self.seconds, self.curve, self.stopped = 0, 0.0, [], []
        self.state = args.work / "state.pt"
        if self.state.exists():
            saved = torch.load(self.state, map_location=self.device)
            for name in ("models", "average", "optimizer"):
                getattr(self, name).load_state_dict(saved[name])
            self.step, self.seconds, self.curve = saved["progress"]
        if args.fast:  # compiled once for each length of the context
            torch._dynamo.config.recompile_limit = 64
            for block in self.models["dit"].blocks:
                block.compile(dynamic=False)

    def channel_weights(self):
        """Of the loss, of mean 1: those of weak channels are damped by --damp."""
        config = json.loads((self.args.work / "vae" / "config.json").read_text())
        weights = torch.tensor(config["latents_std"]) ** (2 * self.args.damp)
        return weights / weights.mean()

    def first_models(self):
        dit = new_dit(self.args.width, self.args.depth, self.args.patch, self.latents.shape[1])
        models = {"dit": dit, "text_encoder": new_text_encoder(len(self.tokenizer))}
        if self.args.start:
            for name, model in models.items():
                given = load_weights(type(model), self.args.start / name, torch.float32)
                model.load_state_dict(given.state_dict())
        return torch.nn.ModuleDict(models)

    def save(self):
        parts = {
            name: getattr(self, name).state_dict() for name in ("models", "average", "optimizer")
        }
        save_whole(parts | {"progress": (self.step, self.seconds, self.curve)}, self.state)
        draw_curve(self.curve, self.args.work)

    def share_of_rate(self):
        """Warm-up over 200 steps, in the last quarter down to nothing."""
        left = 1 - self.step / self.args.steps
        return min((self.step + 1) / 200, 1.0, left / COOLDOWN)

    def train_step(self):
        torch.manual_seed(10_000 + self.step)  # resumed or not, a step has its own draws
        rows = torch.randint(len(self.latents), (self.args.batch,))
        words = torch.where(
            torch.rand(self.args.batch) < self.args.no_caption, len(self.latents), rows
        )
        ids, mask = self.ids[words], self.mask[words]
        if self.args.babble:
            ids, mask = babbled(ids, mask, self.args.babble, len(self.tokenizer))
        # on this CPU bfloat16 steps took 0.30 s with the math kernel, 0.36 s with the default one
        on_cpu = self.args.fast and self.device.type == "cpu"
        with (
            sdpa_kernel(SDPBackend.MATH) if on_cpu else contextlib.nullcontext(),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.args.fast),
        ):
            errors = flow_matching_loss(
                self.models["dit"], self.models["text_encoder"],
                self.latents[rows].float(), ids, mask, self.args, self.mine,
            )  # fmt: skip
        (self.weights * errors).mean().backward()
        told = torch.tensor([errors.mean().item(), len(self.stopped)], device=self.device)
        ranks.average([told, *(p.grad for p in self.models.parameters() if p.grad is not None)])
        torch.nn.utils.clip_grad_norm_(self.models.parameters(), 1.0)
        self.optimizer.step(self.share_of_rate())
        self.average.update_parameters(self.models)
        self.step += 1
        loss, stop = told.tolist()
        return loss, bool(stop)

    def run(self):
        """Gives whether all steps are done; False after a signal. The state is saved then too."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self.stopped.append(1))
        first = ranks.rank() == 0
        bar = tqdm(
            desc="training", unit="step", initial=self.step, total=self.args.steps,
            disable=None if first else True,
        )  # fmt: skip
        recent, since, saved, sampled = [], time.time(), time.time(), time.time()
        stop = False
        while self.step < self.args.steps and not stop:
            loss, stop = self.train_step()
            recent.append(loss)
            bar.update()
            self.seconds, since = self.seconds + time.time() - since, time.time()
            if self.step % 100 == 0:
                loss = sum(recent) / len(recent)
                self.curve.append((self.step, round(self.seconds), loss))
                bar.set_postfix(loss=f"{loss:.4f}")
                recent = []
            if first and time.time() - saved > 120:
                self.save()
                saved = time.time()
            if first and time.time() - sampled > 600:
                self.export(self.args.work / "checkpoint")
                draw_samples(self.args.work / "checkpoint", self.args.work / "samples.png")
                sampled = time.time()
        if first:
            self.save()
        return not stop

    def export(self, out):
        """Writes the official folder layout with the averaged weights, 16-bit on disk."""
        models = copy.deepcopy(self.average.module).cpu().half()
        models["dit"].save_pretrained(out / "dit")
        models["text_encoder"].save_pretrained(out / "text_encoder")
        for part in ("tokenizer", "vae"):
            shutil.copytree(self.args.work / part, out / part, dirs_exist_ok=True)
        FlowMatchEulerDiscreteScheduler(shift=SHIFT).save_pretrained(out / "scheduler")
        index = {
            "height": SIZE, "width": SIZE, "max_sequence_length": TEXT_LENGTH,
            "guidance_scale": 1.0,
        }  # fmt: skip
        (out / "model_index.json").write_text(json.dumps(index, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_recipe(parser.add_argument_group("the recipe").add_argument)
    parser.add_argument(
        "--autoencoder", choices=("linear", "wan"),
        help="wan: a small AutoencoderKLWan, trained first; it wants a GPU (default: linear)",
    )  # fmt: skip
    parser.add_argument("--autoencoder-minutes", type=float, help="for wan; by default 10")
    parser.add_argument(
        "--start", type=Path, metavar="FOLDER",
        help="a checkpoint that this script made: its autoencoder and tokenizer are kept and its "
        "weights trained further",
    )  # fmt: skip
    parser.add_argument("--clips", type=int, default=24000, help="training clips, drawn once")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--fast", action="store_true", help="torch.compile and bfloat16 where that is exact enough"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("nano/work"), help="state and cached latents"
    )
    parser.add_argument("--out", type=Path, default=Path("nano/checkpoint"))
    args = parser.parse_args()
    try:
        fill_shape(args)
        if args.width % HEAD:
            parser.error(f"--width {args.width}: must be a multiple of {HEAD}")
        if args.muon_lr is not None and not hasattr(torch.optim, "Muon"):
            parser.error(
                f"--muon-lr {args.muon_lr:g}: needs torch 2.9, this is {torch.__version__}"
            )
        if args.batch % ranks.count():
            parser.error(f"--batch {args.batch}: {ranks.count()} processes cannot share it evenly")
        trainer = Trainer(args)
    except backbones.CheckpointError as error:
        parser.error(f"--start: {error}")
    if trainer.run() and ranks.rank() == 0:
        trainer.export(args.out)
        draw_samples(args.out, args.work / "samples.png")


if __name__ == "__main__":
    main()
