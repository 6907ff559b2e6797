"""LTX-Video (0.9.x): the parts of its checkpoint as diffusers saves them, and continuation by it.

Every place of its latents has a timestep of its own, so that a context at 0 is clean; from 0.9.5 on
it was trained with clips there, before that with first frames. Its network predicts noise -
latents. (diffusers' LTXConditionPipeline negates that, because its scheduler counts steps of places
with timesteps of their own downwards: the two signs cancel.)

`strength` and `image_cond_noise_scale` are that pipeline's: a context of less than full strength
starts as noisy as the rest is once it reaches the timestep 1000 (1 - strength), and is denoised
with it from there on; one of full strength may have noise that falls with sigma², its timestep
still 0. The pipeline has 0.15 of that by default, here there is none: context is clean.

Denoised along, it is part of what is predicted, and what acts on a velocity acts on it too.

From 0.9.1 on the decoder has a timestep and takes slightly noisy latents. That noise is the same
for all videos of a size, so that what two methods made is decoded alike.
"""

import itertools
import math

import torch
from diffusers import AutoencoderKLLTXVideo, FlowMatchEulerDiscreteScheduler

from backbones import per_frame, pixels, sites
from backbones.blocks import MODULATION
from backbones.ltx_configs import check_ltx, geometry
from backbones.ltx_dit import LINEARS, NORMS, LTXVideoTransformer3DModel
from backbones.ltx_sampling import held, schedule
from backbones.parts import device_and_dtype, load_part, load_weights, set_up
from backbones.pixels import vae_on_device
from backbones.text import PromptEncoder
from devices import offload, parallel

PROMPT_TOKENS, GUIDANCE_SCALE = 256, 3.0  # of LTXConditionPipeline
TEXT = ("embeds", "mask")
# read as float32, or small
NOT_FLOAT8 = ("proj_in", "time_embed", "caption_projection", "norm", "proj_out")


