"""What of the model is on the GPU and how much of it is recomputed, decided from free memory."""

import gc
import sys

import psutil
import torch
from tqdm import tqdm

from devices import ranks
from devices.agreement import said_by_all, with_all
from devices.compiling import every_graph_compiled
from devices.paths import all_paths
from devices.shards import local

PLANS = ("none", "vae", "blocks")  # what is offloaded, from loosest to strictest
BLOCK_TENSORS = 40  # hidden states' worth of memory that a step needs beside one state per block
KEPT = 2  # blocks, while one is measured
GPU_SHARE, HOST_SHARE = 0.92, 0.5  # of free memory that a plan counts on


class DoesNotFit(Exception):
    """No plan is left under which the work fits into memory."""


class Placement:
    """The plan for a model, made stricter when memory runs out."""

    def __init__(self, model, args):
        self.model, self.args, self.out_of_memory = model, args, 0
        self.offload = args.offload if args.offload != "auto" else choose(model, args)
        self.recomputed = self._recomputed()
        self.says = ""

    def _recomputed(self):
        """How many blocks are recomputed; None where a block is to be measured first."""
        asked, depth = self.args.checkpointing, self.model.depth
        if asked == "auto":
            # a graph keeps streamed or float8 weights as they were used: nothing would be saved
            return depth if self.offload == "blocks" or self.args.weights == "fp8" else None
        return depth if asked == "all" else min(asked, depth)

    def begin(self, prompts):
        """Moves the weights, once the text encoder has embedded so many prompts and is gone."""
        self.says = f"text encoder released after {prompts} prompts"
        if not prompts:
            self.says = "text encoder not loaded, all prompts cached"
        self.run(self._apply)
        if self.recomputed is not None or not self.args.steps:
            self._say()

    def run(self, attempt, backward=False, graph=False, alone=False):
        """attempt(), once more under every stricter plan while memory runs out. Raises DoesNotFit
        when there is no stricter one. The first with backward measures a block; `graph` says that
        another attempt builds a graph too. Of several processes all run out of memory when one
        does, but where this one works `alone`."""
        shards = getattr(self.model, "shards", None)
        together = with_all if shards and not alone else lambda attempt, _: attempt
        recover = shards and shards.recover
        attempt, applied = together(attempt, recover), True
        while True:
            try:
                if not applied:
                    together(self._apply, recover)()
                    self._say("out of memory, now ")
                    applied = True
                if backward and self.recomputed is None:
                    return self._measure(attempt)
                return attempt()
            except torch.OutOfMemoryError as error:
                stricter, reason = self._stricter(backward or graph), str(error).splitlines()[0]
                if stricter is None:
                    raise DoesNotFit(
                        f"out of memory with {self.describe()}; try fewer --draws, fewer "
                        f"--tta-frames or a smaller --size ({reason})"
                    ) from error
            # here the error and the tensors of its frames are gone
            self.out_of_memory += 1
            (self.offload, self.recomputed), applied = stricter, False
            release(self.model.device)

    def describe(self):
        """For the video's JSON."""
        return {
            "offload": self.offload,
            "recomputed_blocks": self.recomputed,
            "compiled": self.model.compiled and every_graph_compiled(),
            "out_of_memory": self.out_of_memory,
        } | ({"processes": ranks.count()} if ranks.count() > 1 else {})

    def _measure(self, attempt):
        """With the last two blocks kept. The last leaves the context out, so that the one before it
        is measured."""
        depth, device = self.model.depth, self.model.device
        self.model.recompute(max(0, depth - KEPT))
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        saved, after = SavedBytes(self.model.dit), {-1: 0}

        def mark(i, x):
            after[i] = saved.total
            return x

        with self.model.block_output(mark), saved:
            result = attempt()
        measured = max(0, depth - KEPT)
        block = after.get(measured, 0) - after.get(measured - 1, 0)  # 0 where no block was run
        spare = free_bytes(device)
        if device.type == "cuda":
            spare -= torch.cuda.max_memory_allocated(device)
        kept = min(depth, KEPT + int(max(0, spare) // max(1, block)))
        kept = min(said_by_all(kept)) if getattr(self.model, "shards", None) else kept
        self.recomputed = depth - kept
        self.model.recompute(self.recomputed)
        self._say()
        return result

    def _stricter(self, graph):
        """The next plan, or None. Recomputing helps a graph only."""
        if graph and self.args.checkpointing == "auto" and self.recomputed != self.model.depth:
            return self.offload, self.model.depth
        if self.args.offload != "auto" or self.offload == PLANS[-1]:
            return None
        following = PLANS[PLANS.index(self.offload) + 1]
        if following == "blocks" and getattr(self.model, "shards", None):
            return None  # they are shared out already
        if following != "blocks":
            return following, self.recomputed
        if all(p.requires_grad for p in self.model.dit.parameters() if p.ndim > 1):
            return None  # nothing frozen is left to stream
        auto = self.args.checkpointing == "auto"  # as in _recomputed
        return following, self.model.depth if auto else self.recomputed

    def _apply(self):
        if self.model.compiled and self.offload == "blocks":
            for name in all_paths(self.model.stacks):
                self.model.dit.get_submodule(name)._compiled_call_impl = None
            self.model.compiled = False
            tqdm.write("--compile: not with streamed blocks, goes on without", file=sys.stderr)
        self.model.place(self.offload)
        # before a block is measured all are recomputed
        self.model.recompute(self.recomputed)

    def _say(self, before=""):
        if ranks.rank():
            return
        model, on = self.model, "GPU" if self.model.device.type == "cuda" else "CPU"
        dit = f"DiT {size(model.dit) / 1e9:.3g} GB" + " as float8" * (self.args.weights == "fp8")
        place = "streamed from host memory" if self.offload == "blocks" else f"on {on}"
        vae = f"VAE on {on}" if self.offload == "none" else "VAE visiting"
        if getattr(self.model, "shards", None):
            place += f" for each of {ranks.count()} processes"
        line = f"{before}{dit} {place}, {vae}, {self.says}"
        if self.args.steps and self.recomputed is not None:
            line += f", {self.recomputed} of {model.depth} blocks recomputed"
        tqdm.write(line, file=sys.stderr)


def within_memory(model, attempt, **more):
    """attempt(), by the placement of a model that load_model has loaded; see Placement.run."""
    placement = getattr(model, "placement", None)
    return placement.run(attempt, **more) if placement else attempt()


def choose(model, args):
    """The loosest plan whose weights and working memory fit into what is free."""
    if model.device.type != "cuda":
        return "none"
    work = working_bytes(args, model.geometry, model.tokens_per_latent(*model.frame_size))
    free, dit = min(said_by_all(free_bytes(model.device))), size(model.dit) / ranks.count()
    plan = fitting(free, dit, size(model.vae), work)
    return plan if plan != "blocks" or ranks.count() == 1 else "vae"


def working_bytes(args, geometry, tokens_per_latent):
    """Of a step's hidden states on a GPU, about."""
    frames = max(args.tta_frames, args.cond_frames + args.gen_frames)
    tokens = args.draws * geometry.latents_filled(frames) * tokens_per_latent
    state = bytes_of(args.weights) * tokens * geometry.hidden_width
    return state * (geometry.depth + BLOCK_TENSORS)


def bytes_of(weights):
    """Of a number on a GPU under that --weights; float8 is computed in bfloat16."""
    return 4 if weights == "fp32" else 2


def fitting(free, dit, vae, work):
    """The loosest plan for so many bytes."""
    needed = dit + work
    if needed + vae <= free:
        return "none"
    return "vae" if needed <= free else "blocks"


class SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Counts in `total` what graphs keep for backward, outside of recomputed blocks and beside the
    weights of `model`."""

    def __init__(self, model):
        parameters = map(local, model.parameters())
        self.total, self.seen = 0, {p.untyped_storage().data_ptr() for p in parameters}
        super().__init__(self._count, lambda tensor: tensor)

    def __enter__(self):
        super().__enter__()
        return self

    def _count(self, tensor):
        storage = local(tensor).untyped_storage()
        if storage.data_ptr() not in self.seen:
            self.seen.add(storage.data_ptr())
            self.total += storage.nbytes()
        return tensor.detach()  # of the tensor itself: a graph that is never run would keep itself


def size(module):
    return sum(local(p).numel() * p.element_size() for p in module.parameters())


def free_bytes(device):
    """That this process may use, what it has reserved on a GPU included."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        share = getattr(torch.cuda, "get_per_process_memory_fraction", lambda _: 1.0)  # torch 2.8
        allowed = share(device) * total
        return int(GPU_SHARE * min(free + torch.cuda.memory_reserved(device), allowed))
    return int(HOST_SHARE * psutil.virtual_memory().available)


def release(device):
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
