"""Tables and figures of the page as HTML."""

import html
import re

from report.beside import MEANING as WITH_CONTROLS
from report.comparison import unmeasured
from report.metrics import gain_label, title
from report.table import MEANING, number, readable
from report.verdict import HARMS, HELPS, outcome
from runs.names import printable

KINDS = {HELPS: "good", HARMS: "bad"}  # classes of the style sheet; the rest has no colour
CLASSES = {"other flags": "text", "95 %": "pair"}  # of columns that wrap
LEGEND = (
    '<p class="small"><span class="good">blue</span> better and <span class="bad">orange</span> '
    "worse than the baseline: the 95 % interval excludes zero. Without colour: it contains zero, or"
    " the sources are too few for an interval.</p>"
)


def escape(text):
    """Text that others wrote, for HTML and its attributes; control characters as escapes."""
    return html.escape(printable(text))


def figure(svg, caption=""):
    said = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f"<figure>{wide(svg)}{said}</figure>"


def wide(content):
    """What scrolls within itself where the window is narrow."""
    return f'<div class="wide">{content}</div>'


def sentences(found):
    """Verdicts as a list."""
    lines = [
        f'<li class="{KINDS.get(verdict.outcome, "")}"><strong>{escape(verdict.head)}</strong>: '
        f"{escape(verdict.body)}.</li>"
        for verdict in found
    ]
    unbroken = re.sub(r"(?<=\d) (?=%|dB)", "&nbsp;", "".join(lines))
    return f'<ul class="verdicts">{unbroken}</ul>'


def shifts_table(across):
    """Methods down, shifts across, each gain with its colour."""
    rows = escaped(across.readable)
    for row, found in zip(rows, across.cells.values(), strict=True):
        for shift, head in across.columns.items():
            if shift in found:
                kind, words = outcome(found[shift]), row[head].replace(", beats", "<br>beats")
                row[head] = f'<span class="{KINDS.get(kind, "")}">{words}</span>'
    heading = f"<h2>{escape(across.heading)}</h2>"
    return f"{heading}{wide(html_table(rows, 'shifts'))}{LEGEND}<p>{escape(across.about)}</p>"


def result_tables(comparison, tables, shown, name):
    """The table of the main metric, the others folded below, and what is left out."""
    parts = [LEGEND] if comparison.methods else []
    for metric, rows in tables.items():
        if rows:
            words = f"<p>{escape(metric.about)}</p>" if metric.about else ""
            opened = " open" if metric == shown else ""
            summary = f"<summary>{escape(title(metric))}</summary>"
            content = words + wide(html_table(coloured(rows))) + worst_videos(rows, name)
            parts.append(f"<details{opened}>{summary}{content}</details>")
    parts += [f"<p>{escape(line)}</p>" for line in unmeasured(comparison)]
    parts.append("<ul>" + "".join(f"<li>{escape(n)}</li>" for n in comparison.notes) + "</ul>")
    return "".join([*parts, f"<p>{escape(MEANING)}</p>" if comparison.methods else ""])


def controls_tables(found):
    """The table of each method beside its controls."""
    parts = [
        f"<h3>{escape(each.method)}</h3>{wide(html_table(escaped(each.readable)))}"
        for each in found
    ]
    return "".join([*parts, f"<p>{escape(WITH_CONTROLS)}</p>"])


def coloured(rows):
    """Cells as HTML, without the worst videos: these stand below as links."""
    for row, shown in zip(rows, readable(rows), strict=True):
        cells = {key: escape(str(value)) for key, value in shown.items() if key != "worst"}
        for key in ("gain", "95 %") if outcome(row) else ():
            cells[key] = f'<span class="{KINDS.get(outcome(row), "")}">{cells[key]}</span>'
        if "95 %" in cells:  # a narrow window breaks it in two lines and no more
            cells["95 %"] = re.sub(r" (?=%|to |few)", "&nbsp;", cells["95 %"])
        yield cells


def worst_videos(rows, name):
    """The videos that lose most, as links to their rows."""
    lines = []
    for row in rows:
        links = [
            f'<a href="#{name}-video-{escape(video)}">{escape(video)}</a>' for video in row["worst"]
        ]
        if links:
            lines.append(f"<li>{escape(row['method'])} loses most on {', '.join(links)}</li>")
    return f'<ul class="small">{"".join(lines)}</ul>' if lines else ""


def escaped(rows):
    return [{key: escape(value) for key, value in row.items()} for row in rows]


def html_table(rows, kind=""):
    rows = list(rows)
    head = "".join(f"<th>{escape(key)}</th>" for key in rows[0])
    body = "".join(
        "<tr>" + "".join(cell_of(key, cell) for key, cell in row.items()) + "</tr>" for row in rows
    )
    return f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def cell_of(key, content):
    kind = f' class="{CLASSES[key]}"' if key in CLASSES else ""
    return f"<td{kind}>{content}</td>"


def video_table(comparison, shown, name):
    """One sortable row a video."""
    videos = comparison.scored(shown)
    gains = [comparison.gains(method, shown, videos) for method in comparison.methods]
    kind = "video" if comparison.of_videos else "clip"
    captions = ["caption"] if comparison.of_videos else []
    names = [kind, *(m.name for m in comparison.methods), "baseline", *captions, "source"]
    head = "".join(f"<th><button>{escape(n)}</button></th>" for n in names)
    lines = []
    for i, video in enumerate(videos):
        record = comparison.baseline.record(video)
        base = float(comparison.baseline.scores(shown, [video]).mean())
        cells = [f"<td>{escape(video)}</td>"]
        cells += [f'<td data-value="{g[i]}">{g[i]:+.3f}</td>' for g in gains]
        cells.append(f'<td data-value="{base}">{number(base)}</td>')
        words = [record[key] for key in (*captions, "source")]
        cells += [f'<td class="text">{escape(text)}</td>' for text in words]
        lines.append(f'<tr id="{name}-video-{escape(video)}">{"".join(cells)}</tr>')
    methods = f", under the methods: {escape(gain_label(shown))}" if gains else ""
    return (
        f"<p>Under the baseline its {escape(title(shown))}{methods}.</p>"
        f'<div class="wide tall"><table class="sortable"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )
