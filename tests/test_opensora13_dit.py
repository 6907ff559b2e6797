"""The Open-Sora v1.3 transformer against numbers recorded from the official code
(oracles/opensora_v13): every value in it, what the methods change, and fine-tuning."""

import contextlib
import functools

import pytest
import torch
from opensora13_oracles import (
    GRADIENT_LIMIT,
    LOSS_LIMIT,
    OUTPUT_LIMIT,
    ROTARY_TABLE,
    attached,
    entries,
    given,
    inputs,
    needs_opensora13,
    network,
    steer,
    table,
    tensors,
)
from oracles import assert_near

from backbones.blocks import MODULATION
from backbones.opensora13_dit import STDiT3
from backbones.opensora13_layers import PAIR_MODULATION
from backbones.opensora13_sampling import frame_weights, noisy_latents, velocity_of

CASES, RUNS = entries("forward"), entries("finetune")
STEERED = [case for case in CASES if f"{case}.delta.t" in tensors("forward")]
MASKED = [case for case in CASES if f"{case}.in.x_mask" in tensors("forward")]
each_case = pytest.mark.parametrize("case", CASES)
each_steered = pytest.mark.parametrize("case", STEERED)


def test_released_configuration_has_1207959692_parameters():
    """The published count contains the fixed rotary table, which here is no parameter."""
    with torch.device("meta"):
        dit = STDiT3()
    assert sum(p.numel() for p in dit.parameters()) + dit.rope.freqs.numel() == 1_207_959_692


@needs_opensora13
def test_state_dict_keys_and_shapes_are_the_official_ones():
    ours = {name: value.shape for name, value in STDiT3(**table("config")).state_dict().items()}
    assert ours == {name: value.shape for name, value in tensors("weights").items()}


@needs_opensora13
def test_the_rotary_table_is_the_recorded_one():
    assert_near(STDiT3(**table("config")).rope.freqs, tensors("weights")[ROTARY_TABLE], 1e-7)


@needs_opensora13
@each_case
def test_forward(case):
    assert_near(network()(**inputs(case)), tensors("forward")[f"{case}.out"], OUTPUT_LIMIT)


class Seen(dict):
    """Everything that a forward goes through, by the recorded names."""

    def __init__(self, dit, given):
        super().__init__()
        self.dit, self.x_mask = dit, given.get("x_mask")
        hooks = [dit.fps_embedder.register_forward_hook(self.rate)]
        hooks += [dit.t_embedder.register_forward_hook(self.time)]
        for kind in ("spatial", "temporal"):
            for i, block in enumerate(getattr(dit, f"{kind}_blocks")):
                left = functools.partial(self.left, f"{kind}{i}")
                hooks.append(block.register_forward_hook(left))
        with contextlib.ExitStack() as stack:
            for site in dit.sites:
                stack.enter_context(attached(dit, site, getattr(self, site)))
            dit(**given)
        for hook in hooks:
            hook.remove()

    def rate(self, _module, _arguments, e):
        self["fps_emb"] = e

    def time(self, _module, _arguments, e):
        self["t_emb0" if "t_emb" in self else "t_emb"] = e

    def left(self, name, _module, _arguments, x):
        self[name] = x

    def split(self, name, value):
        """value (B, T or 1, ...) of every frame -> of a noisy one and of a clean one."""
        if self.x_mask is None:
            self[name] = value[:, 0]
        else:
            for end, mask in (("", self.x_mask), ("0", ~self.x_mask)):
                frame = mask.int().argmax(dim=1)
                self[f"{name}{end}"] = value[torch.arange(len(value)), frame]

    def block_input(self, i, x):
        return x

    def timestep_embedding(self, i, e, sigma):
        if i == 0:
            self.split("t", e)
            self.sigma = sigma
        return e

    def modulation(self, i, m):
        if i == 0:
            own = self.dit.spatial_blocks[0].scale_shift_table
            parts = [m[name] for name in PAIR_MODULATION[:6]]
            shared = [part - row for part, row in zip(parts, own, strict=True)]
            self.split("t_mlp", torch.cat(shared, dim=-1))
        return m

    def block_output(self, i, x):
        self["final_in"] = x
        return x

    def head_input(self, x):
        self["head_in"] = x.flatten(1, 2)
        return x


