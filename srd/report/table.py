"""The table of a report, as rows and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from srd.printable import as_markdown
from srd.report.groups import Group, Spread, differences

WIDE = 5  # settings that become columns in Markdown; more of them get a table of their own

NOTE = (
    "Top-1 at the end, on the validation images: mean ± standard deviation over n seeds, and Student's "
    "95 % interval of the mean. The best epoch is chosen on the same images, which flatters it. "
    "Agreement: the same class as the teacher's."
)
UNLABELLED = (
    " Of pictures without labels: the distance of the projected features to the teacher's, 1 - cosine "
    "where the loss has one, less is better."
)


def rows(
    groups: Sequence[Group], settings: dict[str, list[str]]
) -> tuple[list[str], list[list[str]]]:
    """Titles, and a row of texts for each group; `settings` become columns."""
    titles = [
        "run", *settings, "n", "top-1, %", "distance", "95 % interval", "best epoch, %",
        "best distance", "agreement, %", "epochs", "seconds", "state",
    ]  # fmt: skip
    lines = []
    for number, group in enumerate(groups):
        chosen = [values[number] for values in settings.values()]
        last, best, digits = group.last, group.best, 1 if group.labelled else 4
        lines.append(
            [
                group.name,
                *chosen,
                str(last.n),
                *_under(group, last.text(digits)),
                last.interval(digits),
                *_under(group, best.text(digits)),
                spread_text(group.over("agreement")),
                epochs_text(group),
                seconds_text(group.over("seconds")),
                group.state,
            ]
        )
    keep = [i for i in range(len(titles)) if any(line[i] for line in lines)]
    return [titles[i] for i in keep], [[line[i] for i in keep] for line in lines]


def _under(group: Group, text: str) -> tuple[str, str]:
    """A text in the column of accuracies, or in that of distances."""
    return (text, "") if group.labelled else ("", text)


def note(groups: Sequence[Group]) -> str:
    """What the numbers mean."""
    return NOTE + ("" if all(group.labelled for group in groups) else UNLABELLED)


def columns(groups: Sequence[Group]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Settings that differ: those that are few enough for the table, or those that are not."""
    differing = differences(groups)
    return (differing, {}) if len(differing) <= WIDE else ({}, differing)


def spread_text(spread: Spread | None) -> str:
    return "" if spread is None else str(spread)


def seconds_text(spread: Spread | None) -> str:
    return "" if spread is None else f"{spread.mean:.0f}"


def epochs_text(group: Group) -> str:
    """How many each run was trained for."""
    reached = [max([*run.epochs, *run.evaluations], default=0) for run in group.runs]
    low, high = min(reached), max(reached)
    return str(high) if low == high else f"{low} to {high}"


def markdown(groups: Sequence[Group]) -> str:
    """The report's text."""
    few, many = columns(groups)
    lines = [*_table(*rows(groups, few)), "", note(groups)]
    if many:
        body = [[key, *values] for key, values in many.items()]
        titles = ["setting", *(group.name for group in groups)]
        lines += ["", "Settings that differ:", "", *_table(titles, body)]
    return "\n".join(lines)


def _table(titles: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    lines = [[as_markdown(cell) for cell in line] for line in (titles, *body)]
    lines.insert(1, ["---"] * len(titles))
    return [f"| {' | '.join(line)} |" for line in lines]
