"""What only a GPU can show: pytest -m gpu."""

import pytest
import torch
from toy import make_cogvideox, make_ltx, make_skyreels, make_wan

import backbones
from runs.identity import ROOT

pytestmark = pytest.mark.gpu


def nano(folder):
    return ROOT / "nano" / "checkpoint"


def cogvideox(folder):
    return make_cogvideox(folder, use_learned_positional_embeddings=False)  # of any size


@pytest.mark.parametrize("make", [nano, make_skyreels, make_wan, make_ltx, cogvideox])
def test_bfloat16_on_a_gpu_follows_float32_on_the_cpu(make, tmp_path):
    """Encoding, text, one velocity and a guided sample."""
    checkpoint, outcomes = make(tmp_path), []
    for device in ("cpu", "cuda"):
        model = backbones.load(checkpoint, device)
        generator = torch.Generator().manual_seed(0)
        frames = torch.rand(1, 3, 17, 64, 64, generator=generator)
        cond = model.encode(frames)
        noise = torch.randn(cond.shape, generator=generator)
        text, negative = (
            {name: part.to(device) for name, part in text.items()}
            for text in model.embed_each(["a red ball", ""])
        )
        sigma = torch.tensor([0.5], device=device)
        velocity = model.velocity(noise.to(device), sigma, cond, text)
        latents = model.generate(cond, text, negative, noise, steps=4)
        video = model.decode(torch.cat([cond, latents], dim=2))
        outcomes.append([x.cpu() for x in (cond, velocity, video)])
    for cpu, cuda, limit in zip(*outcomes, (1e-3, 0.05, 0.1), strict=True):
        assert cuda.dtype == torch.float32
        assert (cpu - cuda).square().mean().sqrt() < limit * cpu.std()
