"""The report as one page, index.html, that opens from disk and needs no network."""

import re
from dataclasses import replace
from pathlib import Path

import av

from common.errors import VideoError
from report import adapted, curves, figures
from report.markup import (
    controls_tables,
    escape,
    escaped,
    figure,
    html_table,
    result_tables,
    sentences,
    shifts_table,
    video_table,
    wide,
)
from report.media import chosen_videos, write_panels
from report.metrics import main_metric
from report.predict import headline, lines
from report.sequence import in_sequence
from report.settings import settings
from report.statistics import FEWEST
from report.swept import swept_figures
from report.verdict import verdicts

HERE = Path(__file__).parent


def write_page(out, comparisons, tables, controls, notes, rows, predictions, count, shifts=()):
    """Writes index.html and media/ into `out`. comparisons by name, and the tables of each by
    metric; controls: methods beside theirs, by name; rows: those of a sweep;
    predictions by name, then method; count: clips of each comparison to show side by side; shifts:
    one Across after the other."""
    (out / "media").mkdir(parents=True, exist_ok=True)
    parts, links = [], []
    shown = main_metric(*comparisons.values())
    for place, (template, svg) in enumerate(swept_figures(comparisons, rows, shown)):
        links.append(f'<a href="#swept-{place}">{escape(template)}</a>')
        heading = f"<h2>{escape(template)}</h2>"
        parts.append(f'<section id="swept-{place}">{heading}{figure(svg, SWEPT)}</section>')
    for place, (name, comparison) in enumerate(comparisons.items()):
        sections = sections_of(
            comparison, tables[name], controls[name], out / "media", f"{place}", count
        )
        if name in predictions:
            sections.insert(-1, ("who benefits", predicted(predictions[name])))
        if name:
            parts.append(f"<h1>{escape(name)}</h1>")
        for heading, content in sections:
            anchor = f"{place}-{heading.replace(' ', '-')}"
            parts.append(f'<section id="{anchor}"><h2>{heading}</h2>{content}</section>')
            if place == 0:
                links.append(f'<a href="#{anchor}">{heading}</a>')
    parts += [f"<p>{escape(note)}</p>" for note in notes]
    page = (HERE / "page.html").read_text(encoding="utf-8")
    texts = {
        "title": "Does the adaptation help?",
        "style": (HERE / "page.css").read_text(encoding="utf-8"),
        "script": (HERE / "page.js").read_text(encoding="utf-8"),
        "verdicts": first_of_all(tables, controls, shifts),
        "navigation": " ".join(links),
        "body": "\n".join(parts),
    }
    page = re.sub(r"{{(\w+)}}", lambda found: texts[found[1]], page)
    (out / "index.html").write_text(page, encoding="utf-8")


def first_of_all(tables, controls, shifts):
    """The verdicts; of a sweep on several shifts its tables, with the verdicts folded below."""
    found = sentences(said(tables, controls))
    if not shifts:
        return found
    folded = f"<details><summary>the same in words, method by method</summary>{found}</details>"
    return f"{''.join(map(shifts_table, shifts))}{folded}"


def said(tables, controls):
    """The verdict on each method, and what can be claimed beside controls."""
    for name, each in tables.items():
        yield from verdicts(each)
        yield from (found.claim for found in controls[name])


def sections_of(whole, tables, controls, media, name, count):
    """(title, HTML) in the order of the page. Controls have a section of their own."""
    shown, comparison = main_metric(whole), replace(whole, methods=whole.judged)
    horizon = curves.parts_of_the_future(comparison), PARTS
    if shown != "future_loss":
        horizon = curves.by_frame(comparison, shown), HORIZON
    videos = comparison.of_videos
    draw = [
        ("learning", curves.learning_curves(comparison), LEARNING if videos else LEARNED_FROM),
        ("one after the other", in_sequence(comparison), SEQUENCE),
        ("every video" if videos else "every clip", figures.sorted_gains(comparison, shown), EVERY),
        ("two answers", figures.one_against_other(comparison), TWO),
        ("categories", figures.gains_by_category(comparison, shown), ""),
        ("horizon", *horizon),
        ("frame by frame", curves.gains_by_frame(whole, "psnr_db"), FRAMES),
        ("what goes with the gain", figures.gain_against(comparison, shown), ""),
        ("cost", figures.quality_against_cost(comparison, shown), COST),
        ("what was learned", adapted.distances_figure(comparison), LEARNED),
        ("one direction", adapted.cosine_figure(comparison), DIRECTION),
    ]
    side_by_side = []
    if comparison.generated and comparison.methods:
        side_by_side = [("side by side", players(comparison, shown, media, name, count))]
    return [
        ("result", result_tables(comparison, tables, shown, name)),
        *([("controls", controls_tables(controls))] if controls else []),
        ("settings", wide(html_table(escaped(settings(whole))))),
        *side_by_side,
        *[(heading, figure(svg, caption)) for heading, svg, caption in draw if svg],
        *([("preflight", preflight(comparison))] if videos else []),
        ("videos" if videos else "clips", video_table(comparison, shown, name)),
    ]


