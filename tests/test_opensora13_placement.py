"""The Open-Sora v1.3 transformer at a tiny size: recomputed and streamed blocks leave the numbers,
windows, text, types, names, and refusals."""

import contextlib
import itertools
from types import SimpleNamespace

import pytest
import torch
from opensora13_oracles import attached
from oracles import assert_near
from test_placement import OnDisk, on_disk  # noqa: F401

from backbones.opensora13_dit import STDiT3
from backbones.opensora13_layers import (
    LINEARS,
    NORMS,
    STAYS,
    join_windows,
    split_windows,
    windows_over,
)
from common.masters import Masters
from devices import offload
from devices.compiling import compile_blocks

TINY = {
    "depth": 3, "hidden_size": 24, "num_heads": 2, "in_channels": 3, "mlp_ratio": 2.0,
    "caption_channels": 10, "model_max_length": 5, "input_sq_size": 64, "kernel_size": [2, 3, -1],
}  # fmt: skip

KINDS = ("spatial", "temporal")


def tiny(dtype=torch.float32, **config):
    torch.manual_seed(0)
    dit = STDiT3(**TINY | config)
    for p in dit.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return dit.to(dtype).eval().requires_grad_(False)


def tiny_inputs(batch=2, frames=4, given=(0, 2)):
    torch.manual_seed(1)
    size = batch, 3, frames, 5, 8
    mask = torch.zeros(size)
    mask[:, :, list(given)] = 1
    return {
        "x": torch.randn(size), "timestep": torch.linspace(200, 900, batch),
        "y": torch.randn(batch, 1, 5, 10), "y_null": torch.randn(batch, 1, 5, 10),
        "mask": torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]])[:batch],
        "fps": torch.tensor([24.0]), "height": torch.tensor([40.0]), "width": torch.tensor([64.0]),
        "cond": torch.randn(size) * mask, "cond_mask": mask, "mask_index": list(given),
    }  # fmt: skip


def plain_inputs(**more):
    """Without given frames."""
    left_out = ("y_null", "cond", "cond_mask", "mask_index")
    return {k: v for k, v in tiny_inputs().items() if k not in left_out} | more


def outcome(dit, **more):
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
        out = dit(**tiny_inputs() | more)
    out.square().mean().backward()
    assert not any(dit.sites.values())
    return {"out": out.detach()} | {key: p.grad for key, p in learned.items()}


def assert_same(ours, plain):
    assert ours.keys() == plain.keys()
    for key, value in plain.items():
        assert_near(ours[key], value, 1e-6 * max(1, value.abs().max().item()))


@pytest.mark.parametrize("recompute", [1, 2, 3])
def test_recomputed_pairs_give_the_same_numbers(recompute):
    """And come from the last block to the first, which is what streaming expects."""
    dit, runs = tiny(), []
    plain = outcome(dit)
    assert all(value.any() for value in plain.values())
    for n, block in enumerate(dit.blocks):
        block.register_forward_pre_hook(lambda *_, n=n: runs.append(n))
    dit.recompute_blocks = recompute
    assert_same(outcome(dit), plain)
    assert runs == [*range(6), *reversed(range(2 * recompute))]


@pytest.mark.parametrize("final_norm", [False, True])
@pytest.mark.parametrize("recompute", [2, 3])
def test_recomputed_pairs_give_the_weights_the_same_gradients(recompute, final_norm):
    dit = tiny().requires_grad_()
    dit.repeats_final_norm = final_norm
    x_mask = torch.tensor([[True, False, True, True], [False, False, True, True]])
    gradients = []
    for dit.recompute_blocks in (0, recompute):
        dit.zero_grad()
        dit(**tiny_inputs(), x_mask=x_mask).square().mean().backward()
        gradients.append({name: p.grad.clone() for name, p in dit.named_parameters()})
    assert_same(*gradients)
    zero = {name for name, gradient in gradients[0].items() if not gradient.abs().max() > 1e-7}
    assert not zero  # half of what makes text keys and values has a gradient in any case


