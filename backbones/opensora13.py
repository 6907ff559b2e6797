"""Open-Sora v1.3: the released parts, side by side as in opensora13_configs.py, and continuation by
it.

The network predicts latents - noise at a time in 0..1000; outside of this file there are
velocities noise - latents and sigma in 0..1. A block is a pair: spatial block i, then temporal
block i, which share what modulates them; functions at a site meet the pair once, with twelve names
of its modulation.

What it continues is shown beside the noisy latents, as clean ones and a mask, and the null text is
read there; its places hold it with noise at the video's time. That noise is not the caller's: it is
drawn from a generator that the values of the noisy latents decide (of the initial noise in
`generate`), so that methods that see the same latents see the same noise there.

Training shows the first half of the latents (v2v_head), any number of them, or none. Latents know
all frames of their chunk: a context of one latent is encoded as a picture and one of whole chunks
knows nothing of what follows, but one that ends in a chunk, as in training, knows that chunk's
norms. The network's official path for clean frames at time 0 (x_mask) is not used for continuing;
`model.dit.repeats_final_norm` is its reference.
"""

import torch

from backbones import opensora13_configs as configs
from backbones import pixels, sites
from backbones.opensora13_autoencoder import load_autoencoder
from backbones.opensora13_dit import STDiT3
from backbones.opensora13_layers import LINEARS, NORMS, PAIR_MODULATION, STAYS
from backbones.opensora13_sampling import (
    SPACE_STRIDE,
    Guidance,
    branch_inputs,
    condition,
    sample,
    schedule,
    transform_time,
    velocity_of,
)
from backbones.parts import device_and_dtype, load_single, set_up
from backbones.pixels import vae_on_device
from backbones.sampling import generator_of, noise_beside, with_context
from backbones.text import DECODER, PromptEncoder
from devices import offload, parallel

GUIDANCE_SCALE = 7.5  # of the recipe
# read as float32, in a type of its own, or small
NOT_FLOAT8 = ("_embedder", "t_block", "final_layer", "norm")


