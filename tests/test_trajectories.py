"""Every method's steps, group tables and parameter counts against recorded numbers."""

import re
from types import SimpleNamespace

import pytest
import torch
from oracles import (
    FILES,
    LIMIT,
    LOSS_LIMIT,
    METHODS,
    RECORDED,
    TRAJECTORIES,
    arguments,
    assert_near,
    entries,
    model_of,
    needs_oracles,
    oracle_clip,
    oracle_draws,
    oracle_method,
    recorded,
    states,
    table,
    tensors,
)

from adasteer import AdaSteer
from backbones.longcat import LongCat
from backbones.longcat_dit import LongCatVideoTransformer3DModel
from common.adaptation import adapt
from common.loss import Problem, anchored_loss, flow_matching_loss
from film_tta import FiLM
from lora_tta import PREFIX

pytestmark = needs_oracles
each_trajectory = pytest.mark.parametrize(
    "entry", TRAJECTORIES, ids=lambda e: f"{e['name']}-{e['target_sign']}"
)
each_file = pytest.mark.parametrize("file", FILES)


def oracle_anchor(model, file):
    clip, noise = oracle_clip(file), tensors(file)["anchor_noise"][:, 0]
    problem = Problem(clip.context, clip.held_out, clip.text)
    return anchored_loss(model, problem, table(file)["anchor"]["sigmas"], noise)


def test_every_recorded_trajectory_is_compared():
    """But for LoRA split over the parts of a fused projection, which is not built here."""
    left_out = {entry["name"] for entry in RECORDED} - {entry["name"] for entry in TRAJECTORIES}
    assert all(name.startswith("lora_split") for name in left_out)
    assert all(entry["target_sign"] in ("consistent", "reference") for entry in RECORDED)


@pytest.mark.parametrize("recompute", [0, None])
@each_trajectory
def test_trajectory(entry, recompute):
    name, file = entry["name"], entry["file"]
    model = model_of(entry["target_sign"], file)
    model.recompute(recompute)
    method, args = oracle_method(model, entry)
    method.draws = lambda: oracle_draws(tensors(file), oracle_clip(file))
    parameters, seen = method.named_parameters(), []

    def keep(line):  # called after every update
        seen.append({key: p.detach().clone() for key, p in parameters.items()})

    with method.attached():
        before = oracle_anchor(model, file)
        record = adapt(model, method, oracle_clip(file), args, show=keep)
        after = oracle_anchor(model, file)
    model.recompute(0)
    assert abs(before - entry.get("anchor_loss_before", before)) < LOSS_LIMIT
    assert abs(after - entry["anchor_loss_after"]) < LOSS_LIMIT
    assert_near(torch.tensor(record["losses"]), torch.tensor(entry["losses"]), LOSS_LIMIT)
    assert len(record["losses"]) == table(file)["steps"]
    # Adam magnifies rounding where a gradient nearly vanishes, by up to its rate
    limit = 0.1 * args.lr if name.startswith("lora") else LIMIT
    compare_states(model, entry, seen, limit)
    assert record["adapted_parameters"] == entry["num_trainable_parameters"]
    if isinstance(entry["target_modules"], list):
        names = {re.sub(r"\.lora_[AB]\.weight", "", n.removeprefix(PREFIX)) for n in parameters}
        assert names == set(entry["target_modules"])
    compare_moves(model, entry, parameters)


def compare_states(model, entry, seen, limit):
    """All recorded states: those after each step, or the one after the last."""
    names = states(entry)
    for name, found in zip(names, seen[-len(names) :], strict=True):
        expected = recorded(model, entry, name)
        assert expected and expected.keys() <= found.keys()
        for key, value in expected.items():
            actual = found[key]
            assert_near(actual, value[: len(actual)], limit)
            assert not value[len(actual) :].any()


def compare_moves(model, entry, parameters):
    """How far each weight went, as L2, with what rounding adds to each of its values."""
    for key, moved in entry.get("update_l2_per_parameter", {}).items():
        start = model.dit.get_parameter(key)
        distance = (parameters[key].detach() - start).double().norm().item()
        rounding = 2**-24 * start.double().norm().item()
        assert distance == pytest.approx(moved, rel=1e-3, abs=rounding)


STEERED = [e for e in TRAJECTORIES if f"{e['name']}.{e['target_sign']}.grad_step1" in tensors(
    e["file"]
)]  # fmt: skip


