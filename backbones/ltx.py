"""LTX-Video (0.9.x): the parts of its checkpoint as diffusers saves them, and continuation by it.

Every place of its latents has a timestep of its own, so that a context at 0 is clean; from 0.9.5 on
it was trained with clips there, before that with first frames. Its network predicts noise -
latents. (diffusers' LTXConditionPipeline negates that, because its scheduler counts steps of places
with timesteps of their own downwards: the two signs cancel.)

`strength` and `image_cond_noise_scale` are that pipeline's: a context of less than full strength
starts as noisy as the rest is once it reaches the timestep 1000 (1 - strength), and is denoised
with it from there on; one of full strength may have noise that falls with sigma², its timestep
still 0. The pipeline has 0.15 of that by default, here there is none: context is clean.

From 0.9.1 on the decoder has a timestep and takes slightly noisy latents. That noise is the same
for all videos of a size, so that what two methods made is decoded alike.
"""

import itertools

import torch
from diffusers import AutoencoderKLLTXVideo, FlowMatchEulerDiscreteScheduler

from backbones import per_frame, sites
from backbones.blocks import MODULATION
from backbones.ltx_configs import check_ltx, geometry
from backbones.ltx_dit import LINEARS, NORMS, LTXVideoTransformer3DModel
from backbones.ltx_sampling import held, schedule
from backbones.parts import load_part, load_weights, place_weights
from backbones.pixels import vae_on_device
from backbones.text import PromptEncoder
from devices import offload

PROMPT_TOKENS, GUIDANCE_SCALE = 256, 3.0  # of LTXConditionPipeline
TEXT = ("embeds", "mask")
STAYS = "scale_shift_table"  # of a block: read outside its forward
# read as float32, or small
NOT_FLOAT8 = ("proj_in", "time_embed", "caption_projection", "norm", "proj_out")


class LTX:
    """A Backbone (backbones/contract.py)."""

    sigma_min = 0.001
    linears, norms, modulation_parts = LINEARS, NORMS, MODULATION
    prompt_folders = ("text_encoder", "tokenizer")
    decode_timestep, decode_noise_scale = 0.05, 0.025  # of its authors' configurations

    def __init__(self, dit, vae, prompt_encoder, scheduler, device, geometry):
        self.dit, self.vae, self.prompt_encoder = dit, vae, prompt_encoder
        self.scheduler, self.device, self.geometry = scheduler, torch.device(device), geometry
        self.prompt_tokens, self.guidance_scale = PROMPT_TOKENS, GUIDANCE_SCALE
        self.network_sign = 1
        self.stacks, self.depth = geometry.stacks, geometry.depth
        self.hidden_width, self.embedding_width = geometry.hidden_width, geometry.embedding_width
        self.latent_channels = dit.config.out_channels
        dit.places = geometry.k, geometry.size_multiple, geometry.fps
        self.velocity_site = []
        self.placed = None
        for module in (dit, vae):
            if module is not None:
                module.requires_grad_(False).eval()

    @classmethod
    def from_folder(cls, folder, device="cpu", dtype=None, float8=False):
        """Loads transformer/ vae/ text_encoder/ tokenizer/ scheduler/ to the CPU. model_index.json
        may say what differs from the release."""
        device = torch.device(device)
        dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
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
            model.dit.has_weight_hooks = True
        model.prompt_tokens = stated.get("max_sequence_length", PROMPT_TOKENS)
        model.guidance_scale = stated.get("guidance_scale", GUIDANCE_SCALE)
        return model

    @property
    def prompt_settings(self):
        return self.prompt_encoder.dtype, self.device.type, self.prompt_tokens

    def place(self, plan):
        """The "vae" visits the device only while it works; "blocks" are streamed from host."""
        place_weights(self, plan, STAYS)

    recompute, tokens_per_latent = sites.recompute, sites.tokens_per_latent

    # Pixels and text

    @torch.no_grad()
    def encode(self, frames):
        """frames (B, 3, F, H, W) in 0..1 -> normalised latents (B, C, T, h, w), float32. Raises
        ValueError where the autoencoder would drop frames."""
        self.geometry.latents_of(frames.shape[2])  # or ValueError
        with vae_on_device(self) as vae:
            z = vae.encode(frames.to(self.device, torch.float32) * 2 - 1).latent_dist.mode()
            mean, std = moments(vae)
        return (z - mean) / std

    @torch.no_grad()
    def decode(self, latents):
        """latents (B, C, T, h, w) -> frames (B, 3, F, H, W) in 0..1, float32. Where the decoder has
        a timestep, with decode_noise_scale of noise."""
        on_gpu = [self.device] if self.device.type == "cuda" else []
        with vae_on_device(self) as vae, torch.random.fork_rng(on_gpu):
            torch.manual_seed(0)  # for the noise that 0.9.1's layers add
            mean, std = moments(vae)
            z, timestep = latents.float() * std + mean, None
            if vae.config.timestep_conditioning:
                timestep = z.new_full((len(z),), self.decode_timestep)
                z = torch.lerp(z, decoding_noise(z), self.decode_noise_scale)
            x = vae.decode(z, timestep, return_dict=False)[0]
        return (x / 2 + 0.5).clamp(0, 1)

    def embed_each(self, prompts):
        """Of each prompt {"embeds": (1, 1, L, width), "mask": (1, L)}, on the CPU."""
        return self.prompt_encoder(prompts, self.device, self.prompt_tokens)

    @staticmethod
    def text_for_dit(text, batch):
        """Embeddings (batch, L, width) and mask (batch, L)."""
        return text["embeds"].squeeze(1).expand(batch, -1, -1), text["mask"].expand(batch, -1)

    # Sites

    timestep_embedding, modulation = sites.timestep_embedding, sites.modulation
    block_output, predicted_velocity = sites.block_output, sites.predicted_velocity
    block_input = sites.block_input

    # Velocity and sampling

    velocity, context_cache = per_frame.velocity, per_frame.context_cache
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
        places = noise[0, 0, 0].numel() * (known + noise.shape[2])
        level, denoised_along = 1 - strength, False
        for sigma, following in itertools.pairwise(schedule(self.scheduler, steps, places)):
            if not denoised_along:
                context = context_at(sigma)
                if sigma - 1e-6 < level:  # from now on of one timestep with the rest
                    latents, context = torch.cat([context, latents], dim=2), context[:, :, :0]
                    denoised_along = True
            v = self._branches(latents, sigma, context, text, level)
            v = v[:1] + guidance_scale * (v[1:] - v[:1]) if len(v) > 1 else v
            latents = latents + (following - sigma) * v
        return latents[:, :, -noise.shape[2] :]

    def _branches(self, latents, sigma, context, text, level):
        """Velocity of latents (1, C, T, h, w) for each row of text."""
        batch = len(text["mask"])
        given = latents.expand(batch, -1, -1, -1, -1), sigma.expand(batch).to(self.device), context
        return self.velocity(*given, text, context_noise=level)


def moments(vae):
    """Mean and deviation of latents, (1, C, 1, 1, 1); they are among the weights."""
    return (each.view(1, -1, 1, 1, 1) for each in (vae.latents_mean, vae.latents_std))


def decoding_noise(z):
    """Of every video in z (B, C, T, h, w) the same, drawn on the CPU."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(z.shape[1:], generator=generator).to(z)
