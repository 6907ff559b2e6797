"""Makes `nano/checkpoint` from nothing: autoencoder, tokenizer, text encoder and DiT.

    python -m nano.pretrain --minutes 40     # the same command resumes; --device cuda on a GPU

It learns video continuation on the clips of `nano/scenes.py`, in the official sign: given clean
context latents (timestep 0) the DiT predicts latents - noise of the frames that follow. Everything
in between lies in `--work`; the finished checkpoint, with averaged weights, in `--out`.
"""

import argparse
import json
import math
import shutil
import time
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from nano import scenes
from nano.architecture import fit_autoencoder, new_dit, new_text_encoder, train_tokenizer

SIZE, FRAMES, TEXT_LENGTH = 64, 29, 64  # pixels on a side, frames of a training clip, tokens


def make_clips(seeds):
    clips, captions = zip(*(scenes.clip(seed, FRAMES, SIZE) for seed in seeds), strict=True)
    return torch.stack(clips).transpose(1, 2) * 2 - 1, list(captions)


def prepare(work, count):
    """Autoencoder, tokenizer, and the latents and captions of `count` training clips, once."""
    path = work / f"latents_{count}.pt"
    if not path.exists():
        torch.manual_seed(0)
        vae = fit_autoencoder(make_clips(range(600))[0])
        mean, std = (
            torch.tensor(vae.config[name]).view(1, -1, 1, 1, 1)
            for name in ("latents_mean", "latents_std")
        )
        latents, captions = [], []
        for start in tqdm(range(0, count, 50), desc="rendering clips", unit="batch"):
            clips, words = make_clips(range(start, start + 50))
            with torch.no_grad():
                latents.append((vae.encode(clips).latent_dist.mode() - mean) / std)
            captions += words
        tokenizer = train_tokenizer(captions)
        vae.save_pretrained(work / "vae")
        tokenizer.save_pretrained(work / "tokenizer")
        save_whole({"latents": torch.cat(latents).half(), "captions": captions}, path)
    return torch.load(path), PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")


def save_whole(content, path):
    torch.save(content, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def draw_sigma(batch, device):
    """Half logit-normal, half uniform: the middle matters most, the ends must not be forgotten."""
    normal = torch.sigmoid(torch.randn(batch, device=device))
    return torch.where(
        torch.rand(batch, device=device) < 0.5, normal, torch.rand(batch, device=device)
    ).clamp(0.001, 1)


def flow_matching_loss(dit, text_encoder, latents, ids, mask):
    """Mean squared error to latents - noise (official sign) on the frames after a random
    context."""
    context = int(torch.randint(1, 7, ()))
    sigma = draw_sigma(len(latents), latents.device)
    noise = torch.randn_like(latents)
    weight = sigma.view(-1, 1, 1, 1, 1)
    x = torch.cat(
        [latents[:, :, :context], ((1 - weight) * latents + weight * noise)[:, :, context:]], dim=2
    )
    timestep = (1000 * sigma)[:, None].repeat(1, latents.shape[2])
    timestep[:, :context] = 0
    text = text_encoder(ids, mask).last_hidden_state[:, None]
    out = dit(x, timestep, text, mask, num_cond_latents=context)
    return (out - (latents - noise))[:, :, context:].square().mean()


class Trainer:
    def __init__(self, args):
        self.args, self.device = args, torch.device(args.device)
        data, self.tokenizer = prepare(args.work, args.clips)
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
        self.models = torch.nn.ModuleDict(
            {"dit": new_dit(), "text_encoder": new_text_encoder(len(self.tokenizer))}
        ).to(self.device)
        self.average = torch.optim.swa_utils.AveragedModel(
            self.models, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.999)
        )
        self.optimizer = torch.optim.AdamW(
            self.models.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=0.01
        )
        self.step, self.seconds, self.curve = 0, 0.0, []
        self.state = args.work / "state.pt"
        if self.state.exists():
            saved = torch.load(self.state, map_location=self.device)
            for name in ("models", "average", "optimizer"):
                getattr(self, name).load_state_dict(saved[name])
            self.step, self.seconds, self.curve = saved["progress"]

    def save(self):
        parts = {
            name: getattr(self, name).state_dict() for name in ("models", "average", "optimizer")
        }
        save_whole(parts | {"progress": (self.step, self.seconds, self.curve)}, self.state)
        (self.args.work / "curve.json").write_text(json.dumps(self.curve))

    def learning_rate(self):
        """Warm-up over 200 steps, then a cosine over the time that was granted."""
        done = min(self.seconds / (60 * self.args.minutes), 1.0)
        return self.args.lr * min(
            (self.step + 1) / 200, 0.5 + 0.5 * math.cos(math.pi * done) + 1e-3
        )

    def train_step(self):
        torch.manual_seed(10_000 + self.step)  # resumed or not, a step has its own draws
        rows = torch.randint(len(self.latents), (self.args.batch,))
        words = torch.where(torch.rand(self.args.batch) < 0.1, len(self.latents), rows)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        loss = flow_matching_loss(
            self.models["dit"], self.models["text_encoder"],
            self.latents[rows].float(), self.ids[words], self.mask[words],
        )  # fmt: skip
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.models.parameters(), 1.0)
        self.optimizer.step()
        self.average.update_parameters(self.models)
        self.step += 1
        return loss.item()

    def run(self):
        bar = tqdm(desc="training", unit="step", initial=self.step)
        recent, since, saved = [], time.time(), time.time()
        while self.seconds < 60 * self.args.minutes:
            recent.append(self.train_step())
            bar.update()
            self.seconds, since = self.seconds + time.time() - since, time.time()
            if self.step % 100 == 0:
                loss = sum(recent) / len(recent)
                self.curve.append((self.step, round(self.seconds), loss))
                bar.set_postfix(loss=f"{loss:.4f}")
                recent = []
            if time.time() - saved > 120:
                self.save()
                saved = time.time()
        self.save()

    def export(self, out):
        """Writes the official folder layout with the averaged weights, as float32 safetensors."""
        models = self.average.module.cpu()
        models["dit"].save_pretrained(out / "dit")
        models["text_encoder"].save_pretrained(out / "text_encoder")
        for part in ("tokenizer", "vae"):
            shutil.copytree(self.args.work / part, out / part, dirs_exist_ok=True)
        FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(out / "scheduler")
        index = {
            "height": SIZE, "width": SIZE, "max_sequence_length": TEXT_LENGTH,
            "guidance_scale": 1.5,
        }  # fmt: skip
        (out / "model_index.json").write_text(json.dumps(index, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--minutes", type=float, default=40, help="training time in all, resumed runs included"
    )
    parser.add_argument("--clips", type=int, default=8000, help="training clips to render once")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--work", type=Path, default=Path("nano/work"), help="state and cached latents"
    )
    parser.add_argument("--out", type=Path, default=Path("nano/checkpoint"))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(args)
    trainer.run()
    trainer.export(args.out)


if __name__ == "__main__":
    main()
