"""What only a GPU can show: pytest -m gpu."""

import importlib
import json
import shutil

import pytest
import torch
from test_run import demo_rows, results, write_manifest
from test_scripts import SCRIPTS
from toy import make_cogvideox, make_ltx, make_skyreels, make_wan

import backbones
import lora_tta
from runs.identity import ROOT

pytestmark = pytest.mark.gpu


def nano(folder):
    return ROOT / "nano" / "checkpoint"


def cogvideox(folder):
    return make_cogvideox(folder, use_learned_positional_embeddings=False)  # of any size


@pytest.mark.parametrize("make", [nano, make_skyreels, make_wan, make_ltx, cogvideox])
def test_bfloat16_on_a_gpu_follows_float32_on_the_cpu(make, tmp_path):
    """Encoding, whose convolutions cuDNN multiplies in TF32, text, one velocity and a guided
    sample."""
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
    for cpu, cuda, limit in zip(*outcomes, (3e-3, 0.05, 0.1), strict=True):
        assert cuda.dtype == torch.float32
        assert (cpu - cuda).square().mean().sqrt() < limit * cpu.std()


def answers(checkpoint, plan):
    """A velocity, and what the loss of one has for a gradient by the embedding's change of every
    block, with all blocks recomputed; on the CPU. And the model."""
    model = backbones.load(checkpoint, "cuda", torch.float32, place=plan)
    model.recompute(None)
    generator = torch.Generator().manual_seed(0)
    cond = model.encode(torch.rand(1, 3, 17, 64, 64, generator=generator))
    noise = torch.randn(cond.shape, generator=generator).to("cuda")
    (text,) = ({k: part.to("cuda") for k, part in text.items()} for text in model.embed_each(["x"]))
    change = torch.zeros(model.embedding_width, device="cuda", requires_grad=True)
    with model.timestep_embedding(lambda i, e, sigma: e + change):
        velocity = model.velocity(noise, torch.tensor([0.5], device="cuda"), cond, text)
        velocity.square().mean().backward()
    return velocity.detach().cpu(), change.grad.cpu(), model


@pytest.mark.parametrize("make", [make_wan, make_skyreels, make_ltx])
def test_streamed_blocks_of_a_transformer_with_weights_of_its_own(make, tmp_path):
    """Beside its layers, scale_shift_table for instance, which have to be on the GPU too."""
    checkpoint = make(tmp_path)
    *expected, _ = answers(checkpoint, "none")
    *found, model = answers(checkpoint, "blocks")
    own = [*model.dit.parameters(recurse=False)]
    assert own and all(p.device.type == "cuda" for p in own)
    assert any(p.device.type == "cpu" for p in model.dit.parameters())
    for one, other in zip(expected, found, strict=True):
        assert one.abs().max() > 0 and (one - other).abs().max() <= 1e-5 * one.abs().max()


WAYS = (
    "--checkpointing all", "--checkpointing none", "--offload vae", "--offload blocks", "--compile",
    "--weights fp8", "--weights fp32",
)  # fmt: skip
LIMITS = {"--weights fp8": 0.1, "--weights fp32": 1e-3}
MEASURED = ("losses", "fixed_loss_before", "fixed_loss_after", "future_loss_before", "future_loss")


@pytest.mark.parametrize(
    ("name", "flags"), [(name, "") for name in SCRIPTS] + [("adasteer", flags) for flags in WAYS]
)
def test_a_run_on_a_gpu_follows_that_on_the_cpu(name, flags, script, tmp_path):
    """To the rounding of bfloat16, or what else the weights are in."""
    module, limit, found = importlib.import_module(name), LIMITS.get(flags, 0.05), []
    for device, more in (("cpu", []), ("cuda", flags.split())):
        out = tmp_path / device
        given = ["--limit", 2, "--sampling-steps", 2, "--device", device, *more, "--out", out]
        assert script(module, *given) == 0
        found.append([{k: r[k] for k in MEASURED} for r in results(out).values()])
    for cpu, cuda in zip(*found, strict=True):
        for measure, value in cpu.items():
            assert cuda[measure] == pytest.approx(value, rel=limit), measure


def test_memory_does_not_grow_from_video_to_video(script, tmp_path):
    """What is generated for one video is decoded and scored beside the next."""
    rows, peaks = [], []
    for i, (path, caption) in enumerate(5 * demo_rows()):
        shutil.copy(path, tmp_path / f"{i:02}.mp4")
        rows.append((f"{i:02}.mp4", caption))
    manifest = write_manifest(tmp_path / "videos.csv", rows)
    flags = ["--videos", manifest, "--steps", 2, "--sampling-steps", 2, "--device", "cuda"]
    assert script(lora_tta, *flags, "--out", tmp_path / "run") == 0
    for path in sorted((tmp_path / "run" / "videos").glob("*.json")):
        record = json.loads(path.read_text())
        peaks.append([v for k, v in record.items() if k.endswith("_peak_memory_gb")])
    assert len(peaks) == 20
    for early, late in zip(peaks[1], peaks[-1], strict=True):  # the first chooses kernels
        assert late <= 1.02 * early