LEARNING = (
    "Mean loss over the steps (lower is better). On an update's own draws it mostly shows the noise"
    " of the draws. Held-out latents and the true future have the same noise at every check, and "
    "adaptation does not see them. Dots are where early stopping stopped a video; it then goes on "
    "with the state that was kept."
)
LEARNED_FROM = "Mean error on the frames that are learned from, over the steps (lower is better)."
EVERY = (
    "Each bar is one: its gain over its own baseline, with the same noise. Above zero is better."
    " Each method has its own scale."
)
SEQUENCE = (
    "Error on each clip before it is adapted to, by what the clips before it have taught, against "
    "the untouched model on the same one (the baseline). Lower is better."
)
TWO = (
    "Each dot is a video. To the right the true future is predicted better, upwards a sample has "
    "the better PSNR, which it also has where the model lost its spread. In the corners how many "
    "videos gain in which. Each method has its own scales."
)
SWEPT = (
    "Mean gain of each row over its own baseline (above zero is better); where there are bars they "
    f"are 95 % intervals, which need {FEWEST} sources. A cell has colour where its interval "
    "excludes zero: blue is better, red is worse."
)
FRAMES = (
    "Mean gain of each generated frame over the baseline's, with a 95 % band over sources, each "
    f"frame on its own (none from fewer than {FEWEST}). Dashed: controls."
)
HORIZON = "The further from the given frames, the harder."
PARTS = (
    "Where the gain lies: change of the mean loss by how far ahead, and by how much noise is to be "
    f"removed, with 95 % bands over sources (none from fewer than {FEWEST}). Above zero is better."
)
COST = (
    "Ringed: no other method gains more for less time. The bar is the 95 % interval; none from "
    f"fewer than {FEWEST} sources."
)
LEARNED = "How far the adapted parameters went from their start, a box over the videos."
DIRECTION = (
    "Cosine between what was learned on different videos. Near one: all videos ask for the same\
 change, a bias of the model that could be fixed once; near zero: each video its own."
)
PREDICTED = (
    "Models of the gain from the conditioning frames and the losses before generating, tested on "
    "sources they have not seen. An AUC of 0.5 is chance. The gains are means over all videos when "
    "only those that the rule picks are adapted."
)


def preflight(comparison):
    """Loss of the unadapted model against predicting zero: is the sign right?"""
    found = [comparison.baseline.record(video)["preflight"] for video in comparison.videos]
    mean = {key: sum(losses[key] for losses in found) / len(found) for key in found[0]}
    ratios = sorted(losses["loss"] / losses["zero_loss"] for losses in found)
    return (
        f"<p>Before adapting the model's loss is {mean['loss']:.3f} on average, that of predicting "
        f"zero {mean['zero_loss']:.3f} and of the negated prediction {mean['negated_loss']:.3f}. "
        f"As a share of predicting zero it is {ratios[0]:.2f} to {ratios[-1]:.2f} over the videos; "
        "where it is not below 1 a video is skipped.</p>"
    )


def predicted(found):
    """Can it be known beforehand? A table for each method."""
    parts = [f"<p>{PREDICTED}</p>"]
    for name, result in found.items():
        heading = escape(f"{name}: {headline(result)}".removesuffix(": "))
        parts.append(f"<h3>{heading}</h3>{wide(html_table(escaped(lines(result))))}")
    return "".join(parts)


def players(comparison, shown, media, name, count):
    parts = []
    for place, video in enumerate(chosen_videos(comparison, shown, count)):
        try:
            files, fps, given = write_panels(comparison, video, media, f"{name}_{place}")
        except (VideoError, av.FFmpegError) as error:
            parts.append(f"<p>{escape(video)} cannot be shown: {escape(str(error))}</p>")
            continue
        record = comparison.baseline.record(video)
        start, stop = record["frame_indices"]["generated"]
        panels = "".join(
            f'<figure><video src="media/{file}" muted playsinline preload="auto"></video>'
            f"<figcaption>{escape(label)}</figcaption></figure>"
            for label, file in files
        )
        parts.append(
            f'<div class="player" data-fps="{fps}" data-given="{given}">'
            f'<h3><a href="#{name}-video-{escape(video)}">{escape(video)}</a>: '
            f"{escape(record['caption'])}</h3>"
            f'<div class="controls"><button>play</button><input type="range" min="0" '
            f'max="{given + stop - start - 1}" value="0" aria-label="frame"><output></output></div>'
            f'<div class="panels">{panels}</div></div>'
        )
    return "".join(parts) or "<p>No video to show.</p>"
