"""What the DiT is trained on, made once in the work folder: autoencoder, tokenizer, latents."""

import functools
import json
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

import backbones
from nano import scenes
from nano.architecture import train_tokenizer
from nano.autoencoders import fit_linear, train_wan
from runs.results import save_whole

SIZE, FRAMES = 64, 29  # pixels on a side, frames of a training clip
CHUNK = 50  # clips that are drawn at once
FITTED, TRAINED = 1000, 4000  # clips for the linear autoencoder and for Wan's
FREE = ("steps", "work", "out", "device", "fast")  # what may differ when a training goes on


def prepare(args):
    """({"latents": (M, C, T, h, w) 16-bit, "captions"}, tokenizer) of args.clips training clips."""
    args.work.mkdir(parents=True, exist_ok=True)
    check_settings(args)
    path = args.work / "latents.pt"
    if not path.exists():
        torch.manual_seed(0)
        vae = backbones.load(args.start).vae if args.start else make_autoencoder(args)
        latents, captions = [], []
        for clips, words in draw(args.clips, args.pace):
            latents.append(encode(vae.to(args.device), clips))
            captions += words
        if args.start:
            for part in ("vae", "tokenizer"):
                shutil.copytree(args.start / part, args.work / part, dirs_exist_ok=True)
        else:
            vae.save_pretrained(args.work / "vae")
            train_tokenizer(captions).save_pretrained(args.work / "tokenizer")
        save_whole({"latents": torch.cat(latents), "captions": captions}, path)
    return torch.load(path), PreTrainedTokenizerFast.from_pretrained(args.work / "tokenizer")


def check_settings(args):
    """A work folder belongs to one recipe."""
    asked = {k: str(v) for k, v in vars(args).items() if k not in FREE}
    path = args.work / "settings.json"
    if not path.exists():
        path.write_text(json.dumps(asked, indent=1))
    elif (found := json.loads(path.read_text())) != asked:
        other = ", ".join(
            f"--{key.replace('_', '-')} {found.get(key)}, asked for {asked.get(key)}"
            for key in sorted(found.keys() | asked.keys())
            if found.get(key) != asked.get(key)
        )
        raise SystemExit(f"--work {args.work}: holds a training with {other}")


def make_autoencoder(args):
    if args.autoencoder == "linear":
        drawn = draw(min(FITTED, args.clips), args.pace)
        return fit_linear(torch.cat([x for x, _ in drawn]), args.channels, args.temper)
    clips = torch.cat([clips for clips, _ in draw(min(TRAINED, args.clips), args.pace)])
    return train_wan(clips, args.autoencoder_minutes, args.device, args.temper)


def draw(count, pace):
    """Clips 0..count - 1 and their captions, CHUNK at a time, drawn by one process a core."""
    starts = range(0, count, CHUNK)
    make = functools.partial(make_clips, pace)
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        yield from tqdm(pool.map(make, starts), "drawing clips", len(starts), unit="chunk")


def make_clips(pace, start):
    """(CHUNK, 3, FRAMES, SIZE, SIZE) in -1..1 and the captions."""
    torch.set_num_threads(1)
    seeds = range(start, start + CHUNK)
    drawn = (scenes.clip(seed, FRAMES, SIZE, pace=pace) for seed in seeds)
    clips, captions = zip(*drawn, strict=True)
    return torch.stack(clips).transpose(1, 2) * 2 - 1, captions


@torch.no_grad()
def encode(vae, clips):
    """clips (M, 3, F, H, W) -> normalised latents, 16-bit, on the CPU."""
    mean, std = (
        torch.tensor(vae.config[name]).view(1, -1, 1, 1, 1)
        for name in ("latents_mean", "latents_std")
    )
    return ((vae.encode(clips.to(vae.device)).latent_dist.mode().cpu() - mean) / std).half()
