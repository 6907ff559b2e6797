"""Wan: the parts of its checkpoints as diffusers saves them, and continuation by 2.2 TI2V 5B.

Its network predicts noise - latents. TI2V 5B takes a timestep for each token and was trained with
one clean latent frame, an image; that it continues several is zero-shot. The others (2.1) have one
timestep for all, and are text-to-video models: their velocity without a context. All new latents
are denoised together.
"""

import itertools

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from backbones import per_frame, pixels, sites
from backbones.blocks import MODULATION
from backbones.configs import check_checkpoint, read_config
from backbones.parts import autoencoder_class, device_and_dtype, load_part, load_weights, set_up
from backbones.text import PromptEncoder, padded
from backbones.wan_configs import WAN, geometry
from backbones.wan_dit import LINEARS, NORMS, WanTransformer3DModel
from devices import offload

PROMPT_TOKENS, GUIDANCE_SCALE = 512, 5.0  # of diffusers' pipelines
SHIFT = {UniPCMultistepScheduler: "flow_shift", FlowMatchEulerDiscreteScheduler: "shift"}
SCHEDULERS = {cls.__name__: cls for cls in SHIFT}
# read as float32, or small
NOT_FLOAT8 = ("patch_embedding", "condition_embedder", "norm", "proj_out")


class Wan:
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
        says whether there is a timestep for each token (expand_timesteps)."""
        device, dtype = device_and_dtype(device, dtype)
        stated, multiple, config = check_checkpoint(folder, WAN)
        own = geometry(folder, stated, multiple, config)
        sampler = read_config(folder / "scheduler" / "scheduler_config.json")["_class_name"]
        model = cls(
            load_weights(WanTransformer3DModel, folder / "transformer", dtype),
            load_weights(autoencoder_class(folder), folder / "vae", torch.float32),
            PromptEncoder(folder, dtype),
            load_part(SCHEDULERS[sampler], folder / "scheduler"),
            device,
            own,
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
        shift=None,
        whole_timesteps=False,
    ):
        """Continues cond_latents (1, C, T_cond, h, w): denoises noise (1, C, T, h, w), returns it.

        With guidance_scale <= 1 there is one branch, otherwise one after the other, which takes
        half of the memory. shift moves the sigmas up, by default as the checkpoint's scheduler.
        whole_timesteps: UniPC's rounded down for the network, as in diffusers' pipelines; else
        sampling and adapting see one network.
        """
        scheduler, sigmas = self._schedule(steps, shift, whole_timesteps)
        texts = [text] if guidance_scale <= 1 else [negative_text, text]
        contexts = itertools.repeat(cond_latents)
        latents = noise.to(self.device, torch.float32)
        given = scheduler, sigmas, latents, contexts, texts
        return per_frame.denoise(self, *given, guidance_scale)

    def sampling_sigmas(self, steps, shape, shift=None, whole_timesteps=False):
        """Those (S,) of `generate`'s evaluations."""
        return self._schedule(steps, shift, whole_timesteps)[1].cpu()

    def _schedule(self, steps, shift, whole_timesteps):
        """A new scheduler of the checkpoint's kind, and so many sigmas from 1 on."""
        kind, shift = type(self.scheduler), shift or self.geometry.sampling["shift"]
        scheduler = kind.from_config(self.scheduler.config, **{SHIFT[kind]: shift})
        scheduler.set_timesteps(steps, device=self.device)
        scheduler.set_begin_index(0)  # else looked up by a timestep, which several steps may share
        sigmas = scheduler.timesteps / 1000 if whole_timesteps else scheduler.sigmas[:-1]
        return scheduler, sigmas
