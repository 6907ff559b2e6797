"""What must be true of every backbone. A new one joins as a row of backbone_rows.py."""

import contextlib
import importlib
import itertools

import pytest
import torch
from backbone_rows import BACKBONES
from oracles import assert_near
from test_methods import CASES
from toy import asked_at, copies, loss_of, new, sample, toy_clip, windowed

import backbones
from adasteer import AdaSteer
from backbones import contract
from common.adaptation import adapt
from common.generation import generate
from common.loss import all_sigmas
from devices.paths import all_paths
from film_tta import FiLM

LIMIT = 1e-4  # of the velocity of an exact network


def names_of(protocol):
    return {n for n in {*protocol.__annotations__, *vars(protocol)} if not n.startswith("_")}


NAMES = names_of(contract.Backbone)


class Only:
    """A model of which nothing but the contract's names can be read."""

    def __init__(self, model):
        self._model = model

    def __getattr__(self, name):
        if name not in NAMES:
            raise AttributeError(f"{name} is not in the contract")
        return getattr(self._model, name)


@pytest.fixture(scope="module", params=BACKBONES)
def row(request):
    return BACKBONES[request.param]


@pytest.fixture(scope="module")
def checkpoint(row, tmp_path_factory):
    return row.make(tmp_path_factory.mktemp("contract") / "checkpoint")


@pytest.fixture
def model(checkpoint):
    return backbones.load(checkpoint)


@pytest.fixture(scope="module")
def clip(checkpoint):
    return toy_clip(backbones.load(checkpoint))


def test_every_backbone_is_a_row():
    assert BACKBONES.keys() == backbones.BACKBONES.keys() == backbones.GEOMETRIES.keys()


def test_it_has_every_name(model):
    assert [name for name in NAMES if not hasattr(model, name)] == []
    assert [n for n in names_of(contract.Geometry) if not hasattr(model.geometry, n)] == []
    assert model.depth == sum(map(len, model.stacks)) > 1


def test_it_is_loaded_by_what_the_contract_says(checkpoint, monkeypatch):
    module, _, name = backbones.BACKBONES[backbones.class_of(checkpoint)[0]].partition(":")
    own = getattr(importlib.import_module(module), name)
    monkeypatch.setattr(f"{module}.{name}", Only(own))
    assert isinstance(backbones.load(checkpoint), own)


def test_its_geometry_is_read_without_weights(model, checkpoint, monkeypatch):
    monkeypatch.setitem(backbones.BACKBONES, model.geometry.class_name, None)
    assert backbones.geometry(checkpoint) == model.geometry
    for name in ("stacks", "depth", "embedding_width", "hidden_width"):
        assert getattr(model.geometry, name) == getattr(model, name)


def test_frames_and_latents_go_forth_and_back(model):
    geometry, lossless = model.geometry, {}
    for latents in range(1, 40):
        frames = geometry.frames_of(latents)
        with contextlib.suppress(ValueError):
            whole = geometry.latents_of(frames)
            assert whole == latents or geometry.frames_of(latents + 1) == frames
            lossless[frames] = whole
    counts = {0: 0} | {whole: frames for frames, whole in lossless.items()}
    for frames in range(-1, geometry.frames_of(30)):
        if frames in lossless:
            assert geometry.latents_of(frames) == lossless[frames]
        else:
            near = min(lossless, key=lambda count: abs(count - frames))
            with pytest.raises(ValueError, match=rf"got {frames}: .*\b{near}\b"):
                geometry.latents_of(frames)
        filled, covering = geometry.latents_filled(frames), geometry.latents_covering(frames)
        assert filled == max(n for n, needed in counts.items() if needed <= max(0, frames))
        assert covering == min(n for n, held in counts.items() if held >= frames)


def test_its_own_window_fits(model):
    geometry, window = model.geometry, model.geometry.window
    seen = geometry.latents_of(window["tta_frames"])
    known = geometry.latents_of(window["cond_frames"])
    assert max(window["tta_frames"], window["cond_frames"]) <= window["anchor"]
    assert 0 < window["context_latents"] < seen and window["gen_frames"] > 0
    if geometry.context_lengths is not None:
        assert {known, window["context_latents"]} <= {*geometry.context_lengths}
    assert all(side % geometry.size_multiple == 0 for side in geometry.size)


