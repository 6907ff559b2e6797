"""Videos of a report: panels of one clip as files of one length, for playing side by side."""

import itertools

import av
import torch
import torch.nn.functional as F

from common.errors import VideoError
from common.video import decode, opened, write_video
from runs.pictures import rows_of_words

WIDTH = 416  # pixels of a panel at most
DIFFERENCE = 4.0  # what differences are multiplied by
SLOWEST, FASTEST = 0.1, 1000.0  # frames a second
PANELS = 4  # methods beside the baseline


def write_panels(comparison, video, folder, name):
    """Writes name_0.mp4, name_1.mp4, ... and gives (label, file name) of each, the frame rate and
    the number of conditioning frames.

    Panels: conditioning (then its last frame, held), truth, baseline, methods, and for each of the
    last two the difference from the truth; all of the first seed. Raises VideoError where a run's
    mp4 cannot be shown beside the others."""
    shown = [comparison.baseline, *comparison.methods[:PANELS]]
    windows = comparison.baseline.record(video)["frame_indices"]
    given, made = (windows[name][1] - windows[name][0] for name in ("conditioning", "generated"))
    found = [read_pair(m.runs[0].path / "videos" / f"{video}.mp4", given + made) for m in shown]
    truth, _, fps = found[0]
    for method, (_, frames, _) in zip(shown, found, strict=True):
        if frames.shape != truth.shape:
            raise VideoError(f"the mp4 of {method.name} has frames of another size")
    held = [*truth[:given], *[truth[given - 1]] * made]
    panels = [("conditioning", held), ("truth", truth)]
    panels += [(m.name, frames) for m, (_, frames, _) in zip(shown, found, strict=True)]
    panels += [
        (f"{m.name}: difference x{DIFFERENCE:g}", differences(frames, truth))
        for m, (_, frames, _) in zip(shown, found, strict=True)
    ]
    files = []
    for number, (label, frames) in enumerate(panels):
        files.append((label, f"{name}_{number}.mp4"))
        # every frame a key frame: the scrubber lands where it is put
        options = {"crf": "20", "g": "1", "preset": "ultrafast"}
        write_video(folder / files[-1][1], (frame / 255 for frame in frames), fps, options)
    return files, fps, given


def differences(made, truth):
    for one, other in zip(made, truth, strict=True):
        yield ((one.float() - other).abs() * DIFFERENCE).clamp(0, 255)


def read_pair(path, count):
    """Left and right half of the first `count` frames of a run's mp4, (F, 3, H, W) in 8 bits and
    small enough, and its rate. Raises VideoError where the file does not have them."""
    frames = []
    try:
        with opened(path) as (container, stream):
            rate, rows = float(stream.average_rate or 0), rows_of_words(container)
            for frame in itertools.islice(decode(container, stream, path), count):
                frames.append(shrunk(frame.to_ndarray(format="rgb24")[rows:]))
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{path}: is no whole video ({error})") from error
    if len(frames) < count or len({frame.shape for frame in frames}) > 1:
        raise VideoError(f"{path}: has {len(frames)} frames, not {count} of one size")
    if not SLOWEST <= rate <= FASTEST:
        raise VideoError(f"{path}: has {rate:g} frames a second")
    left, right = torch.stack(frames).chunk(2, dim=3)
    return left, right, rate


def shrunk(picture):
    """A frame (H, W, 3) as (3, H, W), halves of an even size that is at most WIDTH wide."""
    height, width = picture.shape[0], picture.shape[1] // 2
    frame = torch.from_numpy(picture).permute(2, 0, 1)
    factor = min(1.0, WIDTH / max(1, width))
    size = [max(2, round(side * factor / 2) * 2) for side in (height, width)]
    if (height, 2 * width) == (size[0], 2 * size[1]) and picture.shape[1] % 2 == 0:
        return frame
    area = F.interpolate(frame[None].float(), (size[0], 2 * size[1]), mode="area")
    return area[0].byte()


def chosen_videos(comparison, metric, count):
    """The videos to show: of all methods' mean gain the best, the worst, and those between them
    evenly."""
    videos = comparison.scored(metric)
    gains = sum(comparison.gains(method, metric, videos) for method in comparison.methods)
    order = sorted(range(len(videos)), key=lambda i: -gains[i]) if comparison.methods else []
    if len(order) <= count:
        return [videos[i] for i in order]
    places = [round(i * (len(order) - 1) / max(1, count - 1)) for i in range(count)]
    return [videos[order[place]] for place in places]
