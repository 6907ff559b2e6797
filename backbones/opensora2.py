"""Open-Sora v2.0: the released folder, and continuation by it.

Its latents are presented packed: (B, 64, T, h / 2, w / 2) of the autoencoder's (B, 16, T, h, w), a
channel for each place of a 2x2 patch, so that a channel is one of the network's outputs. The
network predicts noise - latents.

What it continues is shown beside the noisy latents, as a mask and clean ones; it has one time for
the whole video, and denoises what is shown once more. So the context's places need noise of their
own, which a caller of this house does not give. It is drawn from a generator that the values of
the noisy latents decide (of the initial noise in `generate`), so that methods that see the same
latents see the same noise there; what the network says of those places is no part of a velocity.
`generate` denoises them along, as the official sampler does. That puts the shown latents of an
"i2v" kind into the sample at the end; here whoever decodes puts the context before it.

Shown are the first latents alone: none (t2v), one (i2v_head), 9 (v2v_head) or 17 (v2v_head_easy).
The published training recipe has no v2v kind.
"""

import contextlib

import torch
from diffusers import AutoencoderKLHunyuanVideo

from backbones import opensora2_configs as configs
from backbones import opensora2_latents as packed
from backbones import sites
from backbones.opensora2_dit import MMDiT
from backbones.opensora2_layers import NORMS, SINGLE_MODULATION, STAYS, linears
from backbones.opensora2_sampling import (
    SIGMA_FLOOR,
    Guidance,
    condition,
    sample,
    schedule,
    shift_of,
    token_ids,
)
from backbones.opensora2_text import PromptEncoders
from backbones.parts import device_and_dtype, load_single, set_up
from backbones.sampling import noise_beside, with_context
from devices import offload, parallel

PROMPT_TOKENS, GUIDANCE_SCALE = 512, 7.5  # of the recipe
NOT_FLOAT8 = ("_in$", "_mod$", "modulation", "final_layer", "norm")  # read as float32, or small


