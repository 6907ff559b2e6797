"""What every model here must offer, and all that the rest of the house may use of one.

Shape letters: B batch, C latent channels, T latents in time, h, w their height and width, N video
tokens; e.g. LongCat at 480x832: C 16, h 60, w 104. Pixels are frames (B, 3, F, H, W) in 0..1.
`sigma` is in 0..1, noisy = (1 - sigma) * latents + sigma * noise, and a velocity is canonical,
noise - latents, whatever sign, objective and time scale the network has. Latents, velocities and
modulation are float32. tests/test_contract.py runs every backbone through this.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch

Text = Mapping[str, torch.Tensor]  # what one prompt becomes, (1, ...) each; opaque to all others
Block = str | tuple[str, ...]  # the path of its module, or of those that run one after the other


class Geometry(Protocol):
    """What the files of a checkpoint say before any weight is read; see backbones.geometry."""

    class_name: str  # of the transformer
    stacks: tuple[tuple[Block, ...], ...]  # these four as the model has them, see Backbone
    depth: int
    embedding_width: int
    hidden_width: int
    size: tuple[int, int]  # native (height, width) of frames in pixels
    size_multiple: int  # of which height and width of frames are multiples
    fps: float  # frames a second that the model was trained at
    context_lengths: Sequence[int] | None  # latents that may precede the predicted; None: any.
    # (0,): a text-to-video model, which the scripts refuse
    trained_contexts: Sequence[int] | None  # those it was trained with; more are zero-shot
    context_alone: bool  # whether these are encoded apart, since latents depend on later frames
    window: Mapping[str, int]  # anchor, cond_frames, tta_frames, context_latents, gen_frames
    sampling: Mapping[str, bool | int | float | str]  # generate's own options, with defaults
    sampling_ranges: Mapping[str, tuple[float, float]]  # least and most of those that have such
    limits: Mapping[str, int]  # the most that flags may say, by name, e.g. {"sampling_steps": 1000}
    sizes: tuple[tuple[int, int], tuple[int, int]] | None  # least and most (height, width), if any

    def frames_of(self, latents: int) -> int:
        """Frames that so many latents decode to; 0 of 0, and never fewer of more: a number that an
        autoencoder in chunks cannot have counts as the next one that it can."""

    def latents_of(self, frames: int) -> int:
        """Latents that so many frames are encoded to. Raises ValueError, which names the nearest
        counts that fit, where some would be dropped."""

    def latents_covering(self, frames: int) -> int:
        """The fewest latents that decode to at least so many frames."""

    def latents_filled(self, frames: int) -> int:
        """The most latents that so many frames fill."""


class Backbone(Protocol):
    """A loaded model. Its weights are frozen, and at a site nothing acts until a function is
    registered there."""

    geometry: Geometry
    device: torch.device  # where it computes
    dit: torch.nn.Module  # the transformer: its parameters are what full tuning tunes
    vae: torch.nn.Module
    stacks: tuple[tuple[Block, ...], ...]  # the blocks in dit, in order, by kind of block
    depth: int  # blocks of all stacks
    embedding_width: int  # of the timestep embedding that blocks read
    hidden_width: int  # of tokens
    latent_channels: int  # C
    sigma_min: float  # the lowest sigma that is drawn
    guidance_scale: float  # what the checkpoint is sampled with where nothing is asked for
    linears: Mapping[str, tuple[str, ...]]  # linear layers in a block: kinds "attention", "ffn"
    norms: Mapping[str, tuple[str, ...]]  # affine norms in a block: kinds "cross", "qk"
    modulation_parts: tuple[str, ...]  # the names at the modulation site, in the network's order
    prompt_folders: tuple[str, ...]  # of the checkpoint, whose files embedded prompts depend on
    prompt_settings: tuple[Any, ...]  # and what else they depend on but versions of libraries
    network_sign: int  # by which the network's output is taken; set anew for parity alone

    @classmethod
    def from_folder(
        cls, folder: Path, device: str | torch.device, dtype: torch.dtype | None, float8: bool
    ) -> "Backbone":
        """The model of a checkpoint folder, its weights on the CPU until `place`. dtype: of dit and
        text encoder; None: bfloat16 on a GPU, float32 on a CPU. float8: the linear layers of dit
        are stored so. Raises backbones.CheckpointError."""

    # Where the weights are

    def place(self, plan: str) -> None:
        """What waits in host memory: plan is "none", the "vae" while it has nothing to do, or also
        the "blocks" of dit."""

    def recompute(self, blocks: int | None) -> None:
        """So many leading blocks are recomputed in backward; None: all. Numbers stay."""

    def tokens_per_latent(self, height: int, width: int) -> int:
        """Video tokens of one latent of frames of this size."""

    # Pixels and text

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        """(B, 3, F, H, W) -> normalised latents (B, C, T, h, w), the posterior's mode. ValueError
        where the autoencoder would drop frames."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, C, T, h, w) -> (B, 3, F, H, W), clamped to 0..1."""

    def embed_each(self, prompts: Sequence[str]) -> Iterator[Text]:
        """The Text of each prompt in turn, on the CPU. Loads the text encoder and lets it go."""

    # Velocity and sampling

    def velocity(
        self,
        noisy_latents: torch.Tensor,
        sigma: torch.Tensor,
        cond_latents: torch.Tensor,
        text: Text,
        cache: Any = None,
    ) -> torch.Tensor:
        """(B, C, T, h, w) of noisy latents of that shape at sigma (B,), that follow the clean
        cond_latents (1 or B, C, T_cond, h, w). cache: what context_cache gave for these."""

    def context_cache(self, cond_latents: torch.Tensor) -> Any:
        """What spares `velocity` reading the context again; None where a model has no such."""

    def before_head(
        self,
        noisy_latents: torch.Tensor,
        sigma: torch.Tensor,
        cond_latents: torch.Tensor,
        text: Text,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What `head` takes, on the way to the velocity: tokens (B, ..., hidden_width) of the noisy
        latents and the final layer's embedding (B, T, embedding_width). No graph."""

    def head(
        self,
        x: torch.Tensor,
        e: torch.Tensor,
        noisy_latents: torch.Tensor,
        sigma: torch.Tensor,
    ) -> torch.Tensor:
        """Velocity of these noisy latents at sigma, of what before_head gave for them; no function
        at a site acts."""

    def generate(
        self,
        cond_latents: torch.Tensor,
        text: Text,
        negative_text: Text,
        noise: torch.Tensor,
        steps: int,
        guidance_scale: float,
        **sampling: Any,
    ) -> torch.Tensor:
        """Latents (1, C, T, h, w) that follow cond_latents (1, C, T_cond, h, w), from noise of
        their shape. sampling: any of the geometry's options."""

    def sampling_sigmas(
        self, steps: int, shape: tuple[int, int, int], **sampling: Any
    ) -> torch.Tensor:
        """(S,), float32 on the CPU: the sigma at which `generate` with these steps and options asks
        for each velocity, in its order. shape: (T, h, w) of context and new latents together."""

    # Sites: a context manager each, in which the function acts, in training, recomputed blocks and
    # sampling alike, and after which it does not

    def block_input(self, function: Callable) -> AbstractContextManager:
        """function(i, x) -> x: the video tokens (B, N, hidden_width) that enter block i = 0: the
        rows of a batch are apart in all blocks, so that some may be something else than latents."""

    def timestep_embedding(self, function: Callable) -> AbstractContextManager:
        """function(i, e, sigma) -> e: the embedding (B, T, embedding_width) that block i is about
        to use, T may be 1; sigma (B, T), 0 on clean context. i = depth is the final layer."""

    def modulation(self, function: Callable) -> AbstractContextManager:
        """function(i, m) -> m: the modulation of block i by name, {"attn.shift": (B, T,
        hidden_width), ...} with the names of modulation_parts."""

    def block_output(self, function: Callable) -> AbstractContextManager:
        """function(i, x) -> x: the video tokens (B, N, hidden_width) that leave block i."""

    def predicted_velocity(self, function: Callable) -> AbstractContextManager:
        """function(v) -> v: the velocity (B, C, T, h, w) of each guidance branch, before
        guidance."""
