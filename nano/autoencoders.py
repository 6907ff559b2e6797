"""The nano checkpoint's autoencoder: linear, fitted in seconds, or a small AutoencoderKLWan trained
on a GPU."""

import time

import torch
from diffusers import AutoencoderKLWan
from scipy.optimize import linear_sum_assignment
from tqdm import tqdm

from backbones.linear_autoencoder import GROUP, LinearVideoAutoencoder, patches

WAN = {"base_dim": 32, "num_res_blocks": 1, "z_dim": 16}
WAN_FRAMES, WAN_BATCH = 9, 8


def principal_axes(x, count):
    """x (M, size) float64 -> mean (size,) and the `count` leading axes (count, size)."""
    mean = x.mean(0)
    values, vectors = torch.linalg.eigh((x - mean).T @ (x - mean))
    axes = vectors[:, values.argsort(descending=True)[:count]].T
    return mean, axes * axes.sum(1, keepdim=True).sign()


def in_the_order_of(axes, others):
    """axes, permuted and turned so that each lies as close to the other of its row as can be."""
    products = axes @ others.T
    rows, columns = linear_sum_assignment(-products.abs().numpy())
    order = torch.from_numpy(rows[columns.argsort()])
    return axes[order] * products[order].diagonal()[:, None].sign()


def fit_linear(clips, channels=16, temper=0.5):
    """clips (M, 3, 1 + 4k, H, W) in -1..1 -> LinearVideoAutoencoder, fitted in float64."""
    vae = LinearVideoAutoencoder(z_dim=channels)
    for kind, part in (("first", clips[:, :, :1]), ("group", clips[:, :, 1:])):
        x = patches(part).flatten(0, 3).double()
        mean, axes = principal_axes(x[torch.randperm(len(x))[:200_000]], channels)
        getattr(vae, f"{kind}_mean").data.copy_(mean)
        getattr(vae, f"{kind}_axes").data.copy_(axes)
    group = vae.group_axes.data.unflatten(1, (3, GROUP, -1)).mean(2).flatten(1)
    vae.first_axes.data.copy_(in_the_order_of(vae.first_axes.data, group))
    return normalise(vae, clips, temper)


def normalise(vae, clips, temper):
    """Writes latents_mean and latents_std into the config.

    Channels are divided by their standard deviation to the power `temper`: at 1 the many weak ones,
    which hold what cannot be predicted, would weigh as much as the picture. The mean variance is 1.
    """
    with torch.no_grad():
        parts = [vae.encode(x.to(vae.device)).latent_dist.mode() for x in clips.split(50)]
    z = torch.cat(parts).cpu()
    std = z.std((0, 2, 3, 4))
    scale = std**temper * (std ** (1 - temper)).square().mean().sqrt()
    vae.register_to_config(latents_mean=z.mean((0, 2, 3, 4)).tolist(), latents_std=scale.tolist())
    return vae


def train_wan(clips, minutes, device, temper=0.5):
    """clips (M, 3, 1 + 4k, H, W) in -1..1 -> AutoencoderKLWan, trained on pieces of them.

    The posterior is kept near a unit normal by a weak penalty, as in Wan's own recipe; what is
    minimised besides is the squared error, since PSNR is what is measured.
    """
    vae = AutoencoderKLWan(**WAN).to(device).train()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=5e-4, betas=(0.9, 0.99))
    started, bar = time.time(), tqdm(desc="autoencoder", unit="step")
    while (done := (time.time() - started) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 5e-4 * min(1, (bar.n + 1) / 100) * (1 - done)
        x = random_pieces(clips).to(device)
        posterior = vae.encode(x).latent_dist
        reconstruction = vae.decode(posterior.sample()).sample
        error = (reconstruction - x).square().mean()
        loss = error + 1e-5 * posterior.kl().mean() / posterior.mean[0].numel()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        bar.update()
        if bar.n % 50 == 0:
            bar.set_postfix(mse=f"{error.item():.5f}")
    return normalise(vae.eval(), clips[:500], temper).cpu()


def random_pieces(clips):
    """(WAN_BATCH, 3, WAN_FRAMES, H, W) out of clips, half of them mirrored."""
    rows = torch.randint(len(clips), (WAN_BATCH,))
    start = int(torch.randint(clips.shape[2] - WAN_FRAMES + 1, ()))
    x = clips[rows, :, start : start + WAN_FRAMES]
    return torch.where(torch.rand(WAN_BATCH, 1, 1, 1, 1) < 0.5, x.flip(4), x)