def test_streamed_blocks_give_the_same_numbers(on_disk):  # noqa: F811
    """In forward and backward at most three blocks' weights are there at once."""
    plain, dit = outcome(tiny()), tiny()
    offload.stream_blocks(dit, dit.blocks, torch.device("cpu"), STAYS)
    dit.has_weight_hooks, dit.recompute_blocks = True, dit.config.depth
    assert not OnDisk.loaded
    assert_same(outcome(dit), plain)
    assert 1 < OnDisk.most <= 3


def test_streamed_blocks_need_not_be_recomputed():
    plain, dit = outcome(tiny()), tiny()
    offload.stream_blocks(dit, dit.blocks, torch.device("cpu"), STAYS)
    dit.has_weight_hooks = True
    assert_same(outcome(dit), plain)


def test_compiled_blocks_give_the_same_numbers():
    torch._dynamo.reset()
    plain, dit, traces = outcome(tiny()), tiny(), []

    def backend(graph, inputs):
        traces.append(len(inputs))
        return graph.forward

    names = [name for name, m in dit.named_modules() if m in set(dit.blocks)]
    compile_blocks(SimpleNamespace(dit=dit, stacks=(names,)), backend)
    torch._dynamo.config.suppress_errors = False  # here an error is an error
    assert_same(outcome(dit), plain)
    traced = len(traces)
    assert_same(outcome(dit), plain)
    assert 2 <= traced == len(traces)
    torch._dynamo.reset()


# Windows, text, frames


@pytest.mark.parametrize("sizes", [(3, 4, 6), (3, 5, 7), (1, 1, 1)])
@pytest.mark.parametrize("window", [(3, 2, 3), (2, 2, 3), (1, 1, 1)])
def test_windows_hold_every_token_once(sizes, window):
    x = torch.randn(2, *sizes, 4)
    parts = split_windows(x, window)
    assert parts.shape[1] == window[0] * window[1] * window[2]
    assert torch.equal(join_windows(parts, sizes, window), x)
    there = windows_over(sizes, window, 2, None, x.device).there
    if there is None:
        assert parts.numel() == x.numel()
    else:
        assert there.shape == (len(parts), 1, 1, parts.shape[1])
        assert there.sum() == x[..., 0].numel()
        assert not parts[~there[:, 0, 0]].any()


def reached(dit, kind, grid, place):
    """Which tokens of the grid notice a change of the one at `place` in the self-attention."""
    torch.manual_seed(2)
    x, windows = torch.randn(1, *grid, 24), dict(zip(KINDS, dit.windows(grid, 1.0, 1), strict=True))
    attention = getattr(dit, f"{kind}_blocks")[0].attn
    plain = attention(x, windows[kind])
    x[(0, *place)] += 1
    return (attention(x, windows[kind]) - plain).abs().amax(dim=-1)[0] > 1e-6


def only(grid, frames, rows, columns):
    expected = torch.zeros(grid, dtype=torch.bool)
    for place in itertools.product(frames, rows, columns):
        expected[place] = True
    return expected


def test_a_token_reaches_its_frame_in_a_spatial_block_and_its_window_in_a_temporal_one():
    dit, grid = tiny(), (3, 3, 4)  # rows and columns fill no windows of 2 x 3
    everywhere = range(3), range(3), range(4)
    frame = only(grid, [1], *everywhere[1:])
    assert torch.equal(reached(dit, "spatial", grid, (1, 2, 3)), frame)
    for place, rows, columns in (((1, 0, 1), [0, 1], [0, 1, 2]), ((0, 2, 3), [2], [3])):
        window = only(grid, everywhere[0], rows, columns)
        assert torch.equal(reached(dit, "temporal", grid, place), window)


@pytest.mark.parametrize(("kernel", "size"), [
    ([2, 3, 2], (2, 2, 3)), ([-1, -1, -1], (4, 3, 4)), (None, (4, 1, 1)),
])  # fmt: skip
def test_other_windows(kernel, size):
    """In time too; over everything; without, a place attends over its frames alone."""
    dit = tiny(kernel_size=kernel, use_spatial_rope=kernel is not None)
    there = reached(dit, "temporal", (4, 3, 4), (0, 0, 0))
    assert torch.equal(there, only((4, 3, 4), *map(range, size)))
    assert dit(**plain_inputs()).shape == (2, 6, *plain_inputs()["x"].shape[2:])