@needs_opensora13
@each_case
def test_values_inside_a_forward(case):
    """Every recorded value is met: an error is located, not only seen."""
    given_ = inputs(case)
    seen, recorded = Seen(network(), given_), given("forward", f"{case}.mid.")
    assert recorded.keys() == seen.keys()
    for name, expected in recorded.items():
        assert_near(seen[name], expected, OUTPUT_LIMIT)
    expected = given_["timestep"][:, None] / 1000
    if "x_mask" in given_:
        expected = expected * given_["x_mask"]
    assert torch.equal(seen.sigma, expected)


@needs_opensora13
@pytest.mark.parametrize("case", [case for case in CASES if case not in MASKED])
def test_the_head_of_what_was_before_it_is_the_output(case):
    values, dit = given("forward", f"{case}."), network()
    frames, *size = values["in.x"].shape[2:]
    hidden = values["mid.final_in"].unflatten(1, (frames, -1))
    with attached(dit, "head_input", lambda x: x + 1):
        out = dit.head(hidden, values["mid.t"][:, None], size)
    assert_near(out, values["out"], OUTPUT_LIMIT)


@needs_opensora13
@pytest.mark.parametrize("case", MASKED)
def test_without_the_reference_clean_frames_are_normalised_once(case):
    """The switch changes clean frames alone, and they are then what they are at time 0."""
    dit, arguments, left = network(), inputs(case), {}
    official, clean = dit(**arguments), ~arguments["x_mask"]
    dit.repeats_final_norm = False
    with attached(dit, "block_output", lambda i, x: left.setdefault(i, x)):
        out = dit(**arguments)
    changed = (out - official).abs().amax(dim=(1, 3, 4)) > OUTPUT_LIMIT
    assert torch.equal(changed, clean) and clean.any()
    x = left[dit.config.depth - 1].unflatten(1, (clean.shape[1], -1))
    at_zero = tensors("forward")[f"{case}.mid.t0"][:, None]
    expected, where = dit.head(x, at_zero, out.shape[3:]), clean[:, None, :, None, None]
    assert_near(out * where, expected * where, OUTPUT_LIMIT)


# What the methods change


def changes(dit, values):
    """{recorded output: (site, function)}."""
    last, hidden = dit.config.depth - 1, values["delta.hidden"]
    all_of, groups = values["delta.t"], values["delta.groups"]
    return {
        "delta_t": ("timestep_embedding", steer(dit, all_of[None], all_of)),
        "delta_groups": ("timestep_embedding", steer(dit, groups, values["delta.final"])),
        "hidden_before_final_layer": ("block_output", lambda i, x: x + hidden if i == last else x),
        "hidden_before_head": ("head_input", lambda x: x + hidden),
    }


@needs_opensora13
@each_steered
def test_outputs_with_a_delta(case):
    dit, values = network(), given("forward", f"{case}.")
    made = changes(dit, values)
    recorded = [name.removeprefix("out.") for name in values if name.startswith("out.")]
    assert {"delta_t"} < set(recorded) <= made.keys()
    for name in recorded:
        (site, function), expected = made[name], values[f"out.{name}"]
        assert (expected - values["out"]).abs().max() > 10 * OUTPUT_LIMIT
        with attached(dit, site, function):
            assert_near(dit(**inputs(case)), expected, OUTPUT_LIMIT)
        assert_near(dit(**inputs(case)), values["out"], OUTPUT_LIMIT)


@needs_opensora13
def test_every_delta_and_every_output_with_one_is_read():
    outputs = {name.split(".")[0] for name in tensors("forward") if ".out." in name}
    assert outputs == set(STEERED) and len(STEERED) > 1
    assert MASKED and {*STEERED, *MASKED} <= set(CASES)


