"""The Open-Sora v2.0 transformer against numbers recorded from the official code
(oracles/opensora_v2), and what must not change them."""

import contextlib
import functools

import pytest
import torch
from opensora2_oracles import (
    DELTA_LIMIT,
    KINDS,
    LOSS_LIMIT,
    OUTPUT_LIMIT,
    VARIANTS,
    attached,
    each_variant,
    entries,
    inputs,
    needs_opensora2,
    network,
    steer,
    table,
    tensors,
)
from oracles import assert_near
from test_placement import OnDisk, on_disk  # noqa: F401

from backbones.opensora2_dit import MMDiT
from backbones.opensora2_layers import NORMS, STAYS, linears, rotary_table
from devices import offload

TINY = {
    "in_channels": 16, "vec_in_dim": 20, "context_in_dim": 12, "hidden_size": 32, "num_heads": 2,
    "depth": 2, "depth_single_blocks": 3, "axes_dim": [4, 6, 6], "mlp_ratio": 2.0,
}  # fmt: skip
each_projection = pytest.mark.parametrize("fused", [False, True])


def test_released_configuration_has_11891390528_parameters():
    with torch.device("meta"):
        dit = MMDiT()
    assert sum(p.numel() for p in dit.parameters()) == 11_891_390_528


@needs_opensora2
@each_variant
def test_state_dict_keys_and_shapes_are_the_official_ones(variant):
    dit = MMDiT(**table(f"{variant}/config"))
    ours = {name: value.shape for name, value in dit.state_dict().items()}
    weights = tensors(f"{variant}/weights")
    assert ours == {name: value.shape for name, value in weights.items()}


@needs_opensora2
def test_the_recorded_variants_differ_in_every_switch():
    configs = [table(f"{variant}/config") for variant in VARIANTS]
    for switch in ("guidance_embed", "cond_embed", "fused_qkv", "use_liger_rope"):
        assert {config[switch] for config in configs} == {False, True}


@needs_opensora2
@each_variant
def test_forward(variant):
    expected = tensors(f"{variant}/forward")["out"]
    assert_near(network(variant)(**inputs(variant)), expected, OUTPUT_LIMIT)


class Seen(dict):
    """Everything that a forward goes through, by the recorded names."""

    def __init__(self, dit, given):
        super().__init__()
        self.double, self.words = len(dit.double_blocks), given["txt"].shape[1]
        hooks = [dit.blocks[0].register_forward_pre_hook(self.embedded)]
        for i, block in enumerate(dit.blocks):
            hooks.append(block.register_forward_hook(functools.partial(self.left, i)))
        with contextlib.ExitStack() as stack:
            for site in ("timestep_embedding", "block_output", "head_input"):
                stack.enter_context(attached(dit, site, getattr(self, site)))
            dit(**given)
        for hook in hooks:
            hook.remove()

    def embedded(self, _module, arguments):
        x = arguments[0]
        self["txt_embed"], self["img_embed"] = x[:, : self.words], x[:, self.words :]

    def left(self, i, _module, _arguments, x):
        if i < self.double:
            self[f"double{i}.txt"] = x[:, : self.words]
        else:
            self[f"single{i - self.double}"] = x

    def timestep_embedding(self, i, e, sigma):
        self.setdefault("vec", e[:, 0])
        self["final_vec"], self.sigma = e[:, 0], sigma
        return e

    def block_output(self, i, x):
        self["final_hidden"] = x
        if i < self.double:
            self[f"double{i}.img"] = x
        return x

    def head_input(self, x):
        self["head_in"] = x
        return x


def rotary_values(dit, given):
    """The tables as officially kept: twice side by side, or as turning matrices."""
    ids = torch.cat([given["txt_ids"], given["img_ids"]], dim=1)
    cos, sin = rotary_table(ids, dit.config.axes_dim, dit.config.theta)
    if dit.config.use_liger_rope:
        return {f"rope_{name}": torch.cat([x, x], -1)[:, 0] for name, x in
                (("cos", cos), ("sin", sin))}  # fmt: skip
    return {"rope_matrix": torch.stack([cos, -sin, sin, cos], -1).unflatten(-1, (2, 2))}


@needs_opensora2
@each_variant
def test_values_inside_a_forward(variant):
    """Every recorded value is met: an error is located, not only seen."""
    dit, given = network(variant), inputs(variant)
    seen = Seen(dit, given)
    assert torch.equal(seen.sigma, given["timesteps"][:, None])
    seen |= rotary_values(dit, given)
    recorded = {
        key.removeprefix("mid."): value
        for key, value in tensors(f"{variant}/forward").items()
        if key.startswith("mid.")
    }
    assert recorded.keys() == seen.keys()
    for name, expected in recorded.items():
        assert_near(seen[name], expected, OUTPUT_LIMIT)


# What the methods change


def recorded_offsets(values, name):
    """{kind of block: vectors} of `delta.B.*`; the slopes are `delta.Btime.*1`."""
    end = "" if name == "B" else "1"
    return {kind: values[f"delta.{name}.{kind}{end}"].view(-1, values["delta.A"].numel())
            for kind in KINDS}  # fmt: skip