def test_pixels_go_forth_and_back(model):
    height, width = model.geometry.size
    frames = torch.rand(1, 3, model.geometry.window["cond_frames"], height, width)
    latents = model.encode(frames)
    assert latents.dtype == torch.float32
    expected = (1, model.latent_channels, model.geometry.latents_of(frames.shape[2]))
    assert latents.shape[:3] == expected
    again = model.decode(latents)
    assert again.shape == frames.shape and 0 <= again.min() and again.max() <= 1
    with pytest.raises(ValueError, match=r"\d"):
        model.encode(frames[:, :, :-1])


def test_an_exact_network_gives_noise_minus_latents(row, model, clip):
    noise = torch.randn(3, *clip.target.shape[1:])
    for sigma in (torch.tensor([0.1, 0.5, 1.0]), torch.full((3,), 0.03)):
        weight = sigma.view(-1, 1, 1, 1, 1)
        noisy = (1 - weight) * clip.target + weight * noise
        with row.answers(model, clip.target):
            found = model.velocity(noisy, sigma, clip.context, clip.text)
            cache = model.context_cache(clip.context)
            again = model.velocity(noisy, sigma, clip.context, clip.text, cache)
        assert found.dtype == torch.float32
        assert_near(found, noise - clip.target, LIMIT)
        assert_near(again, noise - clip.target, LIMIT)


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_sampling_with_an_exact_network_returns_the_clip(row, model, clip, guidance_scale):
    """And each branch that a method sees has the canonical sign, away from the clip."""
    branches = []
    with (
        row.answers(model, clip.target),
        model.predicted_velocity(lambda v: branches.append(v) or v),
    ):
        found = sample(model, clip, guidance_scale=guidance_scale)
    assert_near(found, clip.target, LIMIT)
    noise = torch.linspace(-2, 2, clip.target.numel()).view_as(clip.target)  # as in toy.py
    assert_near(branches[0][:1], noise - clip.target, LIMIT)


def passes(model, seen):
    """All sites with functions that change nothing; `seen` gets what they were given."""
    stack = contextlib.ExitStack()

    def keep(site):
        def function(*given):
            seen.append((site, *given))
            return given[0] if len(given) == 1 else given[1]

        return function

    for site in CHANGES:
        stack.enter_context(getattr(model, site)(keep(site)))
    return stack


def test_sites_at_identity_are_bit_exact_and_see_what_they_should(model, clip):
    plain, plain_sample, seen = loss_of(model, clip), sample(model, clip), []
    with passes(model, seen):
        assert torch.equal(loss_of(model, clip), plain)
        once = list(seen)
        assert torch.equal(sample(model, clip), plain_sample)
    blocks, of = list(range(model.depth)), {}
    for site, *given in once:
        of.setdefault(site, []).append(given)
    assert [i for i, *_ in of["timestep_embedding"]] == [*blocks, model.depth]
    assert [i for i, _ in of["modulation"]] == [i for i, _ in of["block_output"]] == blocks
    assert all(e.shape[-1] == model.embedding_width for _, e, _ in of["timestep_embedding"])
    assert all(e.shape[:-1] == sigma.shape for _, e, sigma in of["timestep_embedding"])
    for _, m in of["modulation"]:
        assert [*m] == [*model.modulation_parts]
        assert {part.shape[-1] for part in m.values()} == {model.hidden_width}
    assert all(x.shape[-1] == model.hidden_width for _, x in of["block_output"])
    ((first, x),) = of["block_input"]
    assert first == 0 and x.shape == of["block_output"][0][1].shape
    assert [v.shape for (v,) in of["predicted_velocity"]] == [clip.target.shape]


CHANGES = {
    "block_input": lambda i, x: x + torch.linspace(0, 1, x.shape[-1], dtype=x.dtype),
    "timestep_embedding": lambda i, e, sigma: e + 0.5,
    "modulation": lambda i, m: {name: part + 0.5 for name, part in m.items()},
    "block_output": lambda i, x: x + torch.linspace(0, 1, x.shape[-1], dtype=x.dtype),
    "predicted_velocity": lambda v: v + 0.5,
}


