"""Videos of a report: panels of one clip as files of one length, for playing side by side."""

import itertools

import av
import torch
import torch.nn.functional as F

from common.video import write_video

WIDTH = 416  # pixels of a panel at most
DIFFERENCE = 4.0  # what differences are multiplied by
PANELS = 4  # methods beside the baseline


def write_panels(comparison, video, folder, name):
    """Writes name_0.mp4, name_1.mp4, ... and gives (label, file name) of each, the frame rate and
    the number of conditioning frames.

    Panels: conditioning (then its last frame, held), truth, baseline, methods, and for each of the
    last two the difference from the truth. Gives None where a run has no mp4 of the video."""
    shown = [comparison.baseline, *comparison.methods[:PANELS]]
    seeds = set.intersection(*(set(method.seeds) for method in shown))
    runs = [(m.at({min(seeds)}) if seeds else m).runs[0] for m in shown]  # of the same noise
    found = [read_pair(run.path / "videos" / f"{video}.mp4") for run in runs]
    if any(pair is None for pair in found):
        return None
    first = comparison.baseline.record(video)["frame_indices"]["conditioning"]
    count = first[1] - first[0]
    truth, fps = found[0][0], found[0][2]
    held = [*truth[:count], *[truth[count - 1]] * (len(truth) - count)]
    panels = [("conditioning", held), ("truth", truth)]
    panels += [(m.name, made) for m, (_, made, _) in zip(shown, found, strict=True)]
    panels += [
        (f"{m.name}: difference x{DIFFERENCE:g}", differences(made, truth))
        for m, (_, made, _) in zip(shown, found, strict=True)
    ]
    files = []
    for number, (label, frames) in enumerate(panels):
        files.append((label, f"{name}_{number}.mp4"))
        # every frame a key frame: the scrubber lands where it is put
        options = {"crf": "20", "g": "1", "preset": "ultrafast"}
        write_video(folder / files[-1][1], (frame / 255 for frame in frames), fps, options)
    return files, fps, count


def differences(made, truth):
    for one, other in zip(made, truth, strict=True):
        yield ((one.float() - other).abs() * DIFFERENCE).clamp(0, 255)


def read_pair(path, count=None):
    """Left and right half of the first frames of a run's mp4, (F, 3, H, W) in 8 bits and
    small enough, and its rate; None where there is no whole file."""
    try:
        with av.open(str(path)) as container:
            rate = float(container.streams.video[0].average_rate)
            decoded = itertools.islice(container.decode(video=0), count)
            frames = [torch.from_numpy(f.to_ndarray(format="rgb24")) for f in decoded]
    except (av.FFmpegError, OSError, IndexError):
        return None
    left, right = torch.stack(frames).permute(0, 3, 1, 2).chunk(2, dim=3)
    factor = WIDTH / left.shape[3]
    if factor < 1:
        size = [round(side * factor / 2) * 2 for side in left.shape[2:]]
        left, right = (F.interpolate(x.float(), size, mode="area").byte() for x in (left, right))
    return left, right, rate


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