@pytest.mark.parametrize("entry", STEERED, ids=lambda e: f"{e['name']}-{e['target_sign']}")
def test_first_gradient(entry):
    name, sign, values = entry["name"], entry["target_sign"], tensors(entry["file"])
    model, clip = model_of(sign, entry["file"]), oracle_clip(entry["file"])
    method, _ = oracle_method(model, entry)
    with method.attached():
        flow_matching_loss(model, clip, values["sigma"][:1], values["noise"][0]).backward()
    expected = values[f"{name}.{sign}.grad_step1"].reshape(len(method.delta), -1)
    for vector, value in zip(method.delta, expected, strict=True):
        actual = torch.zeros_like(vector) if vector.grad is None else vector.grad
        assert_near(actual, value[: len(actual)], LOSS_LIMIT)
        assert not value[len(actual) :].any()
    unused = [g for g, vector in enumerate(method.delta) if vector.grad is None]
    assert unused == entry.get("groups_without_gradient", [])


@each_file
def test_inputs_are_the_same_in_both_files(file):
    for key in table(file)["inputs"].keys() | {"prompt_embeds", "prompt_mask"}:
        assert torch.equal(tensors(file)[key], tensors(FILES[0])[key])


def blocks_of(method, depth, kind):
    """Which group each block meets, read off what the method adds there."""
    for g, vector in enumerate(method.named_parameters().values()):
        vector.data.fill_(g + 1)
    if kind == "delta_b":
        added = [method.steer(i, torch.zeros(1, 1, 1), None) for i in range(depth)]
    else:
        zero = {"attn.shift": torch.zeros(1, 1, 1)}
        added = [method.correct(i, zero)["attn.shift"] for i in range(depth)]
    return [int(value.flatten()[0]) - 1 for value in added]


ROWS = [row | {"file": file} for file in FILES for row in entries(file, "group_tables")]


@pytest.mark.parametrize(
    "row", ROWS, ids=lambda r: f"{r['file']}-{r['num_groups']}-of-{r['depth']}"
)
def test_group_tables(row):
    """Ours is floor(i * G / L) for both; the draft's of Delta-B is another where G does not divide
    L, and may leave vectors unused."""
    depth, groups = row["depth"], row["num_groups"]
    model = SimpleNamespace(
        depth=depth, embedding_width=1, hidden_width=1, device="cpu",
        stacks=(tuple(f"blocks.{i}" for i in range(depth)),), modulation_parts=("attn.shift",),
    )  # fmt: skip
    found = {
        kind: blocks_of(cls(model, None, arguments(cls, f"--groups {groups}")), depth, kind)
        for kind, cls in (("delta_b", AdaSteer), ("film", FiLM))
    }
    assert found["film"] == found["delta_b"] == row["film"]
    if depth % groups == 0:
        assert found["delta_b"] == row["delta_b"] and not row["delta_b_unused_groups"]
    assert row["delta_b"] == [min(i // -(-depth // groups), groups - 1) for i in range(depth)]
    assert row["delta_b_unused_groups"] == sorted(set(range(groups)) - set(row["delta_b"]))


@pytest.fixture(scope="module")
def full_scale():
    """The model whose parameter counts are recorded, without memory."""
    with torch.device("meta"):
        config = table(FILES[0])["full_scale_parameter_counts"]["config"]
        return LongCat(LongCatVideoTransformer3DModel(**config))


COUNTED = {
    "delta_a": "--final-layer", "delta_b_per_group": "", "delta_c": "",
    "norm_cross_attn_norm": "--norms cross", "norm_qk_norm": "--norms qk",
    "norm_all_norm": "--norms all", "film_full_per_group": "--mode full",
    "film_shift_scale_per_group": "--mode shift-scale", "film_scale_only_per_group": "--mode scale",
}  # fmt: skip


@each_file
def test_counts_at_full_scale(full_scale, file):
    empty = torch.empty(1, 16, 1, 2, 2, device="meta")
    clip = SimpleNamespace(context=empty, target=empty, seed=1, video=SimpleNamespace(id="any"))
    counts = dict(table(file)["full_scale_parameter_counts"])
    assert counts.pop("config")["depth"] == full_scale.depth
    assert counts.pop("dit_total") == sum(p.numel() for p in full_scale.dit.parameters())
    for key, count in counts.items():
        if key.startswith("lora_split"):  # not built here
            continue
        rank = re.search(r"(?<=^lora_r)\d+", key)
        flags = f"--rank {rank[0]}" if rank else COUNTED.get(key, "")
        kind = key.removeprefix("modules_")
        (cls,) = {c for prefix, c in METHODS.items() if kind.startswith(prefix)}
        parameters = cls(full_scale, clip, arguments(cls, flags)).named_parameters()
        if key.startswith("modules_"):
            assert len(parameters) == 2 * count
        else:
            assert sum(p.numel() for p in parameters.values()) == count, key
