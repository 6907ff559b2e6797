"""The method that adapts a predictor: what moves, what it carries from clip to clip, its flags."""

import dataclasses

import pytest
import torch
from vjepa2_oracles import arguments

from common.errors import UsageError
from predictors import ActionConditionedPredictor, modes, presets, rollout, weights
from predictors.adaptation import Adaptation
from predictors.clips import LatentClip
from vjepa_tta import VJEPAAdaptation

TINY = {"img_size": (32, 48), "embed_dim": 6, "predictor_embed_dim": 24, "num_heads": 2}
TINY |= {"action_embed_dim": 3, "depth": 2}
STUDY = {"embed_dim": 1024, "predictor_embed_dim": 384, "action_embed_dim": 2}
FRAMES = 6


@pytest.fixture
def predictor():
    torch.manual_seed(0)
    return ActionConditionedPredictor(**TINY).requires_grad_(False)


def clip_of(seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = (FRAMES, 6, 6), (FRAMES - 1, 3), (FRAMES - 1, 3)
    arrays = (torch.randn(shape, generator=generator) for shape in shapes)
    return LatentClip(f"clip{seed}", "a", "", *arrays)


def bits(predictor):
    return {name: p.detach().clone() for name, p in predictor.named_parameters()}


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one | other)


def adapted(predictor, *flags, seeds=(1,)):
    """Records of the clips, and the weights after them."""
    method = VJEPAAdaptation(predictor, arguments(*flags))
    with method.attached():
        adaptation = Adaptation(method, method.args.grad_clip)
        return [adaptation.adapt(clip_of(seed)) for seed in seeds], bits(predictor)


# What moves


@pytest.mark.parametrize("kinds, expected", [  # of the study's own network, from its fact sheet
    ("layernorm", 37_632),
    ("layernorm+attn_proj", 3_585_792),
    ("layernorm+bias", 123_136),
    ("layernorm+mlp_out", 14_202_624),
])  # fmt: skip
def test_parameters_of_the_studys_network_that_adapt(kinds, expected):
    with torch.device("meta"):
        predictor = ActionConditionedPredictor(**STUDY)
    found = weights.of_kinds(predictor, kinds)
    assert sum(p.numel() for p in found.values()) == expected


MODULES = {
    "layernorm": {"norm1", "norm2", "predictor_norm"},
    "attn_proj": {"proj"},
    "mlp_out": {"fc2"},
}


@pytest.mark.parametrize("kind", MODULES)
def test_kinds_are_of_these_modules(predictor, kind):
    found = weights.of_kinds(predictor, kind)
    assert {name.split(".")[-2] for name in found} == MODULES[kind]
    both = weights.of_kinds(predictor, f"{kind}+bias")
    rest = both.keys() - found.keys()
    assert rest and all(name.endswith(".bias") for name in rest)


def test_the_last_layer_is_the_last_block_and_the_final_norm(predictor):
    found = {name.rpartition(".")[0] for name in weights.of_kinds(predictor, "last_layer")}
    parts = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    assert found == {f"predictor_blocks.1.{part}" for part in parts} | {"predictor_norm"}


@pytest.mark.parametrize("mode", modes.MODES)
@pytest.mark.parametrize("kinds", [*weights.KINDS, "layernorm+attn_proj"])
def test_all_that_was_asked_for_moves_and_nothing_else(predictor, mode, kinds):
    before = bits(predictor)
    (record,), after = adapted(predictor, "--mode", mode, "--adapt", kinds, "--lr", 1e-2)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    unread = {"extrinsics_encoder.bias"}  # by this network, though it has it
    assert moved == weights.of_kinds(predictor, kinds).keys() - unread
    assert not record["diverged"] and equal(bits(predictor), before)


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_each_preset_lowers_the_loss_that_it_learns_on(predictor, preset):
    method = VJEPAAdaptation(predictor, arguments("--preset", preset))
    args, clip = method.args, clip_of(1)

    def loss():
        with torch.no_grad():
            pair = modes.predict(predictor, clip, args.mode, args.context_frames)
        return rollout.errors(*pair)["l1"].mean().item()

    before = loss()
    with method.attached():
        record = Adaptation(method, args.grad_clip).adapt(clip)
        assert loss() < before
    assert loss() == before and len(record["losses"]) == args.steps


def test_steps_of_a_mode(predictor):
    count = FRAMES - 1
    for flags, expected in (
        (("--steps", 3), 3), (("--steps", 0), 0), (("--mode", "jump", "--steps", 2), 2),
        (("--mode", "sequential"), count), (("--mode", "sequential", "--steps", 0), 0),
        (("--mode", "sequential", "--predict-frames", 2), 2),
        (("--mode", "sequential", "--context-frames", 3), count - 2),
        (("--mode", "sequential-jump", "--predict-frames", 3), 3),
    ):  # fmt: skip
        (record,), _ = adapted(predictor, *flags)
        assert len(record["losses"]) == len(record["grad_norms"]) == expected, flags
    assert equal(adapted(predictor, "--steps", 0)[1], bits(predictor))


def test_no_limit_of_the_gradient_is_a_high_one(predictor):
    flags = ("--steps", 3, "--optimizer", "adam", "--grad-clip")
    ((none,), free), ((high,), high_weights) = (adapted(predictor, *flags, x) for x in (0, 1e9))
    ((tight,), held) = adapted(predictor, *flags, 1e-9)
    assert none == high and equal(free, high_weights) and not equal(free, held)
    assert tight["grad_norms"][0] == none["grad_norms"][0] > 1e-3
    assert tight["update_norms"][0] < none["update_norms"][0]


