"""Every method on every backbone from the command line, and what may change no number there."""

import importlib
import json

import pytest
from backbone_rows import BACKBONES, OTHERS
from oracles import SHARED
from test_cogvideox_files import make_newer
from test_scripts import SCRIPTS

import adasteer
import backbones

CLIPS = SHARED / "clips" / "metadata.csv"
pytestmark = pytest.mark.skipif(not CLIPS.is_file(), reason=f"no real clips at {SHARED}")


def records_of(folder):
    return [json.loads(path.read_text()) for path in (folder / "videos").glob("*.json")]


@pytest.mark.parametrize("model", [
    name if name == "MMDiT" else pytest.param(name, marks=pytest.mark.slow) for name in OTHERS
])  # fmt: skip
@pytest.mark.parametrize("name", SCRIPTS)
def test_every_method_from_the_command_line(name, model, checkpoint_of, script, tmp_path):
    """The columns of the README's table of methods but the first, which is in test_scripts.py."""
    row = BACKBONES[model]
    flags = ["--checkpoint", checkpoint_of(model), "--videos", CLIPS, "--limit", row.clips]
    flags += ["--steps", 2, "--sampling-steps", 2, "--future-draws", 1, "--save-adapter"]
    flags += ["--sampling", row.sampling] if row.sampling else []
    assert script(importlib.import_module(name), *flags, "--out", tmp_path) == 0
    records = records_of(tmp_path)
    assert len(records) == row.clips
    for record in records:
        assert record["kept"] == "adapted" and len(record["losses"]) == 2
        assert record["preflight"]["loss"] < record["preflight"]["zero_loss"]
        assert record["frame_indices"].items() >= row.frames.items() and record["psnr_db"] > 0
        assert record["future_loss"] != record["future_loss_before"]


WAYS = {
    "plain": ["--checkpointing", "none"],
    "recomputed": ["--checkpointing", "all", "--offload", "vae"],
    "streamed": ["--checkpointing", "auto", "--offload", "blocks"],
}
# two kinds of blocks. The others are slow: three runs each, of what test_contract.py says of the
# model's functions
FAST = ("MMDiT",)


@pytest.mark.parametrize("model", [
    name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in OTHERS
])  # fmt: skip
def test_memory_and_time_are_traded_without_a_number_changing(
    model, checkpoint_of, script, tmp_path
):
    """Of CogVideoX 1.5, whose window of 13 frames is 4 latents."""
    more, checkpoint = [], checkpoint_of(model)
    if model == "CogVideoXTransformer3DModel":
        checkpoint = make_newer(tmp_path / "CogVideoX1.5-5B-I2V")
        more = ["--stop-every", 1, "--no-preflight"]
    flags = ["--checkpoint", checkpoint, "--videos", CLIPS, "--limit", 1, "--steps", 2, *more]
    flags += ["--draws", 2, "--groups", 2, "--sampling-steps", 2]
    records = []
    for name, way in WAYS.items():
        assert script(adasteer, *flags, *way, "--out", tmp_path / name) == 0
        records += records_of(tmp_path / name)
    assert len(records) == len(WAYS)
    for key in ("losses", "future_loss", "psnr_db_per_frame", "norms"):
        assert all(record[key] == records[0][key] for record in records)
    placed = [(r["placement"]["offload"], r["placement"]["recomputed_blocks"]) for r in records]
    depth = backbones.geometry(checkpoint).depth
    assert placed == [("none", 0), ("vae", depth), ("blocks", depth)]