class LTX:
    """A Backbone (backbones/contract.py)."""

    sigma_min = 0.001
    linears, norms, modulation_parts = LINEARS, NORMS, MODULATION
    prompt_folders = ("text_encoder", "tokenizer")
    stays = "scale_shift_table"  # of a block: read outside its forward
    prompt_tokens, guidance_scale = PROMPT_TOKENS, GUIDANCE_SCALE
    network_sign = 1
    decode_timestep, decode_noise_scale = 0.05, 0.025  # of its authors' configurations

    def __init__(self, dit, vae, prompt_encoder, scheduler, device, geometry):
        set_up(self, dit, vae, prompt_encoder, device, geometry)
        self.scheduler = scheduler
        self.latent_channels = dit.config.out_channels
        # releases before 0.9.5, which know a first frame alone, count it as if it were eight
        first_alone = geometry.trained_contexts is None
        dit.places = geometry.k, geometry.size_multiple, geometry.fps, first_alone

    @classmethod
    def from_folder(cls, folder, device="cpu", dtype=None, float8=False):
        """Loads transformer/ vae/ text_encoder/ tokenizer/ scheduler/ to the CPU. model_index.json
        may say what differs from the release."""
        device, dtype = device_and_dtype(device, dtype)
        stated, *checked = check_ltx(folder)
        model = cls(
            load_weights(LTXVideoTransformer3DModel, folder / "transformer", dtype),
            load_weights(AutoencoderKLLTXVideo, folder / "vae", torch.float32),
            PromptEncoder(folder, dtype, "T5EncoderModel"),
            load_part(FlowMatchEulerDiscreteScheduler, folder / "scheduler"),
            device,
            geometry(stated, *checked),
        )
        if float8:
            offload.store_float8(model.dit, dtype, NOT_FLOAT8)
        model.prompt_tokens = stated.get("max_sequence_length", PROMPT_TOKENS)
        model.guidance_scale = stated.get("guidance_scale", GUIDANCE_SCALE)
        return model

    prompt_settings = property(sites.prompt_settings)
    place, recompute = sites.place, sites.recompute
    tokens_per_latent = sites.tokens_per_latent

    # Pixels and text

    @torch.no_grad()
    def encode(self, frames):
        """frames (B, 3, F, H, W) in 0..1 -> normalised latents (B, C, T, h, w), float32. Raises
        ValueError where the autoencoder would drop frames."""
        z = pixels.encoded(self, frames).latent_dist.mode()
        mean, std = moments(self.vae, z)
        return (z - mean) / std

    @torch.no_grad()
    def decode(self, latents):
        """latents (B, C, T, h, w) -> frames (B, 3, F, H, W) in 0..1, float32. Where the decoder has
        a timestep, with decode_noise_scale of noise."""
        on_gpu = [self.device] if self.device.type == "cuda" else []
        with vae_on_device(self) as vae, torch.random.fork_rng(on_gpu):
            torch.manual_seed(0)  # for the noise that 0.9.1's layers add
            mean, std = moments(vae, latents)
            z, timestep = latents.float() * std + mean, None
            if vae.config.timestep_conditioning:
                timestep = z.new_full((len(z),), self.decode_timestep)
                z = torch.lerp(z, decoding_noise(z), self.decode_noise_scale)
            return pixels.to_frames(vae.decode(z, timestep, return_dict=False)[0])

    embed_each = sites.embed_each

    @staticmethod
    def text_for_dit(text, batch):
        """Embeddings (batch, L, width) and mask (batch, L)."""
        return text["embeds"].squeeze(1).expand(batch, -1, -1), text["mask"].expand(batch, -1)

    # Sites

    timestep_embedding, modulation = sites.timestep_embedding, sites.modulation
    block_output, predicted_velocity = sites.block_output, sites.predicted_velocity
    block_input = sites.block_input

    # Velocity and sampling

    velocity, context_cache = per_frame.velocity, sites.context_cache
    before_head = per_frame.before_head

    def head(self, x, e, noisy_latents, sigma):
        """Velocity of noisy_latents at sigma, of what `before_head` gave; no velocity site."""
        return self.network_sign * self.dit.head(x, e, noisy_latents.shape[2:])

    @torch.no_grad()
    def generate(
        self,
        cond_latents,
        text,
        negative_text,
        noise,
        steps=50,
        guidance_scale=GUIDANCE_SCALE,
        strength=1.0,
        image_cond_noise_scale=0.0,
    ):
        """Continues cond_latents (1, C, T_cond, h, w): denoises noise (1, C, T, h, w), returns it.

        Both branches of the guidance are one batch; with guidance_scale <= 1 there is one branch.
        strength and image_cond_noise_scale are of the context, see the top of this file.
        """
        if guidance_scale > 1:
            text = {name: torch.cat([negative_text[name], text[name]]) for name in TEXT}
        latents, known = noise.to(self.device, torch.float32), cond_latents.shape[2]
        context_at = held(cond_latents, noise, strength, image_cond_noise_scale)
        sigmas = self._schedule(steps, (known + noise.shape[2], *noise.shape[3:]))
        level, denoised_along = 1 - strength, False
        for sigma, following in itertools.pairwise(sigmas):
            if not denoised_along:
                context = context_at(sigma)
                if sigma - 1e-6 < level:  # from now on of one timestep with the rest
                    latents, context = torch.cat([context, latents], dim=2), context[:, :, :0]
                    denoised_along = True
            v = self._branches(latents, sigma, context, text, level)
            v = v[:1] + guidance_scale * (v[1:] - v[:1]) if len(v) > 1 else v
            latents = latents + (following - sigma) * v
        return latents[:, :, -noise.shape[2] :]

    def _schedule(self, steps, shape):
        return schedule(self.scheduler, steps, math.prod(shape))

    def sampling_sigmas(self, steps, shape, **others):
        """Those (S,) of `generate`'s evaluations."""
        return self._schedule(steps, shape)[:-1]

    def _branches(self, latents, sigma, context, text, level):
        """Velocity of latents (1, C, T, h, w) for each row of text."""
        batch = len(text["mask"])
        given = latents.expand(batch, -1, -1, -1, -1), sigma.expand(batch).to(self.device)
        return parallel.each_row(
            lambda x, sigma, text: self.velocity(x, sigma, context, text, context_noise=level),
            *given, text,
        )  # fmt: skip


def moments(vae, z):
    """Mean and deviation of latents, (1, C, 1, 1, 1), where z is; they are among the weights."""
    return (m.view(1, -1, 1, 1, 1).to(z.device) for m in (vae.latents_mean, vae.latents_std))


def decoding_noise(z):
    """Of every video in z (B, C, T, h, w) the same, drawn on the CPU."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(z.shape[1:], generator=generator).to(z)