@pytest.mark.parametrize("site", CHANGES)
def test_a_site_acts_in_training_and_sampling_and_is_empty_after_an_exception(model, clip, site):
    plain, plain_sample = loss_of(model, clip), sample(model, clip)
    with pytest.raises(KeyError), getattr(model, site)(CHANGES[site]):
        assert not torch.equal(loss_of(model, clip), plain)
        for guidance_scale in (1.0, 4.0):
            changed = sample(model, clip, guidance_scale=guidance_scale)
            assert (changed - plain_sample).abs().max() > 1e-3
        raise KeyError
    assert torch.equal(loss_of(model, clip), plain)
    assert torch.equal(sample(model, clip), plain_sample)


def test_each_part_of_the_modulation_acts(model, clip):
    plain = loss_of(model, clip)
    for part in model.modulation_parts:
        with model.modulation(lambda i, m, part=part: m | {part: m[part] + 0.5}):
            assert not torch.equal(loss_of(model, clip), plain)


@pytest.mark.parametrize(
    ("method", "flags"), [(AdaSteer, "--groups 2"), (FiLM, ""), (AdaSteer, "--target hidden")]
)
def test_recomputed_blocks_meet_the_sites(model, clip, method, flags):
    gradients = []
    for blocks in (0, 1, None):
        model.recompute(blocks)
        adapted, _ = new(method, flags, model, clip)
        with adapted.attached():
            loss = loss_of(model, clip)
        loss.backward()  # after the site is empty again
        gradients.append([p.grad for p in adapted.named_parameters().values()])
    for found in gradients:
        assert all(g.any() for g in found)
        assert all(torch.equal(a, b) for a, b in zip(found, gradients[0], strict=True))


@pytest.mark.parametrize(
    ("method", "flags"), [(AdaSteer, ""), (AdaSteer, "--target hidden"), (FiLM, "")]
)
def test_one_group_is_all_groups_tied(model, clip, method, flags):
    outcomes = []
    for groups in (1, min(map(len, model.stacks))):
        adapted, _ = new(method, f"{flags} --groups {groups}", model, clip)
        vectors = list(adapted.named_parameters().values())
        assert len(vectors) == (1 if groups == 1 else groups * len(model.stacks))
        with torch.no_grad():
            for vector in vectors:
                vector.copy_(torch.linspace(-0.3, 0.3, len(vector)))
        with adapted.attached():
            loss = loss_of(model, clip)
            loss.backward()
            outcomes.append((loss, sample(model, clip), sum(v.grad for v in vectors)))
    (loss, latents, gradient), tied = outcomes
    assert torch.equal(loss, tied[0]) and torch.equal(latents, tied[1])
    assert_near(gradient, tied[2], 1e-5 * gradient.abs().max().item())


def test_every_named_layer_exists(model):
    modules, names = dict(model.dit.named_modules()), all_paths(model.stacks)
    assert len(set(names)) == len(names) and all(name in modules for name in names)
    assert {*model.linears} == {"attention", "ffn"} and {*model.norms} <= {"cross", "qk"}
    for table in (model.linears, model.norms):
        for layer in itertools.chain(*table.values()):
            found = [modules[f"{n}.{layer}"] for n in names if f"{n}.{layer}" in modules]
            assert found, f"no block has {layer}"
            assert all(isinstance(x, torch.nn.Linear) for x in found) or table is model.norms
            assert all(any(True for _ in x.parameters()) for x in found)
    for name in names:
        assert all(
            any(f"{name}.{layer}" in modules for layer in layers)
            for layers in model.linears.values()
        )


def test_the_head_of_what_was_before_it_is_the_velocity(model, clip):
    sigma = torch.tensor([0.5])
    velocity = model.velocity(clip.target, sigma, clip.context, clip.text)
    x, e = model.before_head(clip.target, sigma, clip.context, clip.text)
    assert x.shape[-1] == model.hidden_width and e.shape[-1] == model.embedding_width
    assert_near(model.head(x, e, clip.target, sigma), velocity, 1e-5)


@pytest.mark.parametrize("plan", ["vae", "blocks"])
def test_where_the_weights_wait_changes_no_number(checkpoint, clip, plan):
    outcomes = []
    for place in ("none", plan):
        model = backbones.load(checkpoint, place=place)
        model.recompute(None)
        adapted, args = new(AdaSteer, "", model, clip)
        with adapted.attached():
            losses = adapt(model, adapted, clip, args)["losses"]
            latents = sample(model, clip)
        outcomes.append((losses, latents, model.decode(latents)))
    (losses, *tensors), (other_losses, *others) = outcomes
    assert losses == other_losses
    assert all(torch.equal(a, b) for a, b in zip(tensors, others, strict=True))


