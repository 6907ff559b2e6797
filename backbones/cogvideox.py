"""CogVideoX: the parts of a checkpoint as diffusers saves them, and continuation by it.

It is no flow-matching model but a diffusion with v-prediction and zero terminal SNR;
vprediction.py says how its x_t and v are this house's noisy latents and velocity. The draft's
script trained it by flow matching all the same, and gave 16 channels to the image-to-video model,
which takes 32: it could not run, and would have adapted to another process than the network's.

Image-to-video models (5b-I2V, 1.5-5B-I2V) are shown one latent, that of the first frame encoded
alone, as channels beside the noisy ones, and zeros after it. The noisy latents begin with that
latent too, and as in Open-Sora v2.0 it is denoised once more: its place needs noise of its own,
drawn by a generator that the values of the noisy latents decide. What the network says of it is no
part of a velocity. A text-to-video model (2b, 5b, 1.5-5B) is shown nothing: its velocity takes no
context, and the scripts refuse it. A token of 1.5 spans two latents; where their number is odd the
first is there twice, as in its training and pipeline.
"""

import math

import torch
from diffusers import AutoencoderKLCogVideoX

from backbones import pixels, sites, vprediction
from backbones.blocks import MODULATION
from backbones.cogvideox_configs import check_cogvideox, geometry
from backbones.cogvideox_dit import LINEARS, NORMS, CogVideoXTransformer3DModel
from backbones.cogvideox_sampling import SCHEDULERS, dynamic, stepper
from backbones.parts import device_and_dtype, load_part, load_weights, set_up
from backbones.pixels import vae_on_device
from backbones.sampling import generator_of, noise_beside, with_context
from backbones.text import PromptEncoder
from devices import offload, parallel

GUIDANCE_SCALE = 6.0  # of its authors' examples
# read as float32, or small
NOT_FLOAT8 = ("patch_embed", "time_embedding", "ofs_embedding", "norm", "proj_out")


