"""Checks and geometry of a SkyReels-V2-DF folder, in which diffusers has saved its pipeline, before
any weight is read; and the numbers of the release that no file of it states."""

from backbones import wan_configs
from backbones.configs import check_checkpoint
from backbones.frames import EveryK
from backbones.ranges import CONTEXT_NOISE, SWITCH, one_of, optional
from backbones.wan_configs import SHIFTS, WAN, stated_shift, widths

NAME, FPS = "SkyReelsV2Transformer3DModel", 24.0
SIZE = (544, 960)  # of the checkpoints named 540P
# 17 frames are the overlap that its authors continue long videos with; adaptation sees as many
# context latents (5) and predicts as many (4) as generation. Its own sampler makes 97 at once
WINDOW = {
    "anchor": 33, "cond_frames": 17, "tta_frames": 33, "context_latents": 5, "gen_frames": 16
}  # fmt: skip
SHIFT = 8.0  # what its authors sample with
TRANSFORMER = wan_configs.TRANSFORMER | {
    "_class_name": one_of(NAME),
    "inject_sample_info": optional(SWITCH),
    "num_frame_per_block": optional(one_of(1)),  # else a mask lets no latent see a later one
}
SKYREELS = WAN._replace(rules=TRANSFORMER)


def skyreels_geometry(folder):
    """The Geometry of a folder, whose files are checked as they are before the weights are read."""
    return geometry(folder, *check_checkpoint(folder, SKYREELS))


def geometry(folder, stated, size_multiple, config):
    """Of a checked folder, what its model_index.json states, and its transformer's config."""
    shift = stated_shift(folder)
    if shift == 1:  # what diffusers writes where nothing was said
        shift = SHIFT
    size = stated.get("height", SIZE[0]), stated.get("width", SIZE[1])
    options = {"shift": float(shift), "context_noise": 0.0}
    ranges = {"shift": SHIFTS, "context_noise": CONTEXT_NOISE}
    more = widths(config) | {"sampling_ranges": ranges}
    return EveryK(NAME, 4, size, size_multiple, FPS, WINDOW, options, **more)
