"""What a run says: a line for each video, and at its end its means, what they are read against, and
what to do next."""

import itertools
import shlex
import shutil
import sys
from pathlib import Path

from common.metrics import mean
from runs.baseline import compared_with, shared_records
from runs.flags import kept_by_baseline
from runs.identity import ROOT, is_baseline

SHOWN = {"psnr_db": ("PSNR", " dB", 2), "ssim": ("SSIM", "", 3), "lpips": ("LPIPS", "", 3)}
REFERENCES = {
    "repeat_last": "repeating the last frame", "reconstruction": "autoencoder alone"
}  # fmt: skip


def ending(args, config, summary, means, baseline):
    """All lines. means: those on the scores; baseline: its folder, or None."""
    lines, skipped = [], list(summary["videos_skipped"])
    if done := summary["videos_done"]:
        lines = [f"{counted(done, args.kind.NOUN)} done: {args.out}/summary.json", *means]
    if skipped:
        names = ", ".join(skipped[:10]) + (", ..." if len(skipped) > 10 else "")
        count = counted(len(skipped), args.kind.NOUN)
        lines.append(f"{count} skipped, summary.json has the reasons: {names}")
    return [*lines, *(next_steps(args, config, baseline) if done else [])]


def counted(count, noun):
    return f"{count} {noun}{'' if count == 1 else 's'}"


def means(args, summary, baseline):
    """Lines: the loss on the true future and each score, where there are any, from the baseline's
    to this run's, and what they are read against. baseline: its folder, or None."""
    lines, alone = [], is_baseline(vars(args))
    before, after = summary["mean_future_loss_before"], summary["mean_future_loss"]
    percent = summary["mean_future_loss_change_percent"]
    if percent is not None:
        shown = f"{after:.4f}" if alone else changed(before, after, percent)
        each = "" if alone else "; in brackets the mean of each video's own change"
        lines.append(("loss on the true future", shown, f"lower is better{each}"))
        online = summary["mean_future_loss_online"]
        if online not in (None, before):
            shown = changed(before, online, summary["mean_future_loss_online_change_percent"])
            lines.append(("the same, online", shown, "where the updates on a video begin"))
    against = args.out if alone else baseline
    pairs = shared_records(against, args.out) if against else []
    for name, (title, unit, digits) in SHOWN.items():
        if summary[f"mean_{name}"] is not None:
            shown = f"{summary[f'mean_{name}']:.{digits}f}{unit}"
            if pairs and not alone:
                shown = gain(name, pairs, digits, unit)
            lines.append((title, shown, references(name, [b for b, _ in pairs], digits)))
    moved = summary["mean_moved_from_baseline"]
    if moved is not None:
        lines.append(("frames moved by", f"{moved:.2f} of 255 levels", "root mean square"))
    widths = [max((len(line[i]) for line in lines), default=0) for i in (0, 1)]
    lines = [f"  {a:{widths[0]}}  {b:{widths[1]}}  {c}".rstrip() for a, b, c in lines]
    if 0 < len(pairs) < summary["videos_done"]:
        both = counted(len(pairs), "video")
        lines.append(f"  scores are those of the {both} that the baseline has done too")
    return lines


def gain(name, pairs, digits, unit):
    before, after = (mean([record[name] for record in each]) for each in zip(*pairs, strict=True))
    if before is None or after is None:
        return "-"
    return f"{before:.{digits}f} -> {after:.{digits}f}{unit} ({after - before:+.{digits}f})"


def references(name, baselines, digits):
    """What the baseline's records have beside their own score."""
    found = {
        words: mean([record["references"].get(kind, {}).get(name) for record in baselines])
        for kind, words in REFERENCES.items()
    }
    return ", ".join(f"{words} {x:.{digits}f}" for words, x in found.items() if x is not None)


def next_steps(args, config, baseline):
    """Lines: the commands that lead from here to an answer. None within a sweep, which compares its
    rows itself."""
    if (args.out.parent / "sweep.json").exists():
        return []
    script, kept = f"{args.script}.py", kept_by_baseline(args.given, args.flags)
    kept += args.kind.window_flags(args)
    if is_baseline(vars(args)):
        if found := compared_with(args.out, config):
            return ["next: the comparison", compare(*found)]
        other = free(args.out.parent / args.script)
        adapt = command(script, *kept, "--out", other)
        return [f"next: adapt, from {args.kind.SAME}, and compare", adapt, compare(args.out, other)]
    if baseline:
        return ["what of it can be believed, with intervals:", compare(baseline, args.out)]
    baseline = free(args.out.parent / "baseline")
    return [
        f"next: the baseline, {args.kind.SAME} without adaptation, and the comparison",
        command(script, *kept, "--steps", "0", "--out", baseline),
        compare(baseline, args.out),
    ]


def free(path):
    """The path, or where there is something the first of path_2, path_3, ... where is nothing."""
    others = (path.with_name(f"{path.name}_{i}") for i in itertools.count(2))
    return next(each for each in itertools.chain([path], others) if not each.exists())


def compare(*folders):
    return command("compare.py", *folders, "--out", free(folders[0].parent / "report"))


def command(script, *words):
    """A line to copy, with this Python and the script as one would type them here."""
    python = sys.executable
    python = "python" if shutil.which("python") == python else from_here(python)
    return "    " + shlex.join(map(str, (python, from_here(ROOT / script), *words)))


def from_here(path):
    path, here = Path(path), Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def line(result):
    """One finished video in a line for people."""
    before, after = result["fixed_loss_before"], result["fixed_loss_after"]
    unchanged = "-" if before is None else f"{before:.4f}"
    loss = unchanged if result["kept"] == "baseline" else change(before, after)
    parts = [f"{result['id']}: loss {loss}"]
    if result["future_loss"] is not None:
        future = change(result["future_loss_before"], result["future_loss"])
        same = f"{result['future_loss']:.4f}"
        parts.append(f"true future {same if result['kept'] == 'baseline' else future}")
        online = result["future_loss_online"]
        if online != result["future_loss_before"]:
            parts.append(f"online {change(result['future_loss_before'], online)}")
    for name, unit in (("psnr_db", " dB"), ("ssim", ""), ("lpips", "")):
        if result[name] is not None:
            parts.append(f"{name.partition('_')[0].upper()} {result[name]:.2f}{unit}")
    parts.append(f"{result['total_seconds']:.1f} s  {result['peak_memory_gb']:.1f} GB")
    if result["diverged"]:
        parts.append(f"DIVERGED, {result['kept']} kept")
    return "  ".join(parts)


def change(before, after):
    """As '0.1552 -> 0.1521 (-2.0 %)'."""
    if not before or after is None:
        return "-"
    return changed(before, after, 100 * (after / before - 1))


def changed(before, after, percent):
    return f"{before:.4f} -> {after:.4f} ({round(percent, 1) + 0.0:+.1f} %)"  # + 0.0: no "-0.0"
