"""The bundled predictor, its demo clips and the script that trained it."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from nano import train_vjepa
from nano.action_clips import DEMO_GAIN, UNIT, UNSEEN, clip, walk
from predictors import load_predictor, modes, rollout
from predictors.clips import LatentClip, read_clips
from predictors.encoder import encode, load_encoder
from runs.identity import ROOT

NANO, DEMO = ROOT / "nano" / "vjepa", ROOT / "nano" / "demo_vjepa"


def test_the_same_seed_is_the_same_clip_and_a_scene_may_be_shared():
    pictures, actions = clip(5)
    again, same = clip(5)
    assert torch.equal(pictures, again) and torch.equal(actions, same)
    assert pictures.shape == (8, 3, 32, 32) and actions.shape == (7, 2)
    assert 0 <= pictures.min() and pictures.max() <= 1
    shared = clip(6, scene=9)[0].median(0).values - clip(7, scene=9)[0].median(0).values
    other = clip(6, scene=9)[0].median(0).values - clip(7, scene=10)[0].median(0).values
    assert (shared == 0).float().mean() > 0.5 > (other == 0).float().mean()


@pytest.mark.parametrize("gain", [1.0, DEMO_GAIN])
def test_the_sprite_moves_by_gain_times_the_action(gain):
    for seed in range(20):
        places, actions = walk(np.random.default_rng(seed), 8, gain, 5.0)
        torch.testing.assert_close(places.diff(dim=0), gain * UNIT * actions, atol=1e-4, rtol=0)


def test_the_demo_is_what_the_generator_gives():
    entries = read_clips(DEMO)
    assert len(entries) >= 24 and len({entry.source for entry in entries}) >= 6
    assert sum(path.stat().st_size for path in DEMO.rglob("*.*")) < 2e6
    predictor = load_predictor(NANO)
    read = [entry.read(predictor.patches, predictor.embed_dim, 2) for entry in entries]
    assert {one.category for one in read} == {f"gain {DEMO_GAIN}"}
    pictures, actions = clip(UNSEEN + 101, gain=DEMO_GAIN, scene=UNSEEN + 100)
    (stored,) = [one for one in read if one.id == "scene_1_1"]
    assert torch.equal(stored.actions, actions) and not stored.states.any()
    features = encode(load_encoder(NANO / "encoder"), pictures)
    torch.testing.assert_close(stored.features, features, atol=5e-3, rtol=2e-3)


def error(predictor, one):
    """Mean of the rollout from one frame, and of repeating that frame."""
    with torch.no_grad():
        made, true = modes.predict(predictor, one, "rollout")
    repeated = rollout.normalise(one.features[:1]).expand_as(true)
    return [rollout.errors(x, true)["l1"].mean().item() for x in (made, repeated)]


def test_the_predictor_knows_its_own_world_better_than_the_demos():
    predictor, encoder = load_predictor(NANO), load_encoder(NANO / "encoder")
    own = []
    for seed in range(UNSEEN + 5000, UNSEEN + 5012):
        pictures, actions = clip(seed)
        one = LatentClip("x", "x", "", encode(encoder, pictures), actions, 0 * actions)
        own.append(error(predictor, one))
    demo = [error(predictor, entry.read()) for entry in read_clips(DEMO)[::3]]
    (made, repeated), (shifted, still) = torch.tensor(own).mean(0), torch.tensor(demo).mean(0)
    assert made < 0.65 * repeated and shifted > 1.2 * made and shifted < still


def trained(monkeypatch, folder):
    flags = ["--steps", 4, "--encoder-steps", 2, "--clips", 20]
    flags += ["--work", folder / "work", "--out", folder / "out"]
    monkeypatch.setattr("sys.argv", ["train_vjepa", *map(str, flags)])
    train_vjepa.main()
    return load_file(folder / "out" / "weights.safetensors")


def test_an_interrupted_training_ends_with_the_same_weights(monkeypatch, tmp_path):
    monkeypatch.setattr(train_vjepa, "SAVE_EVERY", 2)
    whole = trained(monkeypatch, tmp_path / "whole")
    predictor = load_predictor(tmp_path / "whole" / "out")
    encoder = load_encoder(tmp_path / "whole" / "out" / "encoder")
    assert predictor.embed_dim == encoder.config.hidden_size
    update, done = train_vjepa.update, []

    def interrupted(*step):
        done.append(1)
        if len(done) == 6:  # two of the encoder, the fourth of the predictor
            raise KeyboardInterrupt
        update(*step)

    monkeypatch.setattr(train_vjepa, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained(monkeypatch, tmp_path / "cut")
    resumed = trained(monkeypatch, tmp_path / "cut")
    assert len(done) == 8  # two steps were in the state
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_a_work_folder_belongs_to_one_training(monkeypatch, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "settings.json").write_text('{"steps": 9}')
    with pytest.raises(SystemExit, match="holds a training with"):
        trained(monkeypatch, tmp_path)
