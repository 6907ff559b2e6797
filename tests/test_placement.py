"""Where weights are, how much is recomputed, and what happens when memory runs out: the numbers
stay the same."""

import gc
import itertools
import weakref
from types import SimpleNamespace

import pytest
import torch
from oracles import arguments, assert_near
from toy import loss_of, new, sample

import backbones
from adasteer import AdaSteer
from backbones.configs import geometry
from backbones.longcat_dit import LongCatVideoTransformer3DModel
from common.adaptation import adapt
from common.errors import UsageError
from common.generation import generate
from common.loss import anchored_loss
from delta_c import DeltaC
from devices import offload, placement
from devices.compiling import compile_blocks
from devices.placement import DoesNotFit, Placement
from full_tta import FullTTA
from last_layer_tta import LastLayer
from lora_tta import LoRA
from norm_tta import NormTTA


@pytest.fixture
def model(toy_checkpoint):
    return backbones.load(toy_checkpoint)


class OnDisk(offload.ModuleGroup):
    """Weights that are away are really away: on disk, and nothing in their place."""

    loaded, most, folder = set(), 0, None

    def __init__(self, modules, *args, **options):
        block = options["parameters"][0]
        super().__init__(
            modules,
            *args,
            **options,
            offload_to_disk_path=str(self.folder),
            group_id=str(id(block)),
        )

    def onload_(self):
        super().onload_()
        OnDisk.loaded.add(self.group_id)
        OnDisk.most = max(OnDisk.most, len(OnDisk.loaded))

    def offload_(self):
        super().offload_()
        OnDisk.loaded.discard(self.group_id)


@pytest.fixture
def on_disk(monkeypatch, tmp_path):
    monkeypatch.setattr(OnDisk, "folder", tmp_path)
    monkeypatch.setattr(OnDisk, "loaded", set())
    monkeypatch.setattr(OnDisk, "most", 0)
    monkeypatch.setattr(offload, "ModuleGroup", OnDisk)


def outcome(method, flags, model, clip):
    """Losses, what was learned, and the sample drawn with it."""
    adapted, args = new(method, flags, model, clip)
    with adapted.attached():
        record = adapt(model, adapted, clip, args)
        latents = sample(model, clip)
    learned = {name: p.detach().clone() for name, p in adapted.named_parameters().items()}
    return record["losses"], learned, latents


def assert_same(ours, plain, limit):
    assert ours[0] == pytest.approx(plain[0], rel=limit)
    for name, value in plain[1].items():
        assert_near(ours[1][name], value, limit)
    assert_near(ours[2], plain[2], limit * plain[2].abs().max().item())


@pytest.mark.parametrize("plan", ["none", "vae", "blocks"])
@pytest.mark.parametrize("recomputed", [0, None])
@pytest.mark.parametrize("method", [AdaSteer, LoRA, NormTTA, FullTTA])
def test_every_plan_gives_the_same_numbers(toy_checkpoint, clip, plan, recomputed, method):
    plain = outcome(method, "", backbones.load(toy_checkpoint), clip)
    model = backbones.load(toy_checkpoint, place=plan)
    model.recompute(recomputed)
    assert_same(outcome(method, "", model, clip), plain, 1e-6)


@pytest.mark.parametrize("method", [AdaSteer, LoRA, NormTTA])
def test_streamed_blocks_come_and_go(on_disk, toy_checkpoint, clip, method):
    """In sampling and in backward at most three of four blocks are there at once, and none stays
    behind but those fetched for what did not follow."""
    plain = outcome(method, "", backbones.load(toy_checkpoint), clip)
    model = backbones.load(toy_checkpoint, place="blocks")
    assert not OnDisk.loaded
    model.recompute(None)
    assert_same(outcome(method, "", model, clip), plain, 1e-6)
    assert 1 < OnDisk.most <= 3


def test_backward_fetches_the_block_before(toy_checkpoint, clip, monkeypatch):
    order = []
    seen = offload.ModuleGroup.onload_

    def onload(group):
        order.append(blocks.index(group.onload_leader))
        seen(group)

    monkeypatch.setattr(offload.ModuleGroup, "onload_", onload)
    model = backbones.load(toy_checkpoint, place="blocks")
    blocks = list(model.dit.blocks)
    model.recompute(None)
    adapted, _ = new(AdaSteer, "", model, clip)
    with adapted.attached():
        loss = loss_of(model, clip)
        assert list(dict.fromkeys(order)) == [0, 1, 2, 3]
        order.clear()
        loss.backward()
    assert list(dict.fromkeys(order)) == [3, 2, 1, 0]


