"""The page of a report: one HTML file that needs nothing beside it and fetches nothing."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any

from srd.printable import printable
from srd.report.classes import (
    MOST_CLASSES,
    ClassAccuracy,
    confusion,
    most_confused,
    per_class,
    student_and_teacher,
)
from srd.report.groups import Group
from srd.report.panels import PANELS, as_svg, style
from srd.report.runs import Run
from srd.report.table import columns, note, rows
from srd.run.predictions import Predictions, Told, agreement, in_common, media_type

# Nothing on the page may run or be fetched, whatever a name in it has become.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
DASHED = {"-": "", "--": ' stroke-dasharray="5 3"', ":": ' stroke-dasharray="2 2"'}


def text(value: Any) -> str:
    """Any text as HTML that reads like it."""
    return html.escape(printable(str(value)))


def make_page(groups: Sequence[Group], title: str) -> str:
    """The whole page."""
    style_sheet = files("srd.report").joinpath("page.css").read_text(encoding="utf-8")
    few, many = columns(groups)
    runs = sum(len(group.runs) for group in groups)
    described = [run for group in groups for run in group.runs if run.predictions is not None]
    body = [
        f"<h1>{text(title)}</h1>",
        f'<p class="dim">{runs} run{"s" * (runs != 1)} in {len(groups)} '
        f"group{'s' * (len(groups) != 1)}; runs that differ only in their seed are one group.</p>",
        _table(*rows(groups, few)),
        f'<p class="dim">{text(note(groups))}</p>',
        *_settings(groups, many),
        "<h2>Curves</h2>",
        _legend(groups),
        '<p class="dim">Thick: the mean over seeds. Thin: each run.</p>',
        f'<div class="panels">{"".join(_panels(groups))}</div>',
    ]
    if described:
        body.append("<h2>Classes and pictures</h2>")
        body += [_run(run, opened=number == 0) for number, run in enumerate(described)]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>\n{style_sheet}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _table(titles: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{text(title).replace('.', '.<wbr>')}</th>" for title in titles)
    lines = "".join(f"<tr>{''.join(map(_cell, line))}</tr>" for line in body)
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _cell(cell: str) -> str:
    """With the whole text to be read where it is cut off."""
    return f'<td title="{text(cell)}">{text(cell)}</td>'


def _settings(groups: Sequence[Group], differing: dict[str, list[str]]) -> list[str]:
    if not differing:
        return []
    titles = ["run", *differing]
    body = [
        [group.name, *(values[number] for values in differing.values())]
        for number, group in enumerate(groups)
    ]
    return ["<h2>Settings that differ</h2>", _table(titles, body)]


def _legend(groups: Sequence[Group]) -> str:
    entries = []
    for number, group in enumerate(groups):
        colour, dashes = style(number)
        entries.append(
            f'<li><svg viewBox="0 0 28 8" aria-hidden="true"><path d="M0 4H28" stroke="{colour}" '
            f'stroke-width="3"{DASHED[dashes]}/></svg>{text(group.name)}</li>'
        )
    return f'<ul class="legend">{"".join(entries)}</ul>'


def _panels(groups: Sequence[Group]) -> Iterable[str]:
    for panel in PANELS:
        if (drawn := as_svg(panel, groups)) is None:
            continue
        light, dark = drawn
        yield (
            f"<figure><figcaption>{text(panel.title)}</figcaption><picture>"
            f'<source media="(prefers-color-scheme: dark)" srcset="{_data(dark, "image/svg+xml")}">'
            f'<img alt="{text(panel.title)}" src="{_data(light, "image/svg+xml")}">'
            "</picture></figure>"
        )


def _data(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _run(run: Run, *, opened: bool) -> str:
    """What the run's predictions tell."""
    predictions = run.predictions
    assert predictions is not None
    student, teacher = predictions.student, predictions.teacher
    if student is None:
        return ""
    parts = [f"<summary>{text(run.name)}: {run.last:.1f} %</summary>"]
    if teacher is not None:
        parts += _beside_teacher(student, teacher)
    names = predictions.class_names
    parts += ["<h3>Accuracy of each class</h3>", *_classes(per_class(predictions))]
    parts += _confusion(student, names)
    if predictions.examples:
        what = "Student and teacher differ" if teacher else "The surest mistakes"
        parts += [f"<h3>{what}</h3>", _examples(predictions)]
    return f"<details{' open' * opened}>{''.join(parts)}</details>"


