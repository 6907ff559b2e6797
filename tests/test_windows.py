"""Numbered frames through every stage: which of them condition, adapt, are generated and scored.

Frame t of the video is a flat grey that says t. An autoencoder that loses nothing and a sampler
that counts on stand in for the real ones, so that what a stage gives can be read.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from oracles import arguments

from adasteer import AdaSteer
from backbones.configs import geometry
from common.clip import Window, load_clip, read_footage, side_by_side
from common.data import Video
from common.footage import Footage
from common.generation import generate
from common.video import write_video
from runs.evaluate import evaluate, reconstruct, reference_scores
from runs.motion import Motion

STEP = 3  # levels of grey between a frame and the next
TEXT = {"prompt": torch.zeros(1, 1)}
# anchor, frames that condition, frames that adapt, context latents of those, frames to generate
WINDOWS = [(32, 13, 29, 4, 14), (29, 29, 29, 2, 16), (50, 33, 13, 3, 9), (20, 1, 9, 1, 1)]
NAMES = "--anchor", "--cond-frames", "--tta-frames", "--context-latents", "--gen-frames"
WINDOWS = [" ".join(f"{n} {v}" for n, v in zip(NAMES, w, strict=True)) for w in WINDOWS]
WINDOWS += [f"{flags} --stop-every 1" for flags in WINDOWS if "latents 3" not in flags]
each_window = pytest.mark.parametrize("flags", WINDOWS)


def numbered(indices):
    """Frames (F, 3, 16, 16) that say their index."""
    levels = torch.tensor(list(indices)) * STEP / 255
    return levels.view(-1, 1, 1, 1).repeat(1, 3, 16, 16)


def read(frames):
    """The indices that frames (F, 3, H, W) say."""
    said = frames.double().mean((1, 2, 3)) * 255 / STEP
    assert (said - said.round()).abs().max() < 0.4  # a codec moves a flat grey by a level
    return said.round().int().tolist()


class Counting:
    """A latent's channels are its four frames; the first latent has the first frame four times.
    The sampler counts on from the last frame that it is given."""

    device, guidance_scale, geometry = torch.device("cpu"), 1.0, geometry({}, 16)

    def __init__(self):
        self.encoded = []  # the indices of all frames that were encoded, by call

    def encode(self, frames):
        self.encoded.append(read(frames[0].transpose(0, 1)))
        first, groups = frames[:, :1, :1].repeat(1, 4, 1, 1, 1), frames[:, 0, 1:]
        return torch.cat([first, groups.unflatten(1, (-1, 4)).transpose(1, 2)], dim=2)

    def decode(self, latents):
        groups = latents[:, :, 1:].transpose(1, 2).flatten(1, 2)[:, None]
        return torch.cat([latents[:, :1, :1], groups], dim=2).repeat(1, 3, 1, 1, 1)

    def generate(self, cond_latents, text, negative_text, noise, **options):
        assert (
            cond_latents.shape[:2] == noise.shape[:2] and cond_latents.shape[3:] == noise.shape[3:]
        )
        last = frames_of(cond_latents)[-1]
        frames = numbered(range(last, last + 1 + 4 * noise.shape[2]))
        return self.encode(frames.transpose(0, 1)[None])[:, :, 1:]


def frames_of(latents):
    """The indices in latents, but for the three repeats of a first frame."""
    found = read(latents[0].transpose(0, 1).flatten(0, 1)[:, None].repeat(1, 3, 1, 1))
    return found[3:] if found[0] == found[3] else found


def loaded(model, flags):
    args = arguments(AdaSteer, flags)
    window = Window.of(args, model.geometry)
    footage = Footage(numbered(range(window.first, window.stop)), 16.0, "sha")
    video = Video("numbered", None, "counting")
    return args, load_clip(model, video, window, (16, 16), TEXT, TEXT, 1, footage)


@each_window
def test_what_conditions_and_adapts_ends_where_the_truth_begins(flags):
    args, clip = loaded(Counting(), flags)
    anchor = args.anchor
    conditioning = list(range(anchor - args.cond_frames, anchor))
    assert read(clip.cond_frames) == frames_of(clip.cond_latents) == conditioning
    assert read(clip.truth) == list(range(anchor, anchor + args.gen_frames))
    parts = [clip.context, clip.target, clip.held_out]
    adapted = [i for part in parts if part.numel() for i in frames_of(part)]
    assert adapted == list(range(anchor - args.tta_frames, anchor))
    latents = 1 + (args.tta_frames - 1) // 4
    held_out = max(1, (latents - args.context_latents) // 4) if args.stop_every else 0
    lengths = [part.shape[2] for part in parts]
    assert lengths == [args.context_latents, latents - args.context_latents - held_out, held_out]
    assert clip.window.indices() == {
        "tta": [anchor - args.tta_frames, anchor],
        "conditioning": [anchor - args.cond_frames, anchor],
        "generated": [anchor, anchor + args.gen_frames],
    }


@each_window
def test_generated_frames_are_those_after_the_conditioning(flags):
    model = Counting()
    args, clip = loaded(model, flags)
    (frames,) = generate(model, clip, args, {})
    assert read(frames) == read(clip.truth) and frames.shape == clip.truth.shape
    shown = read(side_by_side(clip, frames))
    assert shown == list(range(args.anchor - args.cond_frames, args.anchor + args.gen_frames))


@each_window
def test_the_reconstruction_is_of_the_frames_that_are_scored(flags):
    """Encoded as they are generated: after the conditioning frames, filled up at the end."""
    model = Counting()
    args, clip = loaded(model, flags)
    model.encoded.clear()
    assert read(reconstruct(model, clip)) == read(clip.truth)
    (encoded,) = model.encoded
    whole = list(range(args.anchor - args.cond_frames, args.anchor + args.gen_frames))
    assert encoded[: len(whole)] == whole and len(encoded) % 4 == 1
    assert encoded[len(whole) :] == whole[-1:] * (len(encoded) - len(whole))
    assert len(encoded) - len(whole) < 4


def test_frames_of_a_file_are_those_of_the_window(tmp_path):
    write_video(tmp_path / "numbered.mp4", numbered(range(60)), 16)
    video = Video("numbered", tmp_path / "numbered.mp4", "counting")
    for flags in WINDOWS[:2]:
        window = Window.of(arguments(AdaSteer, flags), Counting.geometry)
        assert read(read_footage(video, window, (16, 16)).frames) == list(
            range(window.first, window.stop)
        )


@pytest.fixture
def cut():
    """A clip whose last conditioning frame is the first after a cut; then the picture moves."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(4, 3, 12, 12, generator=generator)
    pictures = torch.nn.functional.interpolate(coarse, (96, 96), mode="bicubic").clamp(0, 1)
    moving = torch.stack([pictures[3, :, 16:80, 16 - 2 * t : 80 - 2 * t] for t in range(4)])
    moving[1:] *= 0.95  # and the light changes: no two frames predict each other exactly
    frames = torch.cat([pictures[:3, :, 16:80, 16:80], moving])
    return SimpleNamespace(cond_frames=frames[:4], truth=frames[4:], beside={})


def test_motion_begins_at_the_last_conditioning_frame(cut):
    expected = Motion.of(cut.truth, cut.cond_frames[3]).warping_errors
    found = evaluate(cut.truth, cut)
    assert found["truth_warping_error_per_frame"] == expected
    assert found["warping_error_per_frame"] == expected
    for wrong in (cut.cond_frames[0], cut.cond_frames[2], cut.truth[0]):
        assert Motion.of(cut.truth, wrong).warping_errors[0] != expected[0]


def test_the_references_are_the_last_frame_and_the_reconstruction(cut):
    found = reference_scores(cut, cut.truth.flip(3))
    last = cut.cond_frames[3].expand_as(cut.truth)
    for name, frames in (("repeat_last", last), ("reconstruction", cut.truth.flip(3))):
        error = (frames.double() - cut.truth.double()).square().mean((1, 2, 3))
        assert found[name]["psnr_db"] == pytest.approx(np.mean(-10 * np.log10(error.numpy())))
        assert found[name]["warping_error"] == evaluate(frames, cut)["warping_error"]
    assert found["repeat_last"]["warping_error"] < 1e-5
