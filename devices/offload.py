"""Weights that take less of the GPU: blocks streamed from host memory, linear layers kept in
float8. Both through the hooks of diffusers, which are made for inference; what adaptation needs
beside them is here.

A block's graph keeps the weights it was computed with, so only with recomputed blocks is memory
saved. A transformer is told by `has_weight_hooks` that these must see the end of a recomputed block
too.
"""

import torch
from diffusers.hooks import HookRegistry, apply_layerwise_casting
from diffusers.hooks.group_offloading import (
    GroupOffloadingConfig,
    GroupOffloadingHook,
    GroupOffloadingType,
    ModuleGroup,
)

HOST = torch.device("cpu")


def stream_blocks(dit, blocks, device, stays):
    """The matrices of each block come to the device when it runs, while the one before it computes,
    and leave it afterwards; vectors, and what has a name that begins with `stays`, remain there.

    The list of weights is fixed now: what a method puts into a block later is the method's. A graph
    keeps a matrix as it was used, but a vector by its name.
    """
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    config = GroupOffloadingConfig(
        device, HOST, GroupOffloadingType.BLOCK_LEVEL, non_blocking=stream is not None,
        record_stream=stream is not None, low_cpu_mem_usage=False, num_blocks_per_group=1,
        stream=stream,
    )  # fmt: skip
    hooks = []
    for block in blocks:
        weights = []
        for name, p in block.named_parameters():
            if p.ndim > 1 and not name.startswith(stays) and not p.requires_grad:
                weights.append(p)
            else:
                p.data = p.data.to(device)
        group = ModuleGroup(
            [], HOST, device, block, block, parameters=weights, non_blocking=stream is not None,
            stream=stream, record_stream=stream is not None, onload_self=False,
        )  # fmt: skip
        hooks.append(GroupOffloadingHook(group, config=config))
        registry = HookRegistry.check_if_exists_or_initialize(block)
        registry.register_hook(hooks[-1], "group_offloading")
    dit.has_weight_hooks = True
    dit.register_forward_pre_hook(lambda *_: prefetch_in_order(hooks))
    dit.register_forward_hook(lambda *_: prefetch_in_order(hooks[::-1], torch.is_grad_enabled()))


def prefetch_in_order(hooks, wanted=True):
    """Backward recomputes the blocks from the last to the first; fetching them in the order of the
    forward would leave all of them on the device."""
    if wanted:
        for hook, following in zip(hooks, [*hooks[1:], None], strict=True):
            hook.next_group = following and following.group


def store_float8(dit, compute_dtype, not_these):
    """Keeps the weights of linear layers in float8 (e4m3) and computes in compute_dtype; layers
    whose name matches one of the patterns stay as they are."""
    apply_layerwise_casting(
        dit, torch.float8_e4m3fn, compute_dtype, skip_modules_pattern=not_these, non_blocking=True
    )
    dit.has_weight_hooks = True
