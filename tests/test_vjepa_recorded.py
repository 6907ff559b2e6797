"""The program on the recorded clips gives the recorded losses: what it adds to the method (files,
frames it may see, states that go on) changes nothing."""

import json

import pytest
from safetensors.torch import save_file
from test_vjepa_run import records
from vjepa2_oracles import LOSS_LIMIT, VJEPA2, copied, needs_vjepa2, table, tensors

import vjepa_tta

ROLLOUTS = [
    name
    for name, run in (table("tta/rollout_results") if VJEPA2.is_dir() else {}).items()
    if run["settings"].get("tta_mode") != "sequential" and run["settings"]["loss_exp"] == 1
]
FLAGS = {  # by their names in the recorded settings
    "context_frames": "--context-frames", "tta_adapt_layers": "--adapt", "tta_lr": "--lr",
    "tta_optimizer_type": "--optimizer", "tta_num_adaptation_steps": "--steps",
    "tta_grad_clip": "--grad-clip",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Flags that name the recorded network, and its clips as prepare.features writes them."""
    folder = tmp_path_factory.mktemp("recorded")
    parts = ("tta/rollout_config.json", "tta/rollout_weights.safetensors")
    predictor, rows = copied(folder / "predictor", *parts), ["id"]
    (folder / "clips" / "clips").mkdir(parents=True)
    recorded = tensors("tta/clips")
    for i in range(len(recorded["features"])):
        arrays = {key: recorded[key][i].clone() for key in ("features", "actions", "states")}
        save_file(arrays, folder / "clips" / "clips" / f"k{i}.safetensors")
        rows.append(f"k{i}")
    (folder / "clips" / "manifest.csv").write_text("\n".join(rows))
    return ["--checkpoint", predictor, "--videos", folder / "clips"]


def flags_of(settings, frames):
    given = [x for key, flag in FLAGS.items() if key in settings for x in (flag, settings[key])]
    seen = settings["context_frames"] + settings["T_rollout"]
    seen = "all" if seen >= frames else seen
    carry = 0 if settings.get("tta_reset_per_clip", True) else 1
    steps = [] if settings["tta_enabled"] else ["--steps", 0]
    return [*given, *steps, "--carry-over", carry, "--adapt-frames", seen]


@needs_vjepa2
@pytest.mark.parametrize("name", ROLLOUTS)
def test_recorded_losses(name, data, script, tmp_path):
    run = table("tta/rollout_results")[name]
    frames, out = tensors("tta/clips")["features"].shape[1], ["--out", tmp_path / "out"]
    assert script(vjepa_tta, *data, *flags_of(run["settings"], frames), *out) == 0
    close = {"abs": LOSS_LIMIT, "rel": 0}
    for record, recorded in zip(records(tmp_path / "out"), run["clips"], strict=True):
        assert record["post_adapt_loss"] == pytest.approx(recorded["loss_rollout"], **close)
        steps = list(recorded["per_timestep_losses"].values())
        assert record["post_adapt_loss_per_frame"] == pytest.approx(steps, **close)
        if "tta" in recorded:
            before = recorded["tta"]["pre_adapt_loss"]
            assert record["pre_adapt_loss"] == pytest.approx(before, **close)
    results = json.loads((tmp_path / "out" / "test_results.json").read_text())
    recorded = run["summary"]["rollout_loss"]
    assert results["summary"]["rollout_loss"] == pytest.approx(recorded, **close)
    per_step = {f"test/loss_{k}": x["mean"] for k, x in run["summary"]["per_timestep"].items()}
    assert {k: results["metrics"][k] for k in per_step} == pytest.approx(per_step, **close)