def _beside_teacher(student: Told, teacher: Told) -> list[str]:
    counts = student_and_teacher(student, teacher)
    images = sum(counts.values())
    if (share := agreement(student, teacher)) is None:
        return []
    body = [[name, str(count), f"{100 * count / images:.1f}"] for name, count in counts.items()]
    return [
        "<h3>Student and teacher</h3>",
        f"<p>They name the same class on {share:.1f} % of {images} images that both have seen.</p>",
        _table(["", "images", "%"], body),
    ]


def _classes(classes: Sequence[ClassAccuracy]) -> list[str]:
    if len(classes) <= 2 * MOST_CLASSES:
        return [_class_table(classes)]
    worst, best = classes[:MOST_CLASSES], classes[-MOST_CLASSES:]
    return [
        f'<p class="dim">{len(classes)} classes: the worst {len(worst)}, and the best.</p>',
        f'<div class="columns">{_class_table(worst)}{_class_table(best[::-1])}</div>',
    ]


def _class_table(classes: Sequence[ClassAccuracy]) -> str:
    taught = any(one.teacher is not None for one in classes)
    titles = ["class", "images", "student, %", *["teacher, %"] * taught]
    body = [
        [one.name, str(one.images), f"{one.student:.1f}",
         *["" if one.teacher is None else f"{one.teacher:.1f}"] * taught]
        for one in classes
    ]  # fmt: skip
    return _table(titles, body)


def _confusion(student: Told, names: Sequence[str]) -> list[str]:
    matrix = confusion(student, names)
    most = max(1, int(matrix.counts.max(initial=0)))
    lines = []
    for name, counts in zip(matrix.names, matrix.counts.tolist(), strict=True):
        cells = "".join(
            f'<td{" class=zero" * (count == 0)} style="background:rgba(var(--heat),'
            f'{0.85 * (count / most) ** 0.5:.2f})">{count}</td>'
            for count in counts
        )
        lines.append(f"<tr><th>{text(name)}</th>{cells}</tr>")
    head = "".join(f"<th>{text(name)}</th>" for name in matrix.names)
    left_out = f" The {len(matrix.names)} most confused classes." if matrix.left_out else ""
    pairs = [[a, b, str(count)] for a, b, count in most_confused(student, names)]
    return [
        "<h3>What is taken for what</h3>",
        f'<p class="dim">Rows: the class. Columns: what the student says.{left_out}</p>',
        '<div class="columns"><div class="wide"><table class="matrix"><thead><tr><th></th>'
        f"{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>",
        _table(["class", "taken for", "images"], pairs) if pairs else "<p>No mistake.</p>",
        "</div>",
    ]


def _examples(predictions: Predictions) -> str:
    student, teacher = predictions.student, predictions.teacher
    assert student is not None
    told = {"student": student}
    if teacher is not None:
        told["student"], told["teacher"] = in_common(student, teacher)
    figures = []
    for image, picture in predictions.examples.items():
        row = next((r for r, i in enumerate(told["student"].images.tolist()) if i == image), None)
        if row is None:
            continue
        target = int(told["student"].targets[row])
        said = [f"{who}: {_said(one, row, predictions.class_names)}" for who, one in told.items()]
        small = " class=small" * picture.startswith(b"\x89PNG")
        figures.append(
            f'<figure><img{small} alt="{text(predictions.names[image])}" '
            f'title="{text(predictions.names[image])}" src="{_data(picture, str(media_type(picture)))}">'
            f"<b>{text(predictions.class_names[target])}</b><br>{'<br>'.join(said)}</figure>"
        )
    return f'<div class="examples">{"".join(figures)}</div>'


def _said(told: Told, row: int, class_names: Sequence[str]) -> str:
    """A class and how sure the network is, green or red."""
    right = told.classes[row] == told.targets[row]
    name = text(class_names[int(told.classes[row])])
    return (
        f'<span class="{"right" if right else "wrong"}">{name}</span> '
        f"{100 * told.probabilities[row]:.0f} %"
    )