class CogVideoX:
    """A Backbone (backbones/contract.py)."""

    linears, norms, modulation_parts = LINEARS, NORMS, MODULATION
    prompt_folders = ("text_encoder", "tokenizer")
    stays = "norm"  # of a block: read outside its forward
    guidance_scale = GUIDANCE_SCALE
    network_sign = 1

    def __init__(self, dit, vae, prompt_encoder, scheduler, device, geometry):
        set_up(self, dit, vae, prompt_encoder, device, geometry)
        self.scheduler = scheduler
        self.latent_channels = dit.config.out_channels
        self.prompt_tokens = dit.config.max_text_seq_length
        self.sigmas = vprediction.sigmas_of(scheduler.alphas_cumprod).to(self.device)
        self.sigma_min = self.sigmas[0].item()

    @classmethod
    def from_folder(cls, folder, device="cpu", dtype=None, float8=False):
        """Loads transformer/ vae/ text_encoder/ tokenizer/ scheduler/ to the CPU. model_index.json
        may say what differs from the release."""
        device, dtype = device_and_dtype(device, dtype)
        stated, config, schedule = check_cogvideox(folder)
        found = geometry(stated, config, schedule)
        model = cls(
            load_weights(CogVideoXTransformer3DModel, folder / "transformer", dtype),
            load_weights(AutoencoderKLCogVideoX, folder / "vae", torch.float32),
            PromptEncoder(folder, dtype, "T5EncoderModel", masked=False),
            load_part(SCHEDULERS[found.sampling["dpm"]], folder / "scheduler"),
            device,
            found,
        )
        if float8:
            offload.store_float8(model.dit, dtype, NOT_FLOAT8)
        model.guidance_scale = stated.get("guidance_scale", GUIDANCE_SCALE)
        return model

    prompt_settings = property(sites.prompt_settings)
    place, recompute = sites.place, sites.recompute

    def tokens_per_latent(self, height, width):
        """Video tokens of one latent of frames of this size."""
        return -(-sites.tokens_per_latent(self, height, width) // self.dit.patch[0])

    # Pixels and text

    @torch.no_grad()
    def encode(self, frames):
        """As pixels.encode, for an autoencoder with one factor for all channels."""
        z = pixels.encoded(self, frames).latent_dist.mode()
        return z * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents):
        """latents (B, C, T, h, w) -> frames (B, 3, 4 (T - 1) + 1, H, W) in 0..1, float32.

        The autoencoder decodes latents in pairs, after an odd one: an even number would become 4 T
        frames. There the last is given twice, and what it adds is cut off again.
        """
        z = latents.float() / self.vae.config.scaling_factor
        if latents.shape[2] % 2 == 0:
            z = torch.cat([z, z[:, :, -1:]], dim=2)
        with vae_on_device(self) as vae:
            x = vae.decode(z, return_dict=False)[0]
        return pixels.to_frames(x[:, :, : self.geometry.frames_of(latents.shape[2])])

    embed_each = sites.embed_each

    # Sites

    timestep_embedding, modulation = sites.timestep_embedding, sites.modulation
    block_output, predicted_velocity = sites.block_output, sites.predicted_velocity
    block_input = sites.block_input

    # Velocity and sampling

    context_cache = sites.context_cache

    def velocity(self, noisy_latents, sigma, cond_latents, text, cache=None):
        """Velocity noise - latents, float32, of noisy_latents (B, C, T, h, w) at sigma (B,), after
        cond_latents (1 or B, C, T_cond, h, w). ValueError where a text-to-video model is given a
        context, or one of 1.5 no multiple of its patch in time."""
        x, known = noisy_latents, cond_latents.shape[2]
        beside = self._beside(known, x.shape[2]) if known else 0
        cond_latents, sigma = cond_latents.expand(len(x), -1, -1, -1, -1), sigma.to(x.device)
        if beside:
            first = cond_latents[:, :, :1].expand(-1, -1, beside - known, -1, -1)
            clean = torch.cat([first, cond_latents], dim=2)
            noise = torch.cat([noise_beside(each, beside) for each in x.split(1)])
            x = with_context(clean, noise, sigma.to(x), x)
        x_t, shown = vprediction.scaled(x, sigma), self._shown(cond_latents, x.shape[2])
        return self._predict(x_t, sigma, shown, text, beside)[:, :, beside:]

    def _beside(self, known, new):
        """How many latents the network gets before the new ones: those known, and a copy of the
        first that fills up its patch in time."""
        patch = self.dit.patch[0]
        return known + -(known + new) % patch

    def _shown(self, cond_latents, count):
        """(B, C, count, h, w) beside the noisy latents, or without channels in a text-to-video
        model."""
        batch, channels, known, *size = cond_latents.shape
        if self.dit.config.in_channels == self.latent_channels:
            if known:
                raise ValueError(
                    f"this is a text-to-video model, of {channels} channels: it cannot be shown "
                    f"latents to continue, got {known}"
                )
            return cond_latents.new_zeros(batch, 0, count, *size)
        vae, shown = self.vae.config, cond_latents.new_zeros(batch, channels, count, *size)
        # 1.5 takes the image's latent divided by the factor, as its authors left it out
        scale = vae.scaling_factor**-2 if vae.invert_scale_latents else 1.0
        shown[:, :, :known] = scale * cond_latents
        return shown

    def _predict(self, x_t, sigma, shown, text, beside):
        """noise - latents (B, C, T, h, w) of x_t; the site acts on all but the `beside` first."""
        timestep = vprediction.timestep_of(sigma, self.sigmas)
        embeds = text["embeds"].squeeze(1).expand(len(x_t), -1, -1)
        v = self.network_sign * self.dit(torch.cat([x_t, shown], dim=1), timestep, sigma, embeds)
        velocity = vprediction.velocity_of(v, x_t, sigma)
        return sites.at_velocity(self, velocity, beside)

    @torch.no_grad()
    def before_head(self, noisy_latents, sigma, cond_latents, text):
        """What `head` takes, of the noisy latents, on the way to `velocity` of the same arguments:
        tokens (B, N, width) and embedding (B, 1, width)."""
        x, e = sites.last(self, noisy_latents, sigma, cond_latents, text)
        (_, _, count, height, width), (span, *sides) = noisy_latents.shape, self.dit.patch
        tokens = -(-count // span) * height * width // math.prod(sides)
        return x[:, -tokens:].clone(), e.clone()

    def head(self, x, e, noisy_latents, sigma):
        """Velocity of noisy_latents at sigma, of what `before_head` gave; no velocity site."""
        shape, (_, height, width) = noisy_latents.shape, self.dit.patch
        sides = shape[3] // height, shape[4] // width
        v = self.network_sign * self.dit.head(x, e, (x.shape[1] // math.prod(sides), *sides))
        x_t = vprediction.scaled(noisy_latents, sigma)
        return vprediction.velocity_of(v[:, :, -shape[2] :], x_t, sigma)

    @torch.no_grad()
    def generate(
        self,
        cond_latents,
        text,
        negative_text,
        noise,
        steps=50,
        guidance_scale=GUIDANCE_SCALE,
        dynamic_guidance=False,
        dpm=None,
    ):
        """Continues cond_latents (1, C, T_cond, h, w): denoises noise (1, C, T, h, w), returns it.

        As diffusers' pipelines; with guidance_scale <= 1 there is one branch. dpm: DPM-Solver++,
        whose noise the initial noise decides, in place of DDIM; None: the checkpoint's own.
        dynamic_guidance: the pipelines' use_dynamic_cfg.
        """
        noise, cond_latents = (x.to(self.device, torch.float32) for x in (noise, cond_latents))
        beside, guided = self._beside(cond_latents.shape[2], noise.shape[2]), guidance_scale > 1
        x_t = torch.cat([noise_beside(noise, beside), noise], dim=2) if beside else noise
        shown = self._shown(cond_latents, x_t.shape[2]).expand(1 + guided, -1, -1, -1, -1)
        if guided:
            text = {name: torch.cat([negative_text[name], text[name]]) for name in text}
        step, timesteps = self._stepper(steps, dpm, generator_of(noise))
        for t in timesteps:
            sigma = self.sigmas[t].view(1)
            scale = dynamic(guidance_scale, t, steps) if dynamic_guidance else guidance_scale
            given = x_t.expand(1 + guided, -1, -1, -1, -1), sigma.expand(1 + guided)
            v = parallel.each_row(lambda *row: self._predict(*row, beside), *given, shown, text)
            v = v[:1] + scale * (v[1:] - v[:1]) if guided else v
            x_t = step(vprediction.v_of(v, x_t, sigma), t, x_t)
        return x_t[:, :, beside:]

    def _stepper(self, steps, dpm, generator=None):
        kind = type(self.scheduler) if dpm is None else SCHEDULERS[dpm]
        return stepper(kind, self.scheduler.config, steps, generator)

    def sampling_sigmas(self, steps, shape, dpm=None, **others):
        """Those (S,) of `generate`'s timesteps."""
        return self.sigmas[self._stepper(steps, dpm)[1]].float().cpu()
