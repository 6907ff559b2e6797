"""How the nano checkpoint is trained."""

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

import backbones
from backbones.configs import read_config

SHIFT = 3.0  # of the schedule, as in the sampler
SHAPE = {"width": 128, "depth": 12, "patch": 2, "channels": 16}  # where no flag says otherwise


AUTOENCODER = {"autoencoder": "linear", "autoencoder_minutes": 10, "temper": 0.5}  # the same


def add_recipe(add):
    add("--steps", type=int, default=20000, help="in all, resumed runs included")
    add("--lr", type=float, default=1e-3, help="of AdamW")
    add("--muon-lr", type=float, help="of Muon, which then has the matrices of the blocks")
    add("--batch", type=int, default=16)
    add("--width", type=int, help="of the DiT, a multiple of 32")
    add("--depth", type=int)
    add("--patch", type=int, choices=(1, 2), help="latents on a side of a token")
    add("--channels", type=int, help="of the linear autoencoder")
    add(
        "--temper", type=float,
        help="1: channels of unit variance; 0: as they are; by default 0.5",
    )  # fmt: skip
    add("--damp", type=float, default=0.0, help="1: squared errors count as in pixels")
    add("--context-noise", type=float, default=0.0, help="largest sigma of the context")
    add("--no-context", type=float, default=0.0, help="share of steps without context")
    add("--no-caption", type=float, default=0.1, help="share of clips without their caption")
    add(
        "--babble",
        type=float,
        default=0.0,
        help="share of captions with random tokens, up to a random length",
    )
    add("--pace", type=float, default=1.0, help="of the motion in the clips")


def fill_shape(args):
    """Puts the shape of --start, or SHAPE, where no flag says one, and AUTOENCODER. Raises
    CheckpointError where a flag says another than --start has."""
    for name, value in (shape_of(args.start) if args.start else SHAPE).items():
        asked = getattr(args, name)
        if args.start and asked not in (None, value):
            raise backbones.CheckpointError(
                f"{args.start} has --{name} {value}, got --{name} {asked}; leave it out"
            )
        setattr(args, name, value if asked is None else asked)
    for name, value in AUTOENCODER.items():
        asked = getattr(args, name)
        if args.start and asked is not None:
            flag = f"--{name.replace('_', '-')} {asked}"
            raise backbones.CheckpointError(f"{args.start} keeps its autoencoder: without {flag}")
        setattr(args, name, value if asked is None else asked)


def shape_of(folder):
    """Of a checkpoint that nano.pretrain made, as SHAPE. Raises CheckpointError."""
    kind = backbones.geometry(folder).class_name
    if kind != "LongCatVideoTransformer3DModel":
        raise backbones.CheckpointError(f"{folder} is a {kind}; give one that nano.pretrain made")
    config = read_config(folder / "dit" / "config.json")
    names = zip(SHAPE, ("hidden_size", "depth", "patch_size", "in_channels"), strict=True)
    return {name: config[key] for name, key in names} | {"patch": config["patch_size"][1]}


def average(averages, values, count):
    """Into the averages of the weights: exponential, over at most the last thousand steps."""
    get_ema_multi_avg_fn(min(0.999, (1 + count) / (10 + count)))(averages, values, count)


def babbled(ids, mask, share, vocabulary):
    """Token ids and mask (B, L), a share of them with random tokens up to a random length: behind
    their own or, for half of these, in their place. So words that no caption has say nothing."""
    draw = torch.rand(len(ids), 1)
    own = mask.bool() & (draw >= share / 2).to(mask.device)
    length = torch.randint(1, ids.shape[1] + 1, (len(ids), 1))
    more = ((torch.arange(ids.shape[1]) < length) & (draw < share)).to(mask.device) & ~own
    noise = torch.randint(2, vocabulary, ids.shape).to(ids)  # below 2: padding and the end
    return torch.where(more, noise, ids * own), (own | more).to(mask)


def draw_sigma(batch, device):
    """Half logit-normal, half uniform with the sampler's shift: where the noise is strong the
    motion is decided."""
    normal = torch.sigmoid(torch.randn(batch, device=device))
    uniform = torch.rand(batch, device=device)
    shifted = SHIFT * uniform / (1 + (SHIFT - 1) * uniform)
    half = torch.rand(batch, device=device) < 0.5
    return torch.where(half, normal, shifted).clamp(0.001, 1)


def flow_matching_loss(dit, text_encoder, latents, ids, mask, args, mine=slice(None)):
    """Squared errors (C,) to latents - noise (official sign) on the frames after a random context,
    which has noise of its own up to sigma args.context_noise, and is left out at times. mine: the
    clips that this process has of what is drawn for all."""
    context = int(torch.randint(1, 7, ())) if torch.rand(()) >= args.no_context else 0
    sigma = draw_sigma(len(latents), latents.device)[:, None].repeat(1, latents.shape[2])
    sigma[:, :context] = args.context_noise * torch.rand(len(latents), 1)
    noise, weight = torch.randn_like(latents), sigma[:, None, :, None, None]
    x, target = (1 - weight) * latents + weight * noise, latents - noise
    x, target, sigma, ids, mask = (each[mine] for each in (x, target, sigma, ids, mask))
    text = text_encoder(ids, mask).last_hidden_state[:, None]
    out = dit(x, 1000 * sigma, text, mask, num_cond_latents=context)
    return (out - target)[:, :, context:].square().mean((0, 2, 3, 4))


class Optimizers:
    """AdamW, with muon_lr torch's Muon for the matrices of the blocks, as one optimiser."""

    def __init__(self, models, lr, muon_lr=None):
        muon = muon_lr is not None
        blocks = models["dit"].blocks.parameters() if muon else ()
        matrices = [p for p in blocks if p.ndim == 2]
        known = set(matrices)
        rest = [p for p in models.parameters() if p not in known]
        self.parts = [torch.optim.AdamW(rest, lr, betas=(0.9, 0.99), weight_decay=0.01)]
        if muon:
            # updates as large as AdamW's of that rate
            options = {"weight_decay": 0.01, "adjust_lr_fn": "match_rms_adamw"}
            self.parts.append(torch.optim.Muon(matrices, muon_lr, **options))
        self.rates = [lr, muon_lr]

    def step(self, share):
        """An update at that share of the rates."""
        for part, rate in zip(self.parts, self.rates, strict=False):
            for group in part.param_groups:
                group["lr"] = rate * share
            part.step()
            part.zero_grad()

    def state_dict(self):
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states):
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)
