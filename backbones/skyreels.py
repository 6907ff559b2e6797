"""SkyReels-V2-DF: the parts of its checkpoint as diffusers saves them, and continuation by it.

Trained by diffusion forcing: every latent frame has a noise level of its own, so that a clean
context is what it knows. Its network predicts noise - latents. The sampler denoises all new latents
together, which its authors call synchronous.
"""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from backbones import per_frame, pixels, sites
from backbones.blocks import MODULATION
from backbones.configs import check_checkpoint, read_config
from backbones.parts import autoencoder_class, device_and_dtype, load_part, load_weights, set_up
from backbones.per_frame import denoise
from backbones.sampling import contexts
from backbones.skyreels_configs import SHIFT, SKYREELS, geometry
from backbones.skyreels_dit import SkyReelsV2Transformer3DModel
from backbones.text import PromptEncoder, padded
from backbones.wan_dit import LINEARS, NORMS
from devices import offload

PROMPT_TOKENS, GUIDANCE_SCALE = 512, 6.0  # of its authors' sampler
SCHEDULERS = {
    cls.__name__: cls for cls in (FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler)
}
# read as float32, or small
NOT_FLOAT8 = ("patch_embedding", "condition_embedder", "fps", "norm", "proj_out")


class SkyReels:
    """A Backbone (backbones/contract.py)."""

    sigma_min = 0.001
    linears, norms, modulation_parts = LINEARS, NORMS, MODULATION
    prompt_folders = ("text_encoder", "tokenizer")
    stays = "scale_shift_table"  # of a block: read outside its forward
    prompt_tokens, guidance_scale = PROMPT_TOKENS, GUIDANCE_SCALE
    network_sign = 1

    def __init__(self, dit, vae, prompt_encoder, scheduler, device, geometry):
        set_up(self, dit, vae, prompt_encoder, device, geometry)
        self.scheduler = scheduler
        self.latent_channels = dit.config.out_channels

    @classmethod
    def from_folder(cls, folder, device="cpu", dtype=None, float8=False):
        """Loads transformer/ vae/ text_encoder/ tokenizer/ scheduler/ to the CPU. model_index.json
        may say what differs from the release."""
        device, dtype = device_and_dtype(device, dtype)
        stated, multiple, config = check_checkpoint(folder, SKYREELS)
        sampler = read_config(folder / "scheduler" / "scheduler_config.json")["_class_name"]
        model = cls(
            load_weights(SkyReelsV2Transformer3DModel, folder / "transformer", dtype),
            load_weights(autoencoder_class(folder), folder / "vae", torch.float32),
            PromptEncoder(folder, dtype),
            load_part(SCHEDULERS[sampler], folder / "scheduler"),
            device,
            geometry(folder, stated, multiple, config),
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

    encode, decode = pixels.encode, pixels.decode
    embed_each = sites.embed_each

    # Sites

    timestep_embedding, modulation = sites.timestep_embedding, sites.modulation
    block_output, predicted_velocity = sites.block_output, sites.predicted_velocity
    block_input = sites.block_input

    # Velocity and sampling

    text_for_dit = staticmethod(padded)
    velocity, context_cache = per_frame.velocity, sites.context_cache
    before_head, head = per_frame.before_head, per_frame.head

    @torch.no_grad()
    def generate(
        self,
        cond_latents,
        text,
        negative_text,
        noise,
        steps=50,
        guidance_scale=GUIDANCE_SCALE,
        shift=SHIFT,
        context_noise=0.0,
    ):
        """Continues cond_latents (1, C, T_cond, h, w): denoises noise (1, C, T, h, w), returns it.

        With guidance_scale <= 1 there is one branch, otherwise one after the other, which takes
        half of the memory. shift moves the sigmas up. context_noise is the sigma of noise on the
        context, drawn anew for every step (its authors' addnoise_condition / 1000).
        """
        scheduler, sigmas = self._schedule(steps, shift)
        latents = noise.to(self.device, torch.float32)
        texts = [text] if guidance_scale <= 1 else [negative_text, text]
        noisy_contexts = contexts(cond_latents, noise, context_noise)
        given = scheduler, sigmas, latents, noisy_contexts, texts
        return denoise(self, *given, guidance_scale, context_noise)

    def sampling_sigmas(self, steps, shape, shift=SHIFT, **others):
        """Those (S,) of `generate`'s evaluations."""
        return self._schedule(steps, shift)[1].cpu()

    def _schedule(self, steps, shift):
        """A new scheduler of the checkpoint's kind, and so many sigmas from 1 on."""
        kind, config = type(self.scheduler), self.scheduler.config
        if kind is UniPCMultistepScheduler:
            scheduler = kind.from_config(config, flow_shift=shift)
            scheduler.set_timesteps(steps, device=self.device)
        else:
            scheduler = kind.from_config(config, shift=shift)
            sigmas = torch.linspace(1, 0.001, steps + 1)[:-1]  # as UniPC's before the shift
            scheduler.set_timesteps(sigmas=sigmas.tolist(), device=self.device)
        scheduler.set_begin_index(0)  # else looked up by a timestep, which several steps may share
        # not timesteps, which UniPC rounds down: sampling and adapting see one network
        return scheduler, scheduler.sigmas[:-1]
