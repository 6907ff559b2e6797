"""The autoencoder of Open-Sora v1.3: pixels to normalised latents and back.

Of its release (OpenSora-VAE-v1.3: config.json, model.safetensors) the public source was read, tag
v1.3 of hpcaitech/Open-Sora, and no file seen: layers, tensor names and keys are the source's, and
released weights were not tried. With the published sizes it has 259,163,811 parameters, counted
here; the source's README says 259M.

Frames are coded in chunks of 17, each of which begins with the last frame of the one before, so
that 16k + 1 frames become 5k latents. A chunk sees nothing of the others, but within it, through
its group norms, every latent depends on all frames. Where two decoded chunks meet, the frame that
both have is the mean of theirs. One frame alone is one latent.

The recipe samples the posterior and computes in bfloat16; here latents are its mean, and the type
is the weights'. The recipe's tiles of convolutions give the same numbers and are left out.
"""

import torch
from torch import nn

from backbones.opensora13_autoencoder_layers import Decoder, Encoder
from backbones.opensora13_configs import LATENT_CHANNELS, SIZES, WEIGHTS, check_autoencoder
from backbones.opensora13_sampling import CHUNK, SPACE_STRIDE, of_chunk
from backbones.parts import load_single

CHUNK_LATENTS = of_chunk(CHUNK)
# of each channel of videos' latents: "video" in opensora/models/vae_v1_3/constants.py
LATENTS_MEAN = (
    -0.1901695, -0.044800628, 0.020789705, 0.018653357, -0.011585569, 0.0010865575, 0.08378933,
    0.08902134, 0.009409455, 0.08086848, -0.07251628, 0.05052144, -0.020972481, -0.12230792,
    -0.0038623565, -0.023072388,
)  # fmt: skip
LATENTS_STD = (
    0.9490776, 0.9594118, 0.9444303, 0.91032845, 0.95935166, 0.84303516, 0.8888125, 0.9291137,
    0.97259414, 0.8917954, 0.8630854, 0.82798916, 0.91143, 0.7922845, 0.8991407, 0.9473514,
)  # fmt: skip


class OpenSora13Autoencoder(nn.Module):
    """encoder, decoder: what config.json has under these keys; of it only SIZES are read."""

    def __init__(self, encoder=SIZES, decoder=SIZES):
        super().__init__()
        self.encoder = Encoder(**{key: encoder[key] for key in SIZES})
        self.decoder = Decoder(**{key: decoder[key] for key in SIZES})

    @property
    def dtype(self):
        return self.encoder.conv_in.conv.weight.dtype

    def encode(self, video):
        """video (B, 3, F, H, W) in -1..1 -> normalised latents (B, 16, T, H / 8, W / 8), float32.
        Raises ValueError unless F is 1 or 16k + 1, and H and W are multiples of 8."""
        refuse_size(*video.shape[2:])
        video, step = video.to(self.dtype), CHUNK - 1
        starts = range(0, max(1, video.shape[2] - 1), step)
        moments = [self.encoder(video[:, :, i : i + CHUNK]) for i in starts]
        mean = torch.cat(moments, dim=2)[:, :LATENT_CHANNELS].float()
        return (mean - moment(LATENTS_MEAN, mean)) / moment(LATENTS_STD, mean)

    def decode(self, latents, num_frames=None):
        """latents (B, 16, T, h, w) -> video (B, 3, F, 8 h, 8 w), about -1..1, float32: all that T
        latents hold, or the first num_frames. Raises ValueError unless T is 1 or 5k, and for more
        frames than there are."""
        refuse_latents(latents.shape[2], num_frames)
        latents = latents.float()
        z = latents * moment(LATENTS_STD, latents) + moment(LATENTS_MEAN, latents)
        chunks = [self.decoder(each).float() for each in z.to(self.dtype).split(CHUNK_LATENTS, 2)]
        return joined(chunks)[:, :, :num_frames]


def joined(chunks):
    """One video of decoded chunks (B, 3, F, H, W)."""
    parts = chunks[:1]
    for chunk in chunks[1:]:
        seam = (parts[-1][:, :, -1:] + chunk[:, :, :1]) / 2
        parts[-1:] = [parts[-1][:, :, :-1], seam, chunk[:, :, 1:]]
    return torch.cat(parts, dim=2)


def moment(values, like):
    return torch.tensor(values, device=like.device).view(1, -1, 1, 1, 1)


def refuse_size(frames, height, width):
    step, whole_chunks = CHUNK - 1, (frames - 1) // (CHUNK - 1)
    if (frames - 1) % step:
        fit = [1 + step * k for k in (whole_chunks, whole_chunks + 1) if k >= 0]
        near = " or ".join(map(str, fit))
        raise ValueError(
            f"frames must number 1 or {step}k + 1, got {frames}: the last of them would fill no "
            f"chunk of {CHUNK}; try {near}"
        )
    if height % SPACE_STRIDE or width % SPACE_STRIDE:
        right = f"multiples of {SPACE_STRIDE}"
        raise ValueError(f"height and width must be {right}, got {height} and {width}")


def refuse_latents(latents, num_frames):
    if latents != 1 and (latents < 1 or latents % CHUNK_LATENTS):
        raise ValueError(f"latents must number 1 or {CHUNK_LATENTS}k, got {latents}")
    frames = 1 if latents == 1 else 1 + latents // CHUNK_LATENTS * (CHUNK - 1)
    if num_frames is not None and not 1 <= num_frames <= frames:
        raise ValueError(f"num_frames must be 1 to {frames} of {latents} latents, got {num_frames}")


def load_autoencoder(folder, dtype=torch.float32):
    """The autoencoder of a folder of the release's layout. Raises CheckpointError."""
    config = check_autoencoder(folder)
    return load_single(OpenSora13Autoencoder, config, folder / WEIGHTS, dtype)
