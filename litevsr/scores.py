"""Restored frames against the sharp ones, scored as they go by; what a network thinks of them."""

import itertools
import sys

import torch

from common.errors import UsageError
from common.metrics import load_lpips, mean, psnr_db, ssim
from litevsr.data import enlarged
from litevsr.video import frames_of
from runs.motion import Motion, motion_scores

LUMA = (65.481 / 255, 128.553 / 255, 24.966 / 255)  # of R, G, B in 0..1 (ITU-R BT.601); + 16/255
PART = 16  # frames that are held for the scores that compare a frame with the next
MOTION = ("temporal_psnr_db", "temporal_ssim", "flow_error_px", "warping_error")
SPARSE = 8  # every how manieth frame a no-reference network looks at


class Scorer:
    """scale: also the width of the border that no score but LPIPS and those of motion sees.
    quality: names of pyiqa's no-reference metrics. Raises UsageError."""

    def __init__(self, scale, quality=()):
        self.border = (..., slice(scale, -scale), slice(scale, -scale))
        self.lpips, self.reason = load_lpips()
        self.quality = {name: no_reference(name) for name in quality}

    def watched(self, frames, truth, found):
        """The frames (3, H, W) as they came. To found, {metric: values}, it adds those of each
        frame against `truth`, an iterator of the sharp ones, as far as that goes. What cannot be
        scored ends the scores, with a line, and not the frames."""
        frames, before, failed = iter(frames), None, False
        while part := list(itertools.islice(frames, PART)):
            try:
                rows, before = ([], before) if failed else self.of_part(part, truth, before)
            except Exception as error:  # noqa: BLE001 - networks and files of others
                rows, failed = [], True
                print(f"not scored beyond this: {error}", file=sys.stderr)
            for name, value in itertools.chain(*(row.items() for row in rows)):
                found.setdefault(name, []).append(value)
            yield from part

    def of_part(self, part, truth, before):
        """Rows of scores, and the last frames of both, which were `before` those of the part."""
        rows = [self.unseen(frame) for frame in part[::SPARSE]]
        if sharp := list(itertools.islice(truth, len(part))):
            both = [torch.stack(x[: len(sharp)]) for x in (part, sharp)]
            rows += [*map(self.of_frame, *both), *moving(both, before)]
            before = [x[-1] for x in both]
        return rows, before

    def of_frame(self, frame, sharp):
        """PSNR and SSIM of RGB and of luma; LPIPS."""
        a, b = frame[self.border], sharp[self.border]
        y, z = luma(a), luma(b)
        return {
            "psnr_db": psnr_db(a, b), "ssim": ssim(a, b), "luma_psnr_db": psnr_db(y, z),
            "luma_ssim": ssim(y, z), "lpips": self.lpips(frame, sharp) if self.lpips else None,
        }  # fmt: skip

    def unseen(self, frame):
        with torch.no_grad():
            return {name: float(look(frame[None])) for name, look in self.quality.items()}


def moving(both, before):
    """Of each frame with the one before it."""
    if before:
        both = [torch.cat([old[None], new]) for old, new in zip(before, both, strict=True)]
    if len(both[0]) < 2:
        return
    ours, sharp = both
    scores = motion_scores(ours[1:], Motion.of(sharp[1:], sharp[0]), ours[0])
    columns = [scores[f"{name}_per_frame"] for name in MOTION]
    yield from (dict(zip(MOTION, row, strict=True)) for row in zip(*columns, strict=True))


def no_reference(name):
    """A metric of pyiqa. Raises UsageError where it is not to be had."""
    try:
        import pyiqa

        known = pyiqa.list_models(metric_mode="NR")
        if name not in known:
            raise UsageError(f"--quality {name}: pyiqa has {', '.join(known)}")
        return pyiqa.create_metric(name)
    except UsageError:
        raise
    except ImportError as error:
        raise UsageError(f"--quality {name}: pip install pyiqa ({error})") from error
    except Exception as error:  # of any kind: it fetches weights
        raise UsageError(f"--quality {name}: pyiqa cannot load it ({error})") from error


def luma(frame):
    return sum(w * c for w, c in zip(LUMA, frame, strict=True))[None] + 16 / 255


def line(name, found):
    means = {key: mean(values) for key, values in found.items()}
    return f"{name}: " + ", ".join(f"{k} {v:.4g}" for k, v in means.items() if v is not None)


class Comparison:
    """Scores of the result, and of what else could have been shown, where they are asked for."""

    def __init__(self, args, enlarge):
        self.args, self.enlarge, self.found, self.told = args, enlarge, {}, False
        self.scorer = Scorer(enlarge.scale, args.quality) if args.truth or args.quality else None
        if args.truth:
            low, sharp = (next(frames_of(path)[0]).shape for path in (args.video, args.truth))
            right = [enlarge.scale * side for side in low[1:]]
            if list(sharp[1:]) != right:
                raise UsageError(
                    f"--truth {args.truth}: frames of {sharp[2]}x{sharp[1]}, the result has "
                    f"{right[1]}x{right[0]}"
                )

    def watched(self, name, frames):
        """The frames, scored as they go by."""
        if self.scorer is None:
            return frames
        truth = self.sharp() if self.args.truth else iter(())
        return self.scorer.watched(frames, truth, self.found.setdefault(name, {}))

    def sharp(self):
        """The frames of --truth, and a line, once, where more than these are asked for."""
        count = 0
        for frame in frames_of(self.args.truth)[0]:
            count += 1
            yield frame
        if not self.told:
            print(
                f"--truth {self.args.truth}: ends after {count} frames, the video does not; scores "
                "against it are of these",
                file=sys.stderr,
            )
        self.told = True

    def others(self):
        """Scores what is not written."""
        plain = self.enlarge.all(frames_of(self.args.video)[0]) if self.args.adapt else None
        small = frames_of(self.args.video)[0]
        scale = self.enlarge.scale
        bicubic = (enlarged(x[None], [scale * side for side in x.shape[1:]])[0] for x in small)
        for name, frames in {"not adapted": plain, "bicubic": bicubic}.items():
            for _ in self.watched(name, frames or ()):
                pass

    def lines(self):
        if self.scorer is None:
            return
        self.others()
        rows = {name: found for name, found in self.found.items() if found}
        yield from itertools.starmap(line, rows.items())
        if rows.keys() >= {"adapted", "not adapted"}:
            plain = rows["not adapted"]  # shorter or longer where scoring ended early
            pairs = {k: zip(v, plain[k], strict=False) for k, v in rows["adapted"].items()}
            yield line("adapted - not adapted", {k: differences(v) for k, v in pairs.items()})
        if self.scorer.reason and self.args.truth:
            yield f"LPIPS is not computed: {self.scorer.reason}"


def differences(pairs):
    """Of the frames that have both."""
    return [a - b for a, b in pairs if None not in (a, b)]