def changes(dit, values):
    """{recorded output: (site, function)}; without a site it acts on what the network gives."""
    steady = recorded_offsets(values, "B")
    rising = recorded_offsets(values, "Btime")
    last = len(dit.blocks) - 1
    hidden = values["delta.hidden"]
    return {
        "A": ("timestep_embedding", steer(dit, dict.fromkeys(KINDS, values["delta.A"][None]))),
        "B": ("timestep_embedding", steer(dit, steady)),
        "B_final_only": ("timestep_embedding", steer(dit, {"final": steady["final"]})),
        "Btime": ("timestep_embedding", steer(dit, steady, rising)),
        "C": (None, lambda out: out + values["delta.C"]),
        "hidden_before_final_layer": (
            "block_output", lambda i, x: x + hidden if i == last else x,
        ),
        "hidden_before_head": ("head_input", lambda x: x + hidden),
    }  # fmt: skip


@needs_opensora2
@each_variant
def test_outputs_with_a_delta(variant):
    dit, values = network(variant), tensors(f"{variant}/forward")
    made = changes(dit, values)
    assert {f"out.{name}" for name in made} == {key for key in values if key.startswith("out.")}
    for name, (site, function) in made.items():
        expected = values[f"out.{name}"]
        assert (expected - values["out"]).abs().max() > 10 * OUTPUT_LIMIT
        with attached(dit, site, function) if site else contextlib.nullcontext():
            out = dit(**inputs(variant))
        assert_near(out if site else function(out), expected, OUTPUT_LIMIT)
        assert_near(dit(**inputs(variant)), values["out"], OUTPUT_LIMIT)


@needs_opensora2
@each_variant
def test_the_head_of_what_was_before_it_is_the_output(variant):
    dit, values = network(variant), tensors(f"{variant}/forward")
    hidden, e = values["mid.final_hidden"], values["mid.final_vec"][:, None]
    with attached(dit, "head_input", lambda x: x + 1):
        assert_near(dit.head(hidden, e), values["out"], OUTPUT_LIMIT)


# Trajectories


class Option:
    """The parameters of a recorded trajectory, in its order, and where they act."""

    def __init__(self, dit, name, told):
        width, self.name, self.slopes = dit.config.hidden_size, name, None
        counts = {"double": told.get("groups_double"), "single": told.get("groups_single")}
        counts["final"] = 1

        def new(count, width=width):
            return [torch.zeros(width, requires_grad=True) for _ in range(count)]

        if name == "C":
            self.parameters = new(1, dit.config.in_channels)
            self.offsets = {}
        elif name == "A":
            self.parameters = new(1)
            self.offsets = dict.fromkeys(KINDS, self.parameters)
        else:
            made = {kind: [new(count) for _ in ("offset", "slope")] for kind, count in
                    counts.items()}  # fmt: skip
            self.offsets = {kind: pair[0] for kind, pair in made.items()}
            if name == "Btime":
                self.slopes = {kind: pair[1] for kind, pair in made.items()}
            used = [pair[: 2 if self.slopes else 1] for pair in made.values()]
            self.parameters = [p for pair in used for vectors in pair for p in vectors]

    def predict(self, dit, given):
        with attached(dit, "timestep_embedding", steer(dit, self.offsets, self.slopes)):
            out = dit(**given)
        return out + self.parameters[0] if self.name == "C" else out


def given_at(values, step):
    """The network's arguments of a recorded step."""
    words = values["txt"].shape[:2]
    return {
        "img": values["x_t"][step], "img_ids": values["img_ids"], "txt": values["txt"],
        "txt_ids": torch.zeros(*words, 3), "timesteps": values["t"][step],
        "y_vec": values["y_vec"], "cond": values["cond"],
    }  # fmt: skip


def flat(parts):
    return torch.cat([part.detach().flatten() for part in parts])


@needs_opensora2
@pytest.mark.parametrize("recompute", [0, 2, 99])
@pytest.mark.parametrize(("name", "told"), entries("tta_trajectory").items())
def test_trajectory(name, told, recompute):
    dit, values = network(), tensors("tta_trajectory")
    dit.recompute_blocks = recompute
    option, start = Option(dit, name, told), told["lr"]
    optimizer = torch.optim.AdamW(option.parameters, lr=start, weight_decay=told["weight_decay"])
    assert told["steps"] == len(values[f"{name}.losses"])
    for step in range(told["steps"]):
        rate = start * min(1, (step + 1) / max(1, told["warmup_steps"]))
        assert rate == pytest.approx(values[f"{name}.lr"][step].item())
        optimizer.param_groups[0]["lr"] = rate
        error = option.predict(dit, given_at(values, step)) - values["v_target"][step]
        penalty = sum(p.square().mean() for p in option.parameters)
        loss = error.square().mean() + told["delta_l2"] * penalty
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(option.parameters, told["max_grad_norm"])
        gradients = flat([p.grad for p in option.parameters])
        optimizer.step()
        assert loss.item() == pytest.approx(values[f"{name}.losses"][step].item(), rel=LOSS_LIMIT)
        assert_near(gradients, values[f"{name}.grads_after_clip"][step], DELTA_LIMIT)
        assert_near(flat(option.parameters), values[f"{name}.delta"][step], DELTA_LIMIT)


# Placement: the numbers stay


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
    dit = tiny(fused_qkv=fused)
    plain = outcome(dit)
    dit.recompute_blocks = recompute
    assert_same(outcome(dit), plain)


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