@needs_opensora13
@each_steered
def test_a_delta_before_the_head_is_one_added_to_every_output_token(case):
    """Option C of W @ delta: the last map is linear."""
    values, dit = given("forward", f"{case}."), network()
    out, (_, ph, pw) = values["out"], dit.config.patch_size
    added = (dit.final_layer.linear.weight @ values["delta.hidden"]).view(ph, pw, -1)
    rows, columns = -(-out.shape[3] // ph), -(-out.shape[4] // pw)
    tiled = added.permute(2, 0, 1).repeat(1, rows, columns)[None, :, None]
    expected = out + tiled[..., : out.shape[3], : out.shape[4]]
    assert_near(values["out.hidden_before_head"], expected, OUTPUT_LIMIT)


@needs_opensora13
def test_each_part_of_the_modulation_acts():
    """Twelve names: six of the spatial block and six of the temporal one."""
    case = next(iter(CASES))
    dit, seen = network(), {}
    with attached(dit, "modulation", lambda i, m: seen.setdefault(i, m)):
        plain = dit(**inputs(case))
    assert PAIR_MODULATION == tuple(f"{s}_{p}" for s in ("spatial", "temporal") for p in MODULATION)
    assert [tuple(m) for m in seen.values()] == dit.config.depth * [PAIR_MODULATION]
    for part in PAIR_MODULATION:
        change = lambda i, m, part=part: m | {part: m[part] + 0.5} if i == 1 else m  # noqa: E731
        with attached(dit, "modulation", change):
            assert (dit(**inputs(case)) - plain).abs().max() > OUTPUT_LIMIT, part


# Fine-tuning


def predicted_error(dit, name, step):
    """Weighted squared error of a recorded draw."""
    values, told, x0 = tensors("finetune"), RUNS[name], tensors("finetune")["x0"]
    noise, t, y = values["noise"][step], values["t"][step], values["y"]
    more, indices = {}, told["mask_index"]
    if indices is not None:
        mask = torch.zeros_like(x0)
        mask[:, :, indices] = 1
        null = dit.y_embedder.y_embedding.expand_as(y)
        more = {"mask_index": indices, "cond": x0 * mask, "cond_mask": mask, "y_null": null}
    args = given("finetune", "args.", ("fps", "height", "width"))
    out = dit(noisy_latents(x0, noise, t), t, y, values["mask"], **args, **more)
    weights = frame_weights(x0.shape[2], indices or [], told["x_cond_weight"])
    return (weights * (velocity_of(out, x0.shape[1]) - (noise - x0)).square()).mean()


@needs_opensora13
@pytest.mark.parametrize("recompute", [0, 2, 99])
@pytest.mark.parametrize("name", RUNS)
def test_fine_tuning(name, recompute):
    dit, told, values = network().requires_grad_(), RUNS[name], given("finetune", f"{name}.")
    dit.recompute_blocks = recompute
    optimizer = torch.optim.AdamW(
        dit.parameters(), lr=told["lr"], betas=told["betas"], eps=told["eps"],
        weight_decay=told["weight_decay"],
    )  # fmt: skip
    assert told["optimizer"] == "AdamW" and told["steps"] == len(values["losses"])
    gradients = {k.removeprefix("grad0."): g for k, g in values.items() if k.startswith("grad0.")}
    for step in range(told["steps"]):
        loss = predicted_error(dit, name, step)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            for key, expected in gradients.items():
                limit = GRADIENT_LIMIT * expected.abs().max().item()
                assert_near(dit.get_parameter(key).grad, expected, limit)
        norm = torch.nn.utils.clip_grad_norm_(dit.parameters(), told["max_grad_norm"])
        optimizer.step()
        assert loss.item() == pytest.approx(values["losses"][step].item(), rel=LOSS_LIMIT)
        assert norm.item() == pytest.approx(values["grad_norms"][step].item(), rel=GRADIENT_LIMIT)
    last = predicted_error(dit, name, 0).item()
    assert last == pytest.approx(values["loss_first_draw_after"].item(), rel=LOSS_LIMIT)
