"""Makes `nano/vjepa` from nothing: a tiny V-JEPA 2 encoder, and the predictor of its features.

    python -m nano.train_vjepa     # minutes on one core

The encoder learns to fill in patches of frames of `nano/action_clips.py`; frozen, its features are
what the predictor learns, as the original does: by teacher forcing, then with a short rollout too.
What is in between lies in `--work`. Interrupted, the same command goes on, with the same result.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import VJEPA2Config, VJEPA2Model

from nano.action_clips import SIZE, clip
from predictors import ActionConditionedPredictor
from predictors.encoder import as_tubelets, encode, load_encoder
from predictors.rollout import normalise, training_losses
from runs.results import save_whole

PATCH, TOKENS, WIDTH, CHUNK = 8, 16, 32, 500
ENCODER = VJEPA2Config(
    patch_size=PATCH, crop_size=SIZE, frames_per_clip=2, hidden_size=WIDTH, num_hidden_layers=2,
    num_attention_heads=2, pred_hidden_size=12, pred_num_hidden_layers=1,
    pred_num_attention_heads=1, pred_num_mask_tokens=1, num_pooler_layers=1,
)  # fmt: skip
PREDICTOR = {
    "img_size": [SIZE, SIZE], "patch_size": PATCH, "embed_dim": WIDTH, "predictor_embed_dim": 64,
    "depth": 4, "num_heads": 4, "action_embed_dim": 2,
}  # fmt: skip
BATCH, SAVE_EVERY, ROLLOUT_FROM = 16, 250, 0.6  # of the steps


def train_encoder(steps, count):
    """Fills in a quarter of the patches from the rest, through normalised features: a linear head
    reads every patch's pixels from the features of that patch."""
    torch.manual_seed(0)
    encoder, head = VJEPA2Model(ENCODER), torch.nn.Linear(WIDTH, 3 * PATCH**2)
    optimizer = torch.optim.AdamW([*encoder.encoder.parameters(), *head.parameters()], fused=True)
    frames = torch.cat([clip(seed)[0] for seed in range(count)])
    for step in tqdm(range(steps), "encoder", unit="step"):
        set_rate(optimizer, 2e-3, step, steps)
        x = as_tubelets(encoder, frames[torch.randint(len(frames), (64,))])
        shown = (torch.rand(64, 1, 1, *[SIZE // PATCH] * 2) > 0.25).float()
        shown = shown.repeat_interleave(PATCH, 3).repeat_interleave(PATCH, 4)
        found = encoder(pixel_values_videos=x * shown, skip_predictor=True).last_hidden_state
        pixels = F.unfold(x[:, 0], PATCH, stride=PATCH).transpose(1, 2)
        update(optimizer, (head(normalise(found)) - pixels).square().mean())
    return encoder


def set_rate(optimizer, rate, step, steps):
    """A warm-up over 50 steps; down to zero over the second half."""
    for group in optimizer.param_groups:
        group["lr"] = rate * min(1, (step + 1) / 50, 2 * (1 - step / steps))


def update(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()


def draw(encoder, count):
    """features (count, T + 1, N, D) and actions (count, T, 2) of the clips 0..count - 1."""
    features, actions = [], []
    for start in tqdm(range(0, count, CHUNK), "drawing clips", unit="chunk"):
        drawn = [clip(seed) for seed in range(start, min(start + CHUNK, count))]
        pictures, given = map(torch.stack, zip(*drawn, strict=True))
        features.append(encode(encoder, pictures.flatten(0, 1)).unflatten(0, pictures.shape[:2]))
        actions.append(given)
    return torch.cat(features), torch.cat(actions)


def first_predictor():
    """Before training it repeats the frame it sees: so narrow a network learns that late itself."""
    torch.manual_seed(1)
    predictor = ActionConditionedPredictor(**PREDICTOR)
    for name, weight in predictor.named_parameters():
        if name.endswith(("qkv.weight", "fc1.weight", "fc2.weight", "attn.proj.weight")):
            last = 1.0 if name.endswith(("qkv.weight", "fc1.weight")) else 0.3
            torch.nn.init.normal_(weight, std=last * weight.shape[1] ** -0.5)
    wide = PREDICTOR["predictor_embed_dim"]
    basis = torch.linalg.qr(torch.randn(wide, WIDTH))[0]
    with torch.no_grad():
        predictor.predictor_embed.weight.copy_(basis * (wide / WIDTH) ** 0.5)
        predictor.predictor_proj.weight.copy_(basis.T)
        predictor.action_encoder.weight.normal_()
    return predictor


def train_predictor(features, actions, steps, state):
    predictor = first_predictor()
    optimizer = torch.optim.AdamW(predictor.parameters(), weight_decay=0.02, fused=True)
    first = 0
    if state.exists():
        weights, moments, first = torch.load(state)
        predictor.load_state_dict(weights)
        optimizer.load_state_dict(moments)
    bar = tqdm(range(first, steps), "predictor", steps, initial=first, unit="step")
    for step in bar:
        torch.manual_seed(10_000 + step)  # resumed or not, a step has its own draws
        set_rate(optimizer, 3e-3, step, steps)
        rows = torch.randint(len(features), (BATCH,))
        late, states = step >= ROLLOUT_FROM * steps, torch.zeros_like(actions[rows])
        losses = training_losses(
            predictor, features[rows], actions[rows], states, auto_steps=3 if late else 1
        )
        update(optimizer, losses["jloss"] + late * losses["sloss"])
        if (step + 1) % SAVE_EVERY == 0:
            bar.set_postfix(loss=f"{losses['jloss'].item():.4f}")
            saved = predictor.state_dict(), optimizer.state_dict(), step + 1
            save_whole(saved, state)
    return predictor


def same_settings(args):
    """A work folder belongs to one training."""
    asked = {name: getattr(args, name) for name in ("steps", "encoder_steps", "clips")}
    path = args.work / "settings.json"
    if path.exists() and (found := json.loads(path.read_text())) != asked:
        raise SystemExit(f"--work {args.work}: holds a training with {found}, asked for {asked}")
    path.write_text(json.dumps(asked))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=3500, help="of the predictor")
    parser.add_argument("--encoder-steps", type=int, default=600)
    parser.add_argument("--clips", type=int, default=6000, help="for training, drawn once")
    parser.add_argument("--work", type=Path, default=Path("nano/work/vjepa"))
    parser.add_argument("--out", type=Path, default=Path("nano/vjepa"))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    same_settings(args)
    encoder = args.work / "encoder"
    if not ((args.work / "features.pt").exists() and encoder.is_dir()):
        train_encoder(args.encoder_steps, min(args.clips, 2000)).save_pretrained(encoder)
        save_whole(draw(load_encoder(encoder), args.clips), args.work / "features.pt")
    features, actions = torch.load(args.work / "features.pt")
    predictor = train_predictor(features, actions, args.steps, args.work / "state.pt")
    shutil.copytree(encoder, args.out / "encoder", dirs_exist_ok=True)
    save_file(predictor.state_dict(), args.out / "weights.safetensors")
    (args.out / "config.json").write_text(json.dumps(PREDICTOR, indent=1) + "\n")


if __name__ == "__main__":
    main()