# From clip to clip


def test_what_is_saved_goes_on_as_if_nothing_had_happened(predictor, tmp_path):
    seeds = (1, 2, 3)
    expected, last = adapted(predictor, "--adapt", "layernorm+bias", seeds=seeds)
    method = VJEPAAdaptation(predictor, arguments("--adapt", "layernorm+bias"))
    found = []
    for seed in seeds:
        with method.attached():  # a process of its own, as it were
            adaptation = Adaptation(method, method.args.grad_clip)
            if found:
                adaptation.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
            found.append(adaptation.adapt(clip_of(seed)))
            torch.save(adaptation.state_dict(), tmp_path / "state.pt")
            now = bits(predictor)
    assert found == expected and equal(now, last)


def test_weights_and_optimiser_carry_over_unless_reset(predictor):
    (first, second), _ = adapted(predictor, seeds=(1, 1))
    method = VJEPAAdaptation(predictor, arguments())
    with method.attached():
        adaptation = Adaptation(method, method.args.grad_clip)
        assert adaptation.adapt(clip_of(1)) == first
        adaptation.reset()
        assert adaptation.adapt(clip_of(1)) == first
        adaptation.restart()
        restarted = adaptation.adapt(clip_of(1))
    assert second["losses"][0] == restarted["losses"][0] < first["losses"][-1]
    assert second["update_norms"][0] != restarted["update_norms"][0]


def test_the_untouched_predictor_is_at_hand(predictor):
    before = bits(predictor)
    method = VJEPAAdaptation(predictor, arguments())
    with method.attached():
        adaptation = Adaptation(method)
        adaptation.adapt(clip_of(1))
        after = bits(predictor)
        with pytest.raises(KeyError), adaptation.untouched():
            assert equal(bits(predictor), before)
            raise KeyError
        assert equal(bits(predictor), after) and not equal(after, before)


def test_a_diverged_clip_leaves_no_trace(predictor):
    """Not even in the optimiser: the next clip is adapted to as if it had not been there."""
    endless = dataclasses.replace(clip_of(9), states=torch.full((FRAMES - 1, 3), torch.inf))
    expected, _ = adapted(predictor, seeds=(1, 2))
    method = VJEPAAdaptation(predictor, arguments())
    with method.attached():
        adaptation = Adaptation(method, method.args.grad_clip)
        found = [adaptation.adapt(clip_of(1)), adaptation.adapt(endless)]
        found.append(adaptation.adapt(clip_of(2)))
    nothing = {"losses": [None], "grad_norms": [None], "update_norms": [None]}
    assert found == [expected[0], nothing | {"diverged": True}, expected[1]]


def test_the_predictor_is_put_back_after_an_exception(predictor):
    before = bits(predictor)
    method = VJEPAAdaptation(predictor, arguments("--adapt", "bias"))
    with pytest.raises(KeyError), method.attached():
        Adaptation(method).adapt(clip_of(1))
        raise KeyError
    assert equal(bits(predictor), before)
    assert not any(p.requires_grad or p.grad is not None for p in predictor.parameters())


# Flags


@pytest.mark.parametrize("preset, row", [
    ("conservative", (1, 1e-4, 1.0, "layernorm", "adamw", 0.01, "rollout")),
    ("stronger", (5, 5e-4, 5.0, "layernorm", "adamw", 0.01, "rollout")),
    ("extended", (5, 2e-4, 5.0, "layernorm+attn_proj", "adamw", 0.01, "rollout")),
    ("adajepa", (1, 5e-4, 0.0, "last_layer", "adam", None, "teacher")),
])  # fmt: skip
def test_presets(preset, row):
    names = ("steps", "lr", "grad_clip", "adapt", "optimizer", "weight_decay", "mode")
    args = arguments("--preset", preset)
    assert tuple(getattr(args, name) for name in names) == row
    args = arguments("--preset", preset, "--lr", 0.5, "--steps", 0, "--adapt", "bias")
    assert (args.lr, args.steps, args.adapt) == (0.5, 0, "bias")


@pytest.mark.parametrize("flags, words", [
    ("--adapt layer", "--adapt: must be of layernorm, .*; got layer"),
    ("--adapt layernorm+", "--adapt: must be of layernorm"),
    ("--mode sequential --steps 5", "--steps 5: must be 1, for each frame, or 0 with --mode seq"),
    ("--mode jump --context-frames 2", "--context-frames 2: must be 1 with --mode jump"),
    ("--preset adajepa --context-frames 2", "--context-frames 2: must be 1 with --mode teacher"),
    ("--optimizer adam --weight-decay 0.1", "--weight-decay 0.1: only with --optimizer adamw"),
    ("--grad-clip -1", "--grad-clip: must not be negative, got -1"),
    ("--lr 0", "--lr: must be a positive number"),
    ("--predict-frames 0", "--predict-frames: must be at least 1, got 0"),
    ("--mode jumps", "--mode: invalid choice"),
])  # fmt: skip
def test_wrong_flags_are_one_line(flags, words):
    with pytest.raises(UsageError, match=words) as found:
        arguments(*flags.split())
    assert "\n" not in str(found.value)