def other(value):
    return not value if isinstance(value, bool) else value + 0.3


def test_its_own_sampling_options_are_taken(model, clip):
    own = model.geometry.sampling
    plain = sample(model, clip, 12, **own)  # past the first ten, which one option is about
    assert torch.equal(plain, sample(model, clip, 12)) and {*model.geometry.sampling_ranges} <= {
        *own
    }
    for name, value in own.items():
        assert not torch.equal(sample(model, clip, 12, **{name: other(value)}), plain)
    with pytest.raises(TypeError):
        sample(model, clip, no_option_of_anyone=1)


def test_sampling_asks_at_the_sigmas_that_it_says(model, clip):
    shape = (clip.cond_latents.shape[2] + clip.target.shape[2], *clip.target.shape[3:])
    others = [{name: other(value)} for name, value in model.geometry.sampling.items()]
    for steps, options in ((1, {}), (12, model.geometry.sampling), *((5, each) for each in others)):
        told = Only(model).sampling_sigmas(steps, shape, **options)
        with asked_at(model) as found:
            sample(model, clip, steps, guidance_scale=1.0, **options)
        assert found == pytest.approx(told.tolist(), abs=1e-6)
        assert told.dtype == torch.float32 and len(told) >= steps
        assert told[0] > 0.99 and (told.diff() <= 0).all() and told[-1] > 0


def test_adaptation_may_see_the_sigmas_of_the_continuation(model, clip):
    given = windowed(model, clip)
    args = new(AdaSteer, "--sigmas sampler --sampling-steps 4 --guidance-scale 1", model, given)[1]
    args.sampling = dict(model.geometry.sampling)
    with asked_at(model) as found:
        generate(Only(model), given, args, {})
    args.steps = len(found)
    drawn = all_sigmas(Only(model), given, args).flatten()
    assert sorted(drawn.tolist(), reverse=True) == pytest.approx(found, abs=1e-6)


def test_noise_on_the_context_is_said_by_its_timestep(model, clip):
    """And decided by the initial noise."""
    if "context_noise" not in model.geometry.sampling:
        with pytest.raises(TypeError):
            sample(model, clip, context_noise=0.33)
        return
    seen = []
    with model.timestep_embedding(lambda i, e, sigma: seen.append(sigma.flatten()) or e):
        noisy = sample(model, clip, context_noise=0.33)
    seen = torch.cat(seen)
    assert (seen - 0.33).abs().min() < 1e-6 and seen.all()
    assert torch.equal(noisy, sample(model, clip, context_noise=0.33))


@pytest.mark.parametrize(
    ("method", "flags"), CASES, ids=lambda x: x.__name__ if isinstance(x, type) else x
)
def test_every_method_needs_the_contract_alone(model, clip, method, flags):
    given = windowed(model, clip)
    if "cross" not in model.norms:
        flags = flags.replace("cross", "qk")
    adapted, args = new(method, f"--sampling-steps 2 {flags}", Only(model), given)
    args.sampling = dict(model.geometry.sampling)
    start = copies(adapted)
    with adapted.attached():
        record = adapt(Only(model), adapted, given, args)
        frames = generate(Only(model), given, args, record)
    assert record["kept"] == "adapted" and all(record["distances"].values())
    assert frames.shape[:3] == (1, given.window.gen_frames, 3) and frames.isfinite().all()
    moved = adapted.named_parameters()
    assert all(not torch.equal(moved[name], start[name]) for name in start)


def test_a_class_without_a_backbone_is_one_line(tmp_path):
    for part in backbones.TRANSFORMERS:
        folder = tmp_path / part
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text('{"_class_name": "SomeOtherTransformer"}')
        for use in (backbones.load, backbones.geometry):
            with pytest.raises(backbones.CheckpointError) as found:
                use(folder)
            said = str(found.value)
            assert "SomeOtherTransformer" in said and f"{part}/config.json" in said
            assert all(name in said for name in backbones.BACKBONES) and "\n" not in said
