"""The Open-Sora v2.0 transformer against numbers recorded from the official code
(oracles/opensora_v2): every value in it, what the methods change, and trajectories."""

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

from backbones.opensora2_dit import MMDiT
from backbones.opensora2_layers import rotary_table


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
