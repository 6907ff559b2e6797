"""Weights of every model shared out over two processes: the steps and samples of one, by methods
that learn all of them and by those that add to them."""

import pytest
import torch
from backbone_rows import BACKBONES
from sharded import run
from test_run import ROOT
from tuned import METHODS, tuned

import backbones
from backbones import parts

MAKES = [row.make for row in BACKBONES.values()]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """{make: checkpoint}."""
    folder = tmp_path_factory.mktemp("models")
    return {make: make(folder / make.__name__) for make in MAKES}


@pytest.fixture(scope="module")
def found(made, tmp_path_factory):
    """[of each process {checkpoint: {method: outcome}}]."""
    folder = tmp_path_factory.mktemp("out")
    run(2, ROOT / "tests" / "tuned.py", folder, *made.values())
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", BACKBONES)
def test_a_transformer_whose_weights_another_process_reads(name, checkpoint_of):
    """It has the names and shapes of one that has weights."""
    whole = backbones.load(checkpoint_of(name)).dit
    with parts.without_weights():
        model = backbones.load(checkpoint_of(name), place=None)
    assert all(p.is_meta and not p.requires_grad for p in model.dit.parameters())
    assert not any(part.is_meta for part in (*model.dit.buffers(), *model.vae.parameters()))
    for kind in ("named_parameters", "named_buffers"):
        found, expected = (
            {name: part.shape for name, part in getattr(dit, kind)()} for dit in (model.dit, whole)
        )
        assert found == expected


@pytest.mark.slow  # every model is tuned by six methods, in three processes
@pytest.mark.parametrize("make", MAKES, ids=lambda make: make.__name__)
def test_two_processes_learn_what_one_does(make, made, found):
    alone = tuned(made[make])
    assert METHODS.keys() < alone.keys()
    for method, expected in alone.items():
        for process in found:
            theirs = process[str(made[make])][method]
            assert theirs.keys() == expected.keys()
            for name, value in expected.items():
                if name.endswith("norm_k.bias"):  # softmax does not see it: Adam learns rounding
                    continue
                assert torch.allclose(theirs[name], value, rtol=1e-5, atol=1e-5), (method, name)
