"""What a study found: a table with intervals, a plot, and a page that says how it was made."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from srd.printable import as_code, printable_lines
from srd.study.runs import Tested
from srd.study.studies import Study, Variant

Results = Sequence[tuple[Variant, Sequence[Tested]]]


def half_interval(values: Sequence[float]) -> float | None:
    """Half the width of the 95 % interval of the mean (Student's t); None of a single value."""
    if len(values) < 2:
        return None
    from scipy.stats import t  # scikit-learn's; it takes a second to import

    return float(t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5


def spread(values: Sequence[float]) -> str:
    """`93.1 ± 0.4 (92.6 to 93.6)`: mean, sample standard deviation, 95 % interval of the mean."""
    if (half := half_interval(values)) is None:
        return f"{values[0]:.1f}"
    middle = mean(values)
    return f"{middle:.1f} ± {stdev(values):.1f} ({middle - half:.1f} to {middle + half:.1f})"


def table(results: Results) -> str:
    """Markdown, a row for each variant."""
    lines = [
        "| variant | top-1 of the selected epoch, % | top-1 after the last epoch, % | "
        "effective rank of P | searched | seeds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for variant, runs in results:
        ranks = [run.effective_rank for run in runs if run.effective_rank is not None]
        rank = f"{mean(ranks):.0f}" if ranks else ""
        lines.append(
            f"| {variant.label} | {spread([run.selected for run in runs])} "
            f"| {spread([run.last for run in runs])} | {rank} "
            f"| {variant.search.key} {runs[0].chosen:g} | {len(runs)} |"
        )
    return "\n".join(lines)


def page(
    name: str,
    study: Study,
    results: Results,
    *,
    command: str,
    data: str,
    made_with: Mapping[str, Any],
    picture: str,
) -> str:
    """A page of Markdown.

    Args:
        data: what was trained and tested on, in a sentence.
        made_with: `srd.run.provenance.provenance()`.
    """
    versions = ", ".join(f"{key} {value}" for key, value in made_with["versions"].items())
    seconds = sum(run.seconds for _, runs in results for run in runs)
    return f"""# {name}

{study.question} ({study.source})

Reproduced here. {data}

{table(results)}

Mean ± sample standard deviation over seeds, and the 95 % interval of the mean (Student's t). Epochs
and searched settings were chosen on images held out of the training split; the reported images were
looked at once for each run.

![{name}]({picture})

Made by

{as_code(command, "bash")}
in {seconds:.0f} s of training (reported runs alone), with {versions}, commit {made_with["git_commit"]}.
"""


def picture(name: str, results: Results) -> bytes:
    """A line for each variant: its seeds as dots, the mean with its 95 % interval; a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 1.2 + 0.42 * len(results)))
    axes = figure.subplots()
    for row, (_, runs) in enumerate(results):
        values = [run.selected for run in runs]
        axes.plot(values, [row] * len(values), "o", color="#9db4c0", markersize=5, zorder=2)
        half = half_interval(values)
        axes.errorbar(
            mean(values), row, xerr=half, fmt="|", color="#1d3557", capsize=4,
            markersize=14, markeredgewidth=2.2, zorder=3,
        )  # fmt: skip
    axes.set_yticks(range(len(results)), [variant.label for variant, _ in results])
    axes.invert_yaxis()
    axes.set_xlabel("top-1 on the reported images, % (dots: seeds; bar: mean, 95 % interval)")
    axes.set_title(name, loc="left")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.tight_layout()
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=130)
    return file.getvalue()


def shown(text: str) -> str:
    """For a terminal."""
    return printable_lines(text)
