"""LongCat-Video: the parts of its checkpoint, and the official video continuation.

Source of the formulas: meituan-longcat/LongCat-Video 6b3f4b8,
longcat_video/pipeline_longcat_video.py. Its DiT approximates latents - noise; everything here that
leaves the class is noise - latents.
"""

import functools
import itertools

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from backbones import lora as low_rank
from backbones import per_frame, pixels, sites
from backbones.blocks import MODULATION
from backbones.configs import check_checkpoint, geometry
from backbones.longcat_dit import LongCatVideoTransformer3DModel
from backbones.longcat_layers import LINEARS, NORMS
from backbones.parts import autoencoder_class, device_and_dtype, load_part, load_weights, set_up
from backbones.sampling import contexts, guide, schedule
from backbones.text import PromptEncoder
from devices import offload, parallel

PROMPT_TOKENS, GUIDANCE_SCALE = 512, 4.0  # of the release
TEXT = ("embeds", "mask")  # what a prompt becomes
NOT_FLOAT8 = ("embedder", "adaLN_modulation", "final_layer", "norm")  # read as float32, or small


def without_weights(folder):
    """The transformer of a checkpoint folder, its parameters without memory."""
    with torch.device("meta"):
        return LongCatVideoTransformer3DModel.from_config(check_checkpoint(folder)[2])