class OpenSora13:
    """A Backbone (backbones/contract.py)."""

    sigma_min = 0.001
    linears, norms, modulation_parts = LINEARS, NORMS, PAIR_MODULATION
    prompt_folders = (configs.T5,)
    stays = STAYS  # of a block: read outside its forward
    guidance_scale = GUIDANCE_SCALE
    network_sign = -1

    def __init__(self, dit, vae, prompt_encoder, device, geometry):
        set_up(self, dit, vae, prompt_encoder, device, geometry)
        self.latent_channels = dit.config.in_channels

    @classmethod
    def from_folder(cls, folder, device="cpu", dtype=None, float8=False):
        """Loads OpenSora-STDiT-v4/, OpenSora-VAE-v1.3/ and google/t5-v1_1-xxl/ to the CPU."""
        device, dtype = device_and_dtype(device, dtype)
        stated, config = configs.check_opensora13(folder)
        model = cls(
            load_single(STDiT3, config, folder / configs.DIT / configs.WEIGHTS, dtype),
            load_autoencoder(folder / configs.VAE),
            PromptEncoder(folder, dtype, "T5EncoderModel", parts=2 * (configs.T5,), others=DECODER),
            device,
            configs.geometry(stated, config),
        )
        if float8:
            offload.store_float8(model.dit, dtype, NOT_FLOAT8)
        model.guidance_scale = stated.get("guidance_scale", GUIDANCE_SCALE)
        return model

    @property
    def prompt_settings(self):
        tokens = self.dit.config.model_max_length
        return self.prompt_encoder.dtype, self.device.type, tokens, "lower case"

    place, recompute = sites.place, sites.recompute
    tokens_per_latent = sites.tokens_per_latent

    # Pixels and text

    @torch.no_grad()
    def encode(self, frames):
        """frames (B, 3, F, H, W) in 0..1 -> normalised latents, float32, the posterior's mode.
        Raises ValueError where the autoencoder would drop frames."""
        return pixels.encoded(self, frames)

    @torch.no_grad()
    def decode(self, latents):
        """latents (B, C, T, h, w) -> frames (B, 3, F, H, W) in 0..1, float32."""
        with vae_on_device(self) as vae:
            return pixels.to_frames(vae.decode(latents, self.geometry.frames_of(latents.shape[2])))

    def embed_each(self, prompts):
        """Of each prompt {"embeds": (1, 1, L, width), "mask": (1, L)}, on the CPU; in lower case,
        which training had."""
        lower, tokens = [prompt.lower() for prompt in prompts], self.dit.config.model_max_length
        return self.prompt_encoder(lower, self.device, tokens)

    # Sites

    timestep_embedding, modulation = sites.timestep_embedding, sites.modulation
    block_output, predicted_velocity = sites.block_output, sites.predicted_velocity
    block_input = sites.block_input

    # Velocity and sampling

    context_cache = sites.context_cache

    def velocity(self, noisy_latents, sigma, cond_latents, text, cache=None):
        """Velocity noise - latents, float32, of noisy_latents (B, C, T, h, w) at sigma (B,), after
        cond_latents (1 or B, C, T_cond, h, w)."""
        batch, known = len(noisy_latents), cond_latents.shape[2]
        x, more = noisy_latents, {"y": text["embeds"].expand(batch, -1, -1, -1)}
        if known:
            cond_latents = cond_latents.expand(batch, -1, -1, -1, -1)
            noise = torch.cat([noise_beside(each, known) for each in noisy_latents.split(1)])
            x = with_context(cond_latents, noise, sigma, x)
            names = ("mask_index", "cond", "cond_mask")
            shown = condition("v2v_head", x.shape, cond_latents, known)
            more |= dict(zip(names, shown, strict=True))
            more["y_null"] = self.null_text.expand_as(more["y"])
        return self._predict(x, sigma, text["mask"], more, known)[:, :, known:]

    @property
    def null_text(self):
        """(L, width), which the network learned in place of a text."""
        return self.dit.y_embedder.y_embedding

    def _predict(self, x, sigma, mask, more, known):
        """noise - latents (B, C, T, h, w) of x; the site acts on all but the `known` first."""
        height, width = (torch.tensor([SPACE_STRIDE * side]) for side in x.shape[3:])
        fps = torch.tensor([self.geometry.fps], device=x.device)
        out = self.dit(x, 1000 * sigma, mask=mask, fps=fps, height=height, width=width, **more)
        velocity = velocity_of(out, x.shape[1], self.network_sign)
        return sites.at_velocity(self, velocity, known)

    @torch.no_grad()
    def before_head(self, noisy_latents, sigma, cond_latents, text):
        """What `head` takes, of the noisy latents, on the way to `velocity` of the same arguments:
        tokens (B, T, S, width) and embedding (B, 1, width)."""
        x, e = sites.last(self, noisy_latents, sigma, cond_latents, text)
        known, frames = cond_latents.shape[2], noisy_latents.shape[2]
        return x.unflatten(1, (known + frames, -1))[:, known:].clone(), e.clone()

    def head(self, x, e, noisy_latents, sigma):
        """Velocity of noisy_latents at sigma, of what `before_head` gave; no velocity site."""
        _, channels, _, *size = noisy_latents.shape
        return velocity_of(self.dit.head(x, e, size), channels, self.network_sign)

    @torch.no_grad()
    def generate(
        self,
        cond_latents,
        text,
        negative_text,
        noise,
        steps=30,
        guidance_scale=GUIDANCE_SCALE,
        guidance_img=configs.OPTIONS["guidance_img"],
        oscillation=True,
        temporal_scaling=True,
        sdedit=True,
    ):
        """Continues cond_latents (1, C, T_cond, h, w): denoises noise (1, C, T, h, w), returns it.

        Three branches in a batch are guided by the prompt (guidance_scale) and by the condition
        (guidance_img), two without a condition; with guidance_scale <= 1 there is one, and no
        guidance. A negative prompt without words is the null text, cut as the prompt is.
        oscillation: every other step from the tenth on is without. temporal_scaling: guidance_img
        grows along the latents, and less with every step. sdedit: at every step the places of the
        condition hold it with new noise at the step's time; otherwise they are denoised along.
        """
        known, noise = cond_latents.shape[2], noise.to(self.device, torch.float32)
        x = torch.cat([noise_beside(noise, known), noise], dim=2)
        cond_latents, generator = cond_latents.to(noise), generator_of(noise)
        mask, count, more = self._branches(x.shape, cond_latents, text, negative_text)
        if guidance_scale <= 1:
            mask, count = mask[:1], 1
            more = {k: v if k == "mask_index" else v[:1] for k, v in more.items()}

        def branches(latents, t):
            sigma = (t / 1000).to(noise).view(1)
            if sdedit and known:
                drawn = torch.randn(cond_latents.shape, generator=generator).to(noise)
                latents = with_context(cond_latents, drawn, sigma, latents[:, :, known:])
            batch = latents.expand(count, -1, -1, -1, -1)
            given = batch, sigma.expand(count), mask, more
            v = parallel.each_row(lambda *row: self._predict(*row, known), *given).split(1)
            return v if count > 1 else (3 if known else 2) * v

        guidance = Guidance(
            max(guidance_scale, 1.0), guidance_img, oscillation, oscillation, temporal_scaling,
            rescale=guidance_scale > 1,  # as officially, acts where there is no condition
        )  # fmt: skip
        return sample(branches, x, self._times(steps, x.shape[2:]), guidance)[:, :, known:]

    def _times(self, steps, shape):
        latents, *sides = shape
        size = (SPACE_STRIDE * side for side in sides)
        return transform_time(schedule(steps), *size, self.geometry.frames_of(latents))

    def sampling_sigmas(self, steps, shape, **others):
        """Those (S,) of `generate`'s evaluations."""
        return self._times(steps, shape)[:-1] / 1000

    def _branches(self, shape, cond_latents, text, negative_text):
        """Masks and other arguments of the branches for latents of `shape`, and their number."""
        negative = negative_text["embeds"], negative_text["mask"]
        shown = condition("v2v_head", shape, cond_latents, cond_latents.shape[2])
        more = branch_inputs(
            text["embeds"], text["mask"], self.null_text, *shown,
            negative=negative if negative[1].sum() > 1 else None,  # more than the end
        )  # fmt: skip
        mask = more.pop("mask")
        return mask, len(mask), more
