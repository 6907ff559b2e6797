"""The Open-Sora v2.0 transformer at a tiny size: recomputed and streamed blocks leave the numbers,
types, names, and refusals."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from opensora2_oracles import attached
from oracles import assert_near
from test_placement import OnDisk, on_disk  # noqa: F401

from backbones.opensora2_dit import MMDiT
from backbones.opensora2_layers import NORMS, STAYS, linears
from devices import offload
from devices.compiling import compile_blocks

TINY = {
    "in_channels": 16, "vec_in_dim": 20, "context_in_dim": 12, "hidden_size": 32, "num_heads": 2,
    "depth": 2, "depth_single_blocks": 3, "axes_dim": [4, 6, 6], "mlp_ratio": 2.0,
}  # fmt: skip
each_projection = pytest.mark.parametrize("fused", [False, True])


def tiny(dtype=torch.float32, **config):
    torch.manual_seed(0)
    dit = MMDiT(**TINY | config)
    for p in dit.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return dit.to(dtype).eval().requires_grad_(False)


def tiny_inputs(batch=2):
    torch.manual_seed(1)
    ids = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float32) for n in (3, 2, 2)))
    return {
        "img": torch.randn(batch, len(ids), 16), "img_ids": ids[None],
        "txt": torch.randn(batch, 5, 12), "txt_ids": torch.zeros(1, 5, 3),
        "timesteps": torch.linspace(0.2, 0.9, batch), "y_vec": torch.randn(batch, 20),
        "cond": torch.randn(batch, len(ids), 20),
    }  # fmt: skip


def outcome(dit):
    """An output that all sites have changed, and the gradients of what changed it, which are taken
    when the sites are empty again."""
    width, learned = dit.config.hidden_size, {}

    def vector(key):
        return learned.setdefault(key, torch.linspace(-0.1, 0.1, width).requires_grad_())

    functions = {
        "timestep_embedding": lambda i, e, sigma: e + sigma[..., None] * vector(("time", i)),
        "modulation": lambda i, m: {name: x + vector(name) for name, x in m.items()},
        "block_output": lambda i, x: (x + vector(("out", i))).to(x.dtype),
        "head_input": lambda x: (x + vector("head")).to(x.dtype),
    }
    with contextlib.ExitStack() as stack:
        for site, function in functions.items():
            stack.enter_context(attached(dit, site, function))
        out = dit(**tiny_inputs())
    out.square().mean().backward()
    assert not any(dit.sites.values())
    return {"out": out.detach()} | {key: p.grad for key, p in learned.items()}


def assert_same(ours, plain):
    assert ours.keys() == plain.keys()
    for key, value in plain.items():
        assert value.any()
        assert_near(ours[key], value, 1e-6 * max(1, value.abs().max().item()))


@each_projection
@pytest.mark.parametrize("recompute", [1, 3, 5])
def test_recomputed_blocks_give_the_same_numbers(fused, recompute):
    dit, runs = tiny(fused_qkv=fused), []
    plain = outcome(dit)
    for i, block in enumerate(dit.blocks):
        block.register_forward_pre_hook(lambda *_, i=i: runs.append(i))
    dit.recompute_blocks = recompute
    assert_same(outcome(dit), plain)
    assert runs == [*range(len(dit.blocks)), *reversed(range(recompute))]


@pytest.mark.parametrize("recompute", [0, 2, 5])
def test_recomputed_blocks_give_the_weights_the_same_gradients(recompute):
    dit = tiny().requires_grad_()
    gradients = []
    for dit.recompute_blocks in (0, recompute):
        dit.zero_grad()
        dit(**tiny_inputs()).square().mean().backward()
        gradients.append({name: p.grad.clone() for name, p in dit.named_parameters()})
    assert_same(*gradients)


@each_projection
def test_streamed_blocks_give_the_same_numbers(on_disk, fused):  # noqa: F811
    """In forward and backward at most three blocks' weights are there at once."""
    plain, dit = outcome(tiny(fused_qkv=fused)), tiny(fused_qkv=fused)
    offload.stream_blocks(dit, dit.blocks, torch.device("cpu"), STAYS)
    dit.has_weight_hooks, dit.recompute_blocks = True, len(dit.blocks)
    assert not OnDisk.loaded
    assert_same(outcome(dit), plain)
    assert 1 < OnDisk.most <= 3


def test_streamed_blocks_need_not_be_recomputed():
    plain, dit = outcome(tiny()), tiny()
    offload.stream_blocks(dit, dit.blocks, torch.device("cpu"), STAYS)
    dit.has_weight_hooks = True
    assert_same(outcome(dit), plain)