class LongCat:
    """A Backbone (backbones/contract.py)."""

    sigma_min = 0.001
    linears, norms, modulation_parts = LINEARS, NORMS, MODULATION
    prompt_folders = ("text_encoder", "tokenizer")
    stays = "adaLN_modulation"  # of a block: read outside its forward
    prompt_tokens, guidance_scale = PROMPT_TOKENS, GUIDANCE_SCALE
    network_sign = -1

    def __init__(self, dit, vae=None, prompt_encoder=None, scheduler=None, device=None):
        own = geometry({}, 8 * dit.config.patch_size[1], dit.config)
        set_up(self, dit, vae, prompt_encoder, device or dit.device, own)
        self.scheduler = scheduler or FlowMatchEulerDiscreteScheduler(shift=12.0)
        self.latent_channels = dit.config.out_channels

    @classmethod
    def from_folder(cls, folder, device="cpu", dtype=None, float8=False, lora=None):
        """Loads the official layout, dit/ vae/ text_encoder/ tokenizer/ scheduler/, to the CPU.
        model_index.json, if there is one, gives what differs from the release. lora: a file of
        backbones/lora.py, merged into dit."""
        device, dtype = device_and_dtype(device, dtype)
        stated, multiple, config = check_checkpoint(folder)
        model = cls(
            load_weights(LongCatVideoTransformer3DModel, folder / "dit", dtype),
            # float32: it is small, and bfloat16's rounding would show in every metric (on a GPU
            # cuDNN multiplies in TF32, eight times finer than that)
            load_weights(autoencoder_class(folder), folder / "vae", torch.float32),
            PromptEncoder(folder, dtype),
            load_part(FlowMatchEulerDiscreteScheduler, folder / "scheduler"),
            device,
        )
        if lora:
            low_rank.merge(lora, model.dit)
        if float8:
            offload.store_float8(model.dit, dtype, NOT_FLOAT8)
        model.geometry = geometry(stated, multiple, config)
        model.prompt_tokens = stated.get("max_sequence_length", PROMPT_TOKENS)
        model.guidance_scale = stated.get("guidance_scale", GUIDANCE_SCALE)
        return model

    prompt_settings = property(sites.prompt_settings)
    place, recompute = sites.place, sites.recompute
    tokens_per_latent = sites.tokens_per_latent

    # Pixels and text

    encode, decode = pixels.encode, pixels.decode
    embed_each = sites.embed_each

    # Sites

    timestep_embedding, modulation = sites.timestep_embedding, sites.modulation
    block_output, predicted_velocity = sites.block_output, sites.predicted_velocity
    block_input = sites.block_input

    # Velocity and sampling

    def _call(self, x, timestep, text, **more):
        embeds, mask = (text[name].expand(len(x), *text[name].shape[1:]) for name in TEXT)
        out = self.dit(x, timestep, embeds, mask, **more)
        velocity = self.network_sign * out
        for function in self.velocity_site:
            velocity = function(velocity)
        return velocity

    def velocity(self, noisy_latents, sigma, cond_latents, text, cache=None):
        """Velocity noise - latents, float32, of noisy_latents (B, C, T, h, w) at sigma (B,).

        cond_latents (1 or B, C, T_cond, h, w) are the clean frames before them; with the cache that
        `context_cache` gives for these they are not read again.
        """
        batch, context = len(noisy_latents), cond_latents.shape[2]
        if cache is not None:
            timestep = (1000 * sigma.to(noisy_latents))[:, None].repeat(1, noisy_latents.shape[2])
            given = {"num_cond_latents": context, "kv_cache_dict": cache}
            return self._call(noisy_latents, timestep, text, **given)
        cond_latents = cond_latents.expand(batch, -1, -1, -1, -1)
        x = torch.cat([cond_latents, noisy_latents], dim=2)
        timestep = (1000 * sigma.to(x))[:, None].repeat(1, x.shape[2])
        timestep[:, :context] = 0
        given = {"num_cond_latents": context, "noise_only": True}
        return self._call(x, timestep, text, **given)

    @torch.no_grad()
    def before_head(self, noisy_latents, sigma, cond_latents, text):
        """What `head` takes, of the noisy frames, on the way to `velocity` of the same arguments:
        tokens (B, T, S, hidden) and embedding (B, T, width)."""
        x, e = sites.last(self, noisy_latents, sigma, cond_latents, text)
        frames = noisy_latents.shape[2]
        return x.unflatten(1, (frames, -1)).clone(), e[:, -frames:].clone()

    head = per_frame.head

    @torch.no_grad()
    def generate(
        self,
        cond_latents,
        text,
        negative_text,
        noise,
        steps=50,
        guidance_scale=4.0,
        enhance_hf=True,
        distilled=False,
        context_noise=0.0,
        use_cache=True,
        on_step=None,
    ):
        """Continues cond_latents (1, C, T_cond, h, w): denoises noise (1, C, T, h, w), returns it.

        on_step(model_output_velocity, latents) is called after every step. With guidance_scale <= 1
        there is one branch. Without the cache the context is recomputed at every step; the
        guidance's scale then also sums over it, as officially. context_noise is the sigma of noise
        on the context, drawn once. distilled: by the schedule of the distilled weights, which has
        no enhance_hf.
        """
        if guidance_scale > 1:
            text = {name: torch.cat([negative_text[name], text[name]]) for name in TEXT}
        latents = noise.to(self.device, torch.float32)
        cond_latents = next(contexts(cond_latents, noise, context_noise))
        cache = self.context_cache(cond_latents, context_noise) if use_cache else None
        sigmas = self._schedule(steps, enhance_hf, distilled)
        for sigma, sigma_next in itertools.pairwise(sigmas.to(self.device)):
            x = latents if use_cache else torch.cat([cond_latents, latents], dim=2)
            v = self._branches(x, sigma, text, cond_latents.shape[2], cache, context_noise)
            v = guide(v, guidance_scale) if guidance_scale > 1 else v
            v = v[:, :, -latents.shape[2] :]
            latents = latents + (sigma_next - sigma) * v
            if on_step:
                on_step(v, latents)
        return latents

    def _schedule(self, steps, enhance_hf, distilled):
        return schedule(self.scheduler, steps, enhance_hf and not distilled, distilled)

    def sampling_sigmas(self, steps, shape, enhance_hf=True, distilled=False, **others):
        """Those (S,) of `generate`'s evaluations."""
        return self._schedule(steps, enhance_hf, distilled)[:-1]

    def _branches(self, x, sigma, text, context, cache, context_noise):
        """Velocity of x (1, C, T, h, w) for each row of text; without cache it holds context."""
        batch = len(text["mask"])
        timestep = (1000 * sigma).expand(batch, x.shape[2]).clone()
        if cache is None:
            timestep[:, :context] = 1000 * context_noise
        x = x.expand(batch, -1, -1, -1, -1)
        call = functools.partial(self._call, num_cond_latents=context, kv_cache_dict=cache)
        return parallel.each_row(call, x, timestep, text)

    @torch.no_grad()
    def context_cache(self, cond_latents, sigma=0.0):
        """Keys and values of the context, read at its own sigma and without text."""
        timestep = cond_latents.new_full((1, cond_latents.shape[2]), 1000 * sigma)
        return self.dit(cond_latents, timestep, None, return_kv=True, skip_crs_attn=True)[1]
