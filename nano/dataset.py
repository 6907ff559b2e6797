"""What the DiT is trained on, made once in the work folder: autoencoder, tokenizer, latents."""

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

SIZE, FRAMES = 64, 29  # pixels on a side, frames of a training clip
CHUNK = 50  # clips that are drawn at once
FITTED, TRAINED = 1000, 4000  # clips for the linear autoencoder and for Wan's


def prepare(args):
    """({"latents": (M, C, T, h, w) 16-bit, "captions"}, tokenizer) of args.clips training clips."""
    args.work.mkdir(parents=True, exist_ok=True)
    check_settings(args)
    path = args.work / "latents.pt"
    if not path.exists():
        torch.manual_seed(0)
        vae = backbones.load(args.start).vae if args.start else make_autoencoder(args)
        latents, captions = [], []
        for clips, words in draw(args.clips):
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
    """A work folder belongs to one set of clips, one autoencoder and one start."""
    asked = {
        "clips": args.clips,
        "autoencoder": args.autoencoder,
        "start": args.start and str(args.start),
    }
    path = args.work / "settings.json"
    if path.exists() and (found := json.loads(path.read_text())) != asked:
        raise SystemExit(f"--work {args.work}: holds a training with {found}, asked for {asked}")
    path.write_text(json.dumps(asked))


def make_autoencoder(args):
    if args.autoencoder == "linear":
        return fit_linear(torch.cat([clips for clips, _ in draw(min(FITTED, args.clips))]))
    clips = torch.cat([clips for clips, _ in draw(min(TRAINED, args.clips))])
    return train_wan(clips, args.autoencoder_minutes, args.device)


def draw(count):
    """Clips 0..count - 1 and their captions, CHUNK at a time, drawn by one process a core."""
    starts = range(0, count, CHUNK)
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        yield from tqdm(pool.map(make_clips, starts), "drawing clips", len(starts), unit="chunk")


def make_clips(start):
    """(CHUNK, 3, FRAMES, SIZE, SIZE) in -1..1 and the captions."""
    torch.set_num_threads(1)
    drawn = (scenes.clip(seed, FRAMES, SIZE) for seed in range(start, start + CHUNK))
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


def save_whole(content, path):
    torch.save(content, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)