def test_float8_stays_close(toy_checkpoint, clip):
    model = backbones.load(toy_checkpoint, float8=True)
    stored = {name: p.dtype for name, p in model.dit.named_parameters()}
    assert stored["blocks.0.attn.qkv.weight"] == torch.float8_e4m3fn
    assert stored["blocks.0.adaLN_modulation.1.weight"] == torch.float32
    rounded = backbones.load(toy_checkpoint)
    with torch.no_grad():
        for name, weight in rounded.dit.named_parameters():
            if stored[name] == torch.float8_e4m3fn:
                weight.copy_(weight.to(torch.float8_e4m3fn))
    for method in (AdaSteer, LoRA, NormTTA):
        for recomputed in (0, None):
            model.recompute(recomputed)
            ours, plain = (outcome(method, "", m, clip) for m in (model, rounded))
            assert_same(ours, plain, 1e-5)
    exact = sample(backbones.load(toy_checkpoint), clip)
    assert (sample(model, clip) - exact).square().mean() < 0.01 * exact.square().mean()


def run_args(flags=""):
    return arguments(AdaSteer, f"--steps 3 {flags}")


def placed(model, flags=""):
    model.compiled, model.frame_size = False, (32, 48)
    model.placement = Placement(model, run_args(flags))
    model.placement.begin(2)
    return model


def fails(monkeypatch, model, times):
    """The velocity runs out of memory so many times."""
    inner, left = model.velocity, [times]

    def velocity(*given):
        if left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("simulated")
        return inner(*given)

    monkeypatch.setattr(model, "velocity", velocity)


def test_out_of_memory_walks_down_the_plans(model, clip, monkeypatch, capsys):
    plain = outcome(AdaSteer, "", model, clip)
    placed(model)
    fails(monkeypatch, model, 3)
    assert_same(outcome(AdaSteer, "", model, clip), plain, 1e-6)
    assert model.placement.describe() == {
        "offload": "blocks", "recomputed_blocks": 4, "out_of_memory": 3, "compiled": False,
    }  # fmt: skip
    said = [line for line in capsys.readouterr().err.splitlines() if "out of memory" in line]
    assert ["visiting" in line for line in said] == [False, True, True]
    assert "streamed" in said[2] and "4 of 4 blocks recomputed" in said[2]


def test_a_stage_without_a_graph_is_not_helped_by_recomputing(model, clip, monkeypatch):
    placed(model)
    fails(monkeypatch, model, 1)
    with torch.no_grad():
        anchored_loss(model, clip, (0.5,), torch.ones_like(clip.target))
    assert model.placement.describe() == {
        "offload": "vae", "recomputed_blocks": None, "out_of_memory": 1, "compiled": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("method", "flags"), [(LastLayer, ""), (LastLayer, "--site last-modulation"), (DeltaC, "")]
)
def test_a_step_that_runs_no_graph_through_the_blocks(model, clip, method, flags, monkeypatch):
    plain = outcome(method, flags, model, clip)
    placed(model)
    assert_same(outcome(method, flags, model, clip), plain, 1e-6)
    assert model.placement.describe()["recomputed_blocks"] == 0
    fails(monkeypatch, model, 1)
    assert_same(outcome(method, flags, model, clip), plain, 1e-6)
    assert model.placement.describe()["out_of_memory"] == 1


def test_fisher_information_has_a_graph(model, clip, monkeypatch):
    placed(model)
    fails(monkeypatch, model, 1)
    outcome(FullTTA, "--ewc 1", model, clip)
    found = model.placement.describe()
    assert (found["offload"], found["out_of_memory"]) == ("none", 1)


def test_streamed_blocks_are_not_compiled(model, clip, monkeypatch, capsys):
    """A compiled graph would keep the weights that are taken from under it."""
    plain = outcome(AdaSteer, "", model, clip)
    placed(model)
    compile_blocks(model, "eager")
    model.compiled = True
    fails(monkeypatch, model, 3)
    assert_same(outcome(AdaSteer, "", model, clip), plain, 1e-5)
    assert model.placement.describe()["offload"] == "blocks" and not model.compiled
    assert all(block._compiled_call_impl is None for block in model.dit.blocks)
    assert "--compile: not with streamed blocks" in capsys.readouterr().err
    torch._dynamo.reset()


@pytest.mark.parametrize("flags", ["--weights fp8", "--offload blocks"])
def test_compiled_blocks_keep_their_weights(toy_checkpoint, flags):
    with pytest.raises(UsageError, match=f"--compile: not together with {flags}"):
        arguments(AdaSteer, f"--compile {flags} --device cpu --checkpoint {toy_checkpoint}")


def test_what_is_learned_cannot_be_streamed(model, clip, monkeypatch):
    """All weights of full_tta.py: there would be nothing left to take away."""
    placed(model)
    fails(monkeypatch, model, 3)
    with pytest.raises(DoesNotFit, match="out of memory"):
        outcome(FullTTA, "", model, clip)
    assert model.placement.describe()["offload"] == "vae"