class OpenSora2:
    """A Backbone (backbones/contract.py)."""

    sigma_min, norms = SIGMA_FLOOR, NORMS
    modulation_parts = SINGLE_MODULATION  # which both kinds of blocks have
    prompt_folders = (configs.T5, configs.CLIP)
    stays = STAYS  # of a block: read outside its forward
    guidance_scale = GUIDANCE_SCALE
    network_sign = 1

    def __init__(self, dit, vae, prompt_encoder, device, geometry):
        set_up(self, dit, vae, prompt_encoder, device, geometry)
        self.latent_channels = dit.config.in_channels
        self.linears = linears(dit.config.fused_qkv)
        self._shown = None

    @classmethod
    def from_folder(cls, folder, device="cpu", dtype=None, float8=False):
        """Loads the official layout to the CPU: Open_Sora_v2.safetensors, hunyuan_vae.safetensors,
        google/t5-v1_1-xxl/ and openai/clip-vit-large-patch14/."""
        device, dtype = device_and_dtype(device, dtype)
        stated, config, vae_config = configs.check_opensora2(folder)
        vae_file = folder / configs.VAE
        vae = load_single(AutoencoderKLHunyuanVideo, vae_config, vae_file, torch.float32)
        # in one piece; diffusers would cut 17 frames into tiles, the recipe sides over 256 pixels
        vae.use_framewise_encoding = vae.use_framewise_decoding = False
        model = cls(
            load_single(MMDiT, config, folder / configs.DIT, dtype),
            vae,
            PromptEncoders(folder, dtype, stated.get("max_sequence_length", PROMPT_TOKENS)),
            device,
            configs.geometry(stated, config),
        )
        if float8:
            offload.store_float8(model.dit, dtype, NOT_FLOAT8)
        model.guidance_scale = stated.get("guidance_scale", GUIDANCE_SCALE)
        return model

    @property
    def prompt_settings(self):
        return self.prompt_encoder.dtype, self.device.type, self.prompt_encoder.tokens

    place, recompute = sites.place, sites.recompute
    tokens_per_latent = sites.tokens_per_latent

    # Pixels and text

    encode, decode = packed.encode, packed.decode

    def embed_each(self, prompts):
        """Of each prompt {"embeds": (1, L, width), "pooled": (1, width)}, on the CPU."""
        return self.prompt_encoder(prompts, self.device)

    # Sites

    block_input, block_output = sites.block_input, sites.block_output
    timestep_embedding = sites.timestep_embedding
    predicted_velocity = sites.predicted_velocity

    def modulation(self, function):
        """function(i, m): the attention's modulation of block i, {"attn.shift": (B, 1, width)}. In
        a double block that of the video; its MLP's and the text's are not shown."""

        def of_attention(i, m):
            return m | function(i, {name: m[name] for name in self.modulation_parts})

        return sites.modulation(self, of_attention)

    # Velocity and sampling

    context_cache = sites.context_cache

    @contextlib.contextmanager
    def condition(self, kind, latents):
        """In it `velocity` shows, in place of the context, what that kind of condition shows of
        `latents` (1, C, T, h, w). "everything" is the draft's adaptation, which shows the answer:
        for parity and its study, never for results."""
        self._shown = kind, latents
        try:
            yield
        finally:
            self._shown = None

    def velocity(self, noisy_latents, sigma, cond_latents, text, cache=None):
        """Velocity noise - latents, float32, of noisy_latents (B, C, T, h, w) at sigma (B,), after
        cond_latents (1 or B, C, T_cond, h, w)."""
        batch, known = len(noisy_latents), cond_latents.shape[2]
        x = noisy_latents
        if known:
            cond_latents = cond_latents.expand(batch, -1, -1, -1, -1)
            noise = torch.cat([noise_beside(each, known) for each in noisy_latents.split(1)])
            x = with_context(cond_latents, noise, sigma, x)
        return self._predict(x, sigma, self._condition(x, cond_latents), text, known)[:, :, known:]

    def _condition(self, x, cond_latents):
        """The network's, for x (B, C, T, h, w), which begins with the context."""
        if self._shown:
            kind, latents = self._shown
            mask, reference = condition(kind, x.shape, latents, latents)
        else:
            mask, reference = packed.context_alone(x, cond_latents)
        return packed.condition_of(mask, reference, self.dit.config.patch_size)

    def _predict(self, x, sigma, shown, text, known):
        """noise - latents (B, C, T, h, w) of x; the site acts on all but the `known` first."""
        batch, embeds = len(x), text["embeds"]
        out = self.dit(
            img=packed.tokens(x),
            img_ids=token_ids(x.shape, 1, x.device),  # a patch is one place here
            txt=embeds.expand(batch, -1, -1),
            txt_ids=torch.zeros(1, embeds.shape[1], 3, device=x.device),
            timesteps=sigma,
            y_vec=text["pooled"].expand(batch, -1),
            cond=packed.tokens(shown),
        )
        velocity = self.network_sign * packed.latents(out, x.shape)
        return sites.at_velocity(self, velocity, known)

    @torch.no_grad()
    def before_head(self, noisy_latents, sigma, cond_latents, text):
        """What `head` takes, of the noisy latents, on the way to `velocity` of the same arguments:
        tokens (B, N, width) and embedding (B, 1, width)."""
        x, e = sites.last(self, noisy_latents, sigma, cond_latents, text)
        return x[:, -noisy_latents[0, 0].numel() :].clone(), e.clone()

    def head(self, x, e, noisy_latents, sigma):
        """Velocity of noisy_latents at sigma, of what `before_head` gave; no velocity site."""
        return self.network_sign * packed.latents(self.dit.head(x, e), noisy_latents.shape)

    @torch.no_grad()
    def generate(
        self,
        cond_latents,
        text,
        negative_text,
        noise,
        steps=50,
        guidance_scale=GUIDANCE_SCALE,
        guidance_img=configs.GUIDANCE_IMG,
        oscillation=True,
        temporal_scaling=True,
        bf16_time=False,
    ):
        """Continues cond_latents (1, C, T_cond, h, w): denoises noise (1, C, T, h, w), returns it.

        Three branches, one after the other, are guided by the prompt (guidance_scale) and by the
        condition (guidance_img); with guidance_scale <= 1 there is one branch and no guidance.
        oscillation: every other step from the tenth on is without. temporal_scaling: guidance_img
        grows along the latents, where one is shown. bf16_time rounds the network's time to
        bfloat16, as the official sampler does.
        """
        known, noise = cond_latents.shape[2], noise.to(self.device, torch.float32)
        start = torch.cat([noise_beside(noise, known), noise], dim=2)
        shown = self._condition(start, cond_latents.to(noise))
        calls = [(shown, text), (shown, negative_text), (torch.zeros_like(shown), negative_text)]

        def branches(latents, t):
            time = t.view(1).to(self.device, torch.bfloat16 if bf16_time else torch.float32)
            given = calls if guidance_scale > 1 else calls[:1]
            v = parallel.each(lambda call: self._predict(latents, time, *call, known), given)
            return torch.cat(v if len(v) > 1 else 3 * v)

        scale = max(guidance_scale, 1.0)
        guidance = Guidance(
            scale, guidance_img, oscillation, oscillation, temporal_scaling and known == 1
        )
        times = self._times(steps, start.shape[2:])
        return sample(branches, start, times, guidance)[:, :, known:]

    def _times(self, steps, shape):
        latents, height, width = shape
        return schedule(steps, shift_of(height * width, latents))

    def sampling_sigmas(self, steps, shape, bf16_time=False, **others):
        """Those (S,) that the network is told in `generate`."""
        times = self._times(steps, shape)[:-1]
        return times.bfloat16().float() if bf16_time else times