def test_padded_text_and_the_other_sample_are_not_read():
    dit, arguments = tiny(), plain_inputs()
    plain, y = dit(**arguments), arguments["y"].clone()
    y[~arguments["mask"][:, None].bool()] += 100
    assert_near(dit(**arguments | {"y": y}), plain, 1e-6)
    y[1, :, 0] += 1
    out = dit(**arguments | {"y": y})
    assert_near(out[:1], plain[:1], 1e-6)
    assert (out[1] - plain[1]).abs().max() > 1e-4
    cut = {"y": arguments["y"][1:, :, :2], "mask": None, "timestep": arguments["timestep"][1:]}
    assert_near(dit(**arguments | cut | {"x": arguments["x"][1:]}), plain[1:], 1e-5)


def test_given_frames_read_the_null_text_and_the_others_do_not():
    dit, arguments, left = tiny(), tiny_inputs(), []
    for name in ("y", "y_null"):
        changed = arguments | {name: arguments[name] + 1}
        hook = dit.spatial_blocks[0].register_forward_hook(lambda *a: left.append(a[-1]))
        dit(**arguments), dit(**changed)
        hook.remove()
        before, after = (x.unflatten(1, (4, -1)) for x in left[-2:])
        moved = ((after - before).abs().amax(dim=(0, 2, 3)) > 1e-6).nonzero().flatten().tolist()
        assert moved == ([1, 3] if name == "y" else arguments["mask_index"])


def test_all_frames_may_be_given():
    dit, everything = tiny(), tiny_inputs(given=(0, 1, 2, 3))
    out = dit(**everything)
    assert torch.equal(dit(**everything | {"y": everything["y"] + 1}), out)


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


def test_copies_of_all_weights_act_in_their_place():
    """As full tuning makes them: float32, which the forward sees in the weights' own type."""
    dit = tiny(torch.bfloat16)
    plain, names = dit(**tiny_inputs()), [name for name, _ in dit.named_parameters()]
    copies = Masters(SimpleNamespace(dit=dit, device="cpu"), names)
    with torch.no_grad():
        for copy in copies.values.values():
            copy *= 1 + 1e-4  # less than bfloat16 sees
    with copies.attached():
        out = dit(**tiny_inputs())
        out.square().mean().backward()
    assert torch.equal(out, plain)
    assert all(copy.grad.any() for copy in copies.values.values())


def test_a_saved_network_comes_back_with_its_rotary_table_in_float32(tmp_path):
    dit = tiny()
    dit.save_pretrained(tmp_path)
    again = STDiT3.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert again.rope.freqs.dtype == torch.float32 and again.weight_dtype == torch.bfloat16
    assert torch.equal(again.rope.freqs, dit.rope.freqs)
    assert_near(again.y_embedder.y_embedding.float(), dit.y_embedder.y_embedding, 0.01)
    again = STDiT3.from_pretrained(tmp_path)
    assert torch.equal(again(**tiny_inputs()), dit(**tiny_inputs()))


def test_every_named_layer_exists_in_every_block():
    dit = tiny()
    named = {name for names in LINEARS.values() for name in names}
    for block in dit.blocks:
        layers = {n for n, m in block.named_modules() if isinstance(m, torch.nn.Linear)}
        assert layers == named
        affine = {n for n, m in block.named_modules() if "norm" in n and len(list(m.parameters()))}
        assert affine == {name for names in NORMS.values() for name in names}


def test_one_line_for_what_is_missing_or_not_built():
    dit = tiny()
    for name in ("cond", "cond_mask", "y_null", "mask_index"):
        with pytest.raises(ValueError, match="^cond, cond_mask and y_null must be given with mask"):
            dit(**tiny_inputs() | {name: None})
    refused = {
        "patch_size must not merge frames, .* got .2, 2, 2.$": {"patch_size": [2, 2, 2]},
        "skip_temporal and skip_y_embedder must be false$": {"skip_temporal": True},
        "use_spatial_rope must be false without a kernel_size$": {"kernel_size": None},
        "hidden_size must be a multiple of 6 . num_heads = 12, got 32$": {"hidden_size": 32},
    }
    for words, config in refused.items():
        with pytest.raises(ValueError, match=f"^{words}"):
            tiny(**config)
