"""Peak memory of each stage of SkyReels-V2-DF-1.3B, predicted: the released configuration is run on
tensors of a shape and no content, and each counts while it is alive. What kernels take for
themselves is not in it. On a GPU it is also measured, with random weights, and timed.

    python -m benchmarks.skyreels_memory
    python -m benchmarks.skyreels_memory --device cuda
"""

import argparse
import contextlib
import weakref

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from backbones.frames import EveryK
from backbones.skyreels import SkyReels
from backbones.skyreels_configs import FPS, NAME, WINDOW, widths
from backbones.skyreels_dit import SkyReelsV2Transformer3DModel
from benchmarks.timing import seconds
from common.loading import pick_device
from common.loss import Problem, flow_matching_loss
from common.values import frame_size
from devices.placement import release
from devices.placement import size as weight_bytes

RELEASED = {
    "num_attention_heads": 12, "attention_head_dim": 128, "text_dim": 4096, "freq_dim": 256,
    "ffn_dim": 8960, "num_layers": 30, "inject_sample_info": True,
}  # fmt: skip
SMALL = {"num_attention_heads": 2, "attention_head_dim": 24, "text_dim": 32, "num_layers": 4}
SMALL_VAE = {"base_dim": 8, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
PROMPT_TOKENS = 512


class Alive(TorchDispatchMode):
    """most: bytes of the weights of `modules` and of all tensors, where there were most at once."""

    def __init__(self, *modules):
        super().__init__()
        self.now = self.most = 0
        self.storages = {}
        for module in modules:
            self._count(module.parameters())

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self._count(x for x in tree_leaves(out) if isinstance(x, torch.Tensor))
        return out

    def _count(self, tensors):
        for storage in (tensor.untyped_storage() for tensor in tensors):
            key, size = storage._cdata, storage.nbytes()
            if key not in self.storages:
                gone = weakref.finalize(storage, self._forget, key, size)
                gone.atexit = False
                self.storages[key] = gone
                self.now += size
                self.most = max(self.most, self.now)

    def _forget(self, key, size):
        self.now -= size
        self.storages.pop(key, None)


def random_skyreels(device, size, small=False):
    """The backbone with random weights; no text encoder, which is gone before a clip is read."""
    config = RELEASED | (SMALL if small else {})
    with torch.device("meta"):
        dit = SkyReelsV2Transformer3DModel(**config)
        vae = AutoencoderKLWan(**(SMALL_VAE if small else {}))
    fill_parts(dit, vae, device)
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    geometry = EveryK(NAME, 4, size, 16, FPS, WINDOW, **widths(config))
    model = SkyReels(dit, vae, None, scheduler, device, geometry)
    model.placed = "none"
    return model


def fill_parts(dit, vae, device):
    """Random weights, bfloat16 as on a GPU but for what the classes keep in float32."""
    kept = {*dit._keep_in_fp32_modules}
    fill(dit, device, lambda name: torch.float32 if kept & {*name.split(".")} else torch.bfloat16)
    fill(vae, device, lambda name: torch.float32)
    dit.rope = type(dit.rope)(dit.config.attention_head_dim, (1, 2, 2), 1024).to(device)


def fill(module, device, dtype_of):
    weights = {
        name: torch.randn(w.shape, dtype=dtype_of(name), device=device).mul_(0.02)
        for name, w in module.state_dict().items()
    }
    module.load_state_dict(weights, assign=True)
    module.requires_grad_(False)


def stages(model):
    """{name: function} of what a clip goes through, with the model's own window."""
    geometry, (height, width) = model.geometry, model.geometry.size
    window, config = geometry.window, model.dit.config
    patch = config.patch_size if isinstance(config.patch_size, int) else config.patch_size[1]
    side = [patch * pixels // geometry.size_multiple for pixels in (height, width)]
    known, seen = window["context_latents"], geometry.latents_of(window["tta_frames"])
    latents = torch.randn(1, model.latent_channels, seen, *side, device=model.device)
    dtype, text_width = model.dit.weight_dtype, config.get("text_dim") or config.caption_channels
    text = {
        "embeds": torch.randn(1, 1, PROMPT_TOKENS, text_width, dtype=dtype, device=model.device),
        "mask": torch.ones(1, PROMPT_TOKENS, dtype=torch.long, device=model.device),
    }
    problem = Problem(latents[:, :, :known], latents[:, :, known:], text)
    sigma, noise = torch.full((1,), 0.5, device=model.device), torch.randn_like(problem.target)

    def step(recomputed):
        model.recompute(recomputed)
        delta = torch.zeros(model.embedding_width, device=model.device, requires_grad=True)
        with model.timestep_embedding(lambda i, e, sigma: e + delta):
            flow_matching_loss(model, problem, sigma, noise).backward()

    @torch.no_grad()
    def evaluation():
        model.velocity(noise, sigma, problem.context, text)

    def encode():
        model.encode(torch.rand(1, 3, window["tta_frames"], height, width, device=model.device))

    return {
        "encode": encode,
        "AdaSteer step, all blocks recomputed": lambda: step(None),
        "AdaSteer step, half of them": lambda: step(model.depth // 2),
        "generation": evaluation,  # its branches come one after the other
        "decode": lambda: model.decode(latents),
    }


def predicted(make, size, small):
    """{stage: gigabytes} of what make gives, and the gigabytes of its blocks' weights."""
    found = {}
    with FakeTensorMode():
        model = make(torch.device("cpu"), size, small)
        model.vae.to = lambda device: model.vae  # is there: weights without content cannot move
        for name, work in stages(model).items():
            with Alive(model.dit, model.vae) as alive:
                work()
            found[name] = alive.most / 1e9
        return found, weight_bytes(model.dit.blocks) / 1e9


def measured(make, size, small, device):
    """{stage: (gigabytes, seconds)}; None where it does not fit."""
    model, found = make(device, size, small), {}
    for name, work in stages(model).items():
        found[name] = None
        with contextlib.suppress(torch.OutOfMemoryError):
            work()  # the first one chooses kernels
            torch.cuda.reset_peak_memory_stats(device)
            took = seconds(work, device)
            found[name] = torch.cuda.max_memory_allocated(device) / 1e9, took
        release(device)
    return found


def main(make=random_skyreels, description=__doc__, sizes=((480, 832), (544, 960))):
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", type=frame_size, default=sizes)
    parser.add_argument("--device", default="cpu", help="a GPU: measured there too")
    parser.add_argument("--small", action="store_true", help="a tiny model")
    args = parser.parse_args()
    device = pick_device(args.device)
    for height, width in args.sizes:
        rows, blocks = predicted(make, (height, width), args.small)
        real = {}
        if device.type == "cuda":
            real = measured(make, (height, width), args.small, device)
        for name, gigabytes in rows.items():
            line = f"{width}x{height} {name}: {gigabytes:.3g} GB predicted"
            if name in real:
                line += ", {:.3g} GB and {:.3g} s measured".format(*real[name] or (0, 0))
            print(line, flush=True)
        *_, decode = rows.values()
        away = f"{decode - blocks:.3g} GB with --offload blocks"
        print(f"{width}x{height} peak at the decoder: {decode:.3g} GB, {away}")


if __name__ == "__main__":
    main()