class Watched(torch.autograd.Function):
    """Leaves an object in the graph by which one sees whether the graph is still there."""

    left = []

    class Held:
        pass

    @staticmethod
    def forward(ctx, x):
        ctx.held = Watched.Held()
        Watched.left.append(weakref.ref(ctx.held))
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def test_a_measured_graph_that_is_never_run_is_freed(model, clip):
    """Out of memory behind the forward, or a loss that is not finite."""
    adapted, _ = new(AdaSteer, "", model, clip)
    with adapted.attached(), model.block_output(lambda i, x: Watched.apply(x)):
        with placement.SavedBytes(model.dit):
            loss = loss_of(model, clip)
        assert len(Watched.left) == model.depth and all(ref() for ref in Watched.left)
        del loss
        gc.collect()
    assert not any(ref() for ref in Watched.left)


def test_no_plan_is_left(model, clip, monkeypatch):
    placed(model)
    fails(monkeypatch, model, 4)
    with pytest.raises(DoesNotFit, match=r"out of memory.*--draws.*simulated"):
        outcome(AdaSteer, "", model, clip)


def test_what_the_user_fixed_stays(model, clip, monkeypatch):
    placed(model, "--offload vae --checkpointing 1")
    assert model.placement.describe()["recomputed_blocks"] == 1
    fails(monkeypatch, model, 1)
    with pytest.raises(DoesNotFit, match="out of memory"):
        outcome(AdaSteer, "", model, clip)


@pytest.mark.parametrize(("blocks_free", "recomputed"), [(0.5, 2), (1.5, 1), (2.5, 0), (100, 0)])
def test_as_few_blocks_are_recomputed_as_memory_needs(
    model, clip, monkeypatch, blocks_free, recomputed
):
    totals = []
    for kept in (3, 2):
        model.recompute(kept)
        adapted, args = new(AdaSteer, "", model, clip)
        with adapted.attached(), placement.SavedBytes(model.dit) as saved:
            loss_of(model, clip)
        totals.append(saved.total)
    block = totals[1] - totals[0]
    monkeypatch.setattr(placement, "free_bytes", lambda device: int(blocks_free * block))
    placed(model)
    with adapted.attached():
        adapt(model, adapted, clip, args)
    assert model.placement.describe()["recomputed_blocks"] == recomputed
    assert model.dit.recompute_blocks == recomputed


def test_what_a_block_keeps_is_counted(model, clip):
    """Every block more that is kept is as many bytes more; the first has no graph of its input."""
    totals = []
    for recomputed in (3, 2, 1, 0):
        model.recompute(recomputed)
        saved = placement.SavedBytes(model.dit)
        adapted, _ = new(AdaSteer, "", model, clip)
        with adapted.attached(), saved:
            loss_of(model, clip)
        totals.append(saved.total)
    steps = [b - a for a, b in itertools.pairwise(totals)]
    assert steps[0] > 0 and steps[0] == steps[1] == pytest.approx(steps[2], rel=0.2)


@pytest.mark.parametrize(
    ("gigabytes", "plan"), [(139, "none"), (36.4, "vae"), (30, "blocks"), (22, "blocks")]
)
def test_plan_for_the_released_size(monkeypatch, gigabytes, plan):
    with torch.device("meta"):
        dit = LongCatVideoTransformer3DModel().to(torch.bfloat16)
    model = SimpleNamespace(
        dit=dit, vae=torch.nn.Linear(1000, 127_000), device=torch.device("cuda"), depth=48,
        frame_size=(480, 832), hidden_width=4096, geometry=geometry({}, 16),
        tokens_per_latent=lambda height, width: height * width // 16**2,
    )  # fmt: skip
    monkeypatch.setattr(placement, "free_bytes", lambda device: int(gigabytes * 1e9))
    assert placement.choose(model, run_args()) == plan


def test_float32_is_planned_with_twice_the_memory():
    bf16, fp32 = (run_args(f"--weights {weights}") for weights in ("bf16", "fp32"))
    sizes = [placement.working_bytes(args, geometry({}, 16), 1560) for args in (bf16, fp32)]
    assert sizes[1] == 2 * sizes[0] > 0


def test_generation_out_of_memory(model, clip, monkeypatch):
    placed(model, "--checkpointing none")
    inner, left = model.generate, [1]

    def once(*given, **more):
        if left.pop() if left else 0:
            raise torch.OutOfMemoryError("simulated")
        return inner(*given, **more)

    monkeypatch.setattr(model, "generate", once)
    window = SimpleNamespace(new_latents=2, cond_frames=5, gen_frames=6)
    given = SimpleNamespace(**vars(clip) | {"window": window})
    record, args = {}, run_args("--sampling-steps 2")
    frames = generate(model, given, args, record)
    assert frames.shape == (1, 6, 3, 32, 48) and record["generate_seconds"] > 0
    assert model.placement.describe()["offload"] == "vae"
    assert torch.equal(frames, generate(model, given, args, {}))
