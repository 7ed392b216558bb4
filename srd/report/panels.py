"""The plots of a report, drawn with matplotlib: one panel a question."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice, product
from typing import Any

from srd.printable import printable
from srd.report.groups import Group
from srd.report.runs import is_number

# Told apart on white and on black, also by most of the colour-blind; then again as other lines.
COLOURS = (
    "#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#b07aa1", "#76b7b2", "#9c755f", "#d4a017",
)  # fmt: skip
DASHES = ("-", "--", ":")
INK, INK_ON_BLACK = "#212223", "#dcdddf"
Draw = Callable[[Any, Sequence[Group]], bool]


@dataclass(frozen=True)
class Panel:
    """A plot: its title, the names of its axes, and who draws it (False: nothing to draw)."""

    title: str
    x: str
    y: str
    draw: Draw


def style(number: int) -> tuple[str, str]:
    """Colour and dashes of a group's lines."""
    dashes, colour = next(islice(cycle(product(DASHES, COLOURS)), number, None))
    return colour, dashes


def over_epochs(name: str, kind: str = "evaluations") -> Draw:
    """A thin line for each run, and a thick one for the mean where all runs were measured."""

    def draw(axes: Any, groups: Sequence[Group]) -> bool:
        drawn = False
        for number, group in enumerate(groups):
            colour, dashes = style(number)
            curves = [curve for run in group.runs if (curve := run.curve(name, kind))]
            for curve in curves if len(curves) > 1 else ():
                axes.plot(*_points(curve), color=colour, linewidth=0.7, alpha=0.45)
            if means := group.mean_curve(name, kind):
                mark = "o" if len(means) == 1 else None
                axes.plot(*_points(means), color=colour, linestyle=dashes, linewidth=2, marker=mark)
            drawn |= bool(curves)
        return drawn

    return draw


def _points(curve: dict[int, float]) -> tuple[list[int], list[float]]:
    return list(curve), list(curve.values())


def finals(axes: Any, groups: Sequence[Group]) -> bool:
    """Top-1 at the end: a dot for each seed, the mean, and its 95 % interval."""
    shown = [(style(n)[0], group) for n, group in enumerate(groups) if group.labelled]
    if not shown:
        return False
    for number, (colour, group) in enumerate(shown):
        spread = group.last
        if spread.half is not None:
            axes.errorbar(spread.mean, number, xerr=spread.half, color=colour, capsize=4, lw=1.5)
        axes.plot(
            [run.last for run in group.runs], [number] * spread.n, ".", color=colour, alpha=0.5
        )
        axes.plot(spread.mean, number, "D", color=colour, markersize=6)
    axes.set_yticks(range(len(shown)), [label(group.name, 24) for _, group in shown])
    for text in axes.get_yticklabels():
        text.set_parse_math(False)
    axes.invert_yaxis()
    return True


def spectra(axes: Any, groups: Sequence[Group]) -> bool:
    """The projector's singular values, the largest first: at the start (dotted) and at the end."""
    drawn = False
    for number, group in enumerate(groups):
        rows = [
            values
            for epoch in sorted(group.runs[0].projector)
            if (values := group.runs[0].projector[epoch].get("singular_values"))
            and isinstance(values, list)
            and all(is_number(value) and value >= 0 for value in values)
        ]
        for values, line in zip(rows[:1] + rows[-1:], (":", "-"), strict=False):
            axes.plot(
                range(1, len(values) + 1), values, line, color=style(number)[0], linewidth=1.6
            )
            drawn = True
    return drawn


PANELS = (
    Panel("Accuracy of the student", "epoch", "top-1, %", over_epochs("acc1")),
    Panel("Accuracy at the end, 95 % interval over seeds", "top-1, %", "", finals),
    Panel("Distance to the teacher's features", "epoch", "distance", over_epochs("distance")),
    Panel("Training loss", "epoch", "loss", over_epochs("loss", "epochs")),
    Panel("Loss on the validation images", "epoch", "cross-entropy", over_epochs("loss")),
    Panel("Agreement with the teacher", "epoch", "same class, %", over_epochs("agreement")),
    Panel("Effective rank of the projector", "epoch", "effective rank",
          over_epochs("effective_rank", "projector")),
    Panel("Projector: correlation of outputs with inputs", "epoch", "mean |correlation|",
          over_epochs("correlation", "projector")),
    Panel("Singular values: first (dotted), last", "number", "singular value", spectra),
)  # fmt: skip


def label(text: str, most: int = 40) -> str:
    """A name as matplotlib may draw it, shortened in its middle."""
    text = printable(text)
    if len(text) > most:
        text = f"{text[: most // 2]}...{text[-(most // 2 - 3) :]}"
    return text


def as_svg(panel: Panel, groups: Sequence[Group]) -> tuple[bytes, bytes] | None:
    """One panel on a clear ground, for white pages and for black ones; None: nothing to draw."""
    with _drawing() as figure_of:
        figure = figure_of(
            5.2, 3.3 if panel.draw is not finals else max(2.2, 1 + 0.33 * len(groups))
        )
        if not _fill(figure.subplots(), panel, groups):
            return None
        figure.axes[0].set_title("")  # the page has it
        file = io.BytesIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    light = file.getvalue()
    return light, light.replace(INK.encode(), INK_ON_BLACK.encode())


def as_png(groups: Sequence[Group]) -> bytes:
    """All panels that have something to show, in one picture, with a legend."""
    with _drawing() as figure_of:
        shown = [panel for panel in PANELS if _fill(figure_of(1, 1).subplots(), panel, groups)]
        rows = -(-len(shown) // 2)
        legend = 0.25 * min(len(groups), 24) + 0.3
        figure = figure_of(11, height := 3.6 * rows + legend)
        figure.set_layout_engine("constrained", rect=(0, legend / height, 1, 1 - legend / height))
        grid = figure.subplots(rows, 2, squeeze=False).flatten()
        for axes, panel in zip(grid, shown, strict=False):
            _fill(axes, panel, groups)
        for axes in grid[len(shown) :]:
            axes.set_visible(False)
        _legend(figure, groups)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=130, facecolor="white")
    return file.getvalue()


def _legend(figure: Any, groups: Sequence[Group]) -> None:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=style(n)[0], linestyle=style(n)[1], lw=2) for n in range(24)]
    names = [f" {label(group.name, 90)} (n={len(group.runs)})" for group in groups[:24]]
    legend = figure.legend(lines[: len(names)], names, loc="lower left", frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a dollar in a name is only that


def _fill(axes: Any, panel: Panel, groups: Sequence[Group]) -> bool:
    if not panel.draw(axes, groups):
        return False
    axes.set_title(panel.title, fontsize=11)
    axes.set(xlabel=panel.x, ylabel=panel.y)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if panel.x in ("epoch", "number"):
        axes.xaxis.get_major_locator().set_params(integer=True)
    return True


@contextmanager
def _drawing() -> Iterator[Callable[[float, float], Any]]:
    """A way to make figures (inches) with text and axes in INK; complaints about fonts are left out."""
    import matplotlib
    from matplotlib.figure import Figure

    names = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    settings = {
        **dict.fromkeys((*names, "axes.titlecolor"), INK),
        "svg.fonttype": "none",
        "svg.hashsalt": "srd",
        "font.size": 10,
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield lambda width, height: Figure(figsize=(width, height), layout="constrained")
