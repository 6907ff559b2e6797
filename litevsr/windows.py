"""Long and large clips in windows of time and tiles of space, blended where they overlap."""

import itertools

import torch
import torch.nn.functional as F


def spans(length, part, overlap):
    """Starts of parts that cover 0..length, each overlapping the one before by `overlap` or more;
    one where a part holds all."""
    if length <= part:
        return [0]
    count = -(-(length - overlap) // (part - overlap))
    return [round(i * (length - part) / (count - 1)) for i in range(count)]


def ramp(part, before, after):
    """Weights (part,) that rise over the first `before` places and fall over the last `after`."""
    weight = torch.ones(part)
    for count, places in ((before, slice(0, before)), (after, slice(part - after, part))):
        rising = torch.arange(1, count + 1) / (count + 1)
        weight[places] = rising if places.start == 0 else rising.flip(0)
    return weight


def in_tiles(frames, size, overlap, restore):
    """restore((F, 3, *size)) -> the same shape, of every tile of frames (F, 3, H, W), blended.
    Frames smaller than a tile are continued by their edges."""
    height, width = frames.shape[2:]
    more = [max(0, side - n) for side, n in zip(size, (height, width), strict=True)]
    padded = F.pad(frames, (0, more[1], 0, more[0]), mode="replicate")
    out, total = torch.zeros_like(padded), torch.zeros_like(padded[:1, :1])
    rows, columns = (
        spans(n, side, overlap) for n, side in zip(padded.shape[2:], size, strict=True)
    )
    for top, left in itertools.product(rows, columns):
        place = (..., slice(top, top + size[0]), slice(left, left + size[1]))
        weight = edge_weight(size[0], top, padded.shape[2], overlap)[:, None]
        weight = weight * edge_weight(size[1], left, padded.shape[3], overlap)
        out[place] += weight * restore(padded[place])
        total[place] += weight
    return (out / total)[..., :height, :width]


def edge_weight(part, start, length, overlap):
    return ramp(part, overlap if start else 0, overlap if start + part < length else 0)


def in_windows(frames, length, overlap, restore):
    """The restored frames of any iterable of (3, H, W), one by one: windows of `length` frames,
    each overlapping the one before by `overlap`. No more than two are held. A last window that is
    not full is filled by repeating its last frame."""
    frames, window, tail = iter(frames), [], None
    while True:
        fresh = list(itertools.islice(frames, length - len(window)))
        if not fresh:
            break
        window += fresh
        filled = window + [window[-1]] * (length - len(window))
        restored = restore(torch.stack(filled))[: len(window)]
        if tail is not None:
            weight = ramp(overlap + 1, overlap, 0)[:overlap].view(-1, 1, 1, 1)
            restored[:overlap] = (1 - weight) * tail + weight * restored[:overlap]
        if len(window) < length:  # the last
            yield from restored
            return
        yield from restored[: length - overlap]
        tail, window = restored[length - overlap :], window[length - overlap :]
    if tail is not None:
        yield from tail