def test_a_graph_keeps_no_float32_copies_of_weights():
    dit, kept = tiny(torch.bfloat16), []
    largest = max(p.numel() for p in dit.blocks[0].img_mod.parameters())

    def pack(x):
        kept.append((x.dtype, x.numel()))
        return x

    delta = torch.zeros(TINY["hidden_size"], requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        with attached(dit, "timestep_embedding", lambda i, e, sigma: e + delta):
            dit(**tiny_inputs()).square().mean().backward()
    assert kept and not [n for dtype, n in kept if dtype == torch.float32 and n == largest]
    assert delta.grad.any()


# Types, names, refusals


def test_bfloat16_weights_leave_the_embedding_and_the_output_in_float32():
    dit, plain, types = tiny(torch.bfloat16), tiny(), set()
    for p, rounded in zip(plain.parameters(), dit.parameters(), strict=True):
        p.copy_(rounded)

    def embedding(i, e, sigma):
        types.update((e.dtype, sigma.dtype))
        return e

    def modulation(i, m):
        types.update(x.dtype for x in m.values())
        return m

    with attached(dit, "timestep_embedding", embedding), attached(dit, "modulation", modulation):
        out = dit(**tiny_inputs())
    expected = plain(**tiny_inputs())
    assert types == {torch.float32} == {out.dtype}
    assert (out - expected).norm() < 0.05 * expected.norm()


def test_time_is_multiplied_in_its_own_type():
    """bfloat16 has steps of 4 there; in float32 the two times differ."""
    dit, given = tiny(), tiny_inputs(1)
    times = torch.tensor([0.81]), torch.tensor([0.81 + 1e-4])
    fine = [dit(**given | {"timesteps": t}) for t in times]
    coarse = [dit(**given | {"timesteps": t.bfloat16()}) for t in times]
    assert not torch.equal(*fine) and torch.equal(*coarse)
    assert (coarse[0] - fine[0]).abs().max() > 1e-4


@each_projection
def test_every_named_layer_exists_in_some_block(fused):
    dit = tiny(fused_qkv=fused)
    for name in (name for names in linears(fused).values() for name in names):
        found = [b.get_submodule(name) for b in dit.blocks if name in dict(b.named_modules())]
        assert found and all(isinstance(layer, torch.nn.Linear) for layer in found)
    named = {name for names in linears(fused).values() for name in names}
    for block in dit.blocks:
        layers = {n for n, m in block.named_modules() if isinstance(m, torch.nn.Linear)}
        assert {name for name in layers if not name.startswith(STAYS)} <= named
        assert any(norm in dict(block.named_modules()) for norm in NORMS["qk"])


def test_each_part_of_the_modulation_acts_and_has_the_name_of_its_block():
    dit, seen = tiny(), {}
    with attached(dit, "modulation", lambda i, m: seen.setdefault(i, m)):
        plain = dit(**tiny_inputs())
    assert [tuple(seen[i]) for i in seen] == [block.modulation_parts for block in dit.blocks]
    for i, part in ((i, part) for i, m in seen.items() for part in m):
        change = lambda j, m, i=i, part=part: m | {part: m[part] + 0.5} if i == j else m  # noqa: E731
        with attached(dit, "modulation", change):
            assert not torch.equal(dit(**tiny_inputs()), plain), (i, part)


def test_one_line_for_what_is_missing_or_too_much():
    given = tiny_inputs()
    with pytest.raises(ValueError, match="^cond must be given with cond_embed=true, and only then"):
        tiny()(**given | {"cond": None})
    with pytest.raises(ValueError, match="^guidance must be given with guidance_embed=true"):
        tiny()(**given, guidance=torch.ones(2))
    with pytest.raises(ValueError, match=r"^axes_dim must add up to .* = 16, got \[4, 6, 8\]$"):
        tiny(axes_dim=[4, 6, 8])


def test_compiled_blocks_give_the_same_numbers_and_are_share_what_is_traced():
    torch._dynamo.reset()
    plain, dit, traces = outcome(tiny()), tiny(), []

    def backend(graph, inputs):
        traces.append(len(inputs))
        return graph.forward

    names = [name for name, m in dit.named_modules() if m in set(dit.blocks)]
    compile_blocks(SimpleNamespace(dit=dit, stacks=(names,)), backend)
    torch._dynamo.config.suppress_errors = False  # here an error is an error
    counts = []
    for _ in range(2):
        assert_same(outcome(dit), plain)
        counts.append(len(traces))
    assert 2 <= counts[0] == counts[1] < len(dit.blocks)
    torch._dynamo.reset()
