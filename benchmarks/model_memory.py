"""Peak memory of each stage of SkyReels-V2-DF-1.3B, Wan2.2-TI2V-5B or LTX-Video-0.9.5, predicted:
the released configuration is run on tensors of a shape and no content, and each counts while it is
alive. What kernels take for themselves is not in it; of LTX-Video's guidance, whose branches are
one batch, one row is. On a GPU it is also measured, with random weights, and timed.

    python -m benchmarks.model_memory --model wan
    python -m benchmarks.model_memory --model wan --device cuda
"""

import argparse
import contextlib
import weakref

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from backbones import ltx_configs, wan_configs
from benchmarks import random_models
from benchmarks.timing import seconds
from common.loading import pick_device
from common.loss import Problem, flow_matching_loss
from common.values import frame_size
from devices.placement import release
from devices.placement import size as weight_bytes

PROMPT_TOKENS = 512
MODELS = {  # and their sizes
    "skyreels": (random_models.skyreels, ((480, 832), (544, 960))),
    "wan": (random_models.wan, (wan_configs.TI2V[0],)),
    "ltx": (random_models.ltx, (ltx_configs.SIZE,)),
}


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


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument("--sizes", nargs="+", type=frame_size, help="the model's own by default")
    parser.add_argument("--device", default="cpu", help="a GPU: measured there too")
    parser.add_argument("--small", action="store_true", help="a tiny model")
    args = parser.parse_args()
    device, (make, sizes) = pick_device(args.device), MODELS[args.model]
    for height, width in args.sizes or sizes:
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
