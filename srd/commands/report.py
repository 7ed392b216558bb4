"""Table and picture of a folder of runs: `srd report runs/demo`.

Writes report.md and report.png into the folder. Runs that differ only in their seed
(`<name>_seed<N>`) are one row: mean and spread.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from srd.cli import Parser, parse_strictly
from srd.errors import RunFailed, UserError
from srd.installed import need_extra
from srd.printable import printable_lines

COLOURS = {"teacher": "#7a7a7a", "alone": "#c8553d", "distilled": "#2a6f97"}
SHOWN = ("model", "train_images", "images", "acc1", "best_acc1", "seconds")  # of a result


def make_parser() -> Parser:
    """All flags."""
    parser = Parser(prog="srd report", description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", metavar="FOLDER", help="with a folder of each run in it")
    return parser


def run(arguments: Sequence[str]) -> None:
    """Show a folder of runs as a table and a picture.

    Raises:
        UserError: no finished run there, a damaged one, or no matplotlib.
        RunFailed: the folder cannot be written.
    """
    folder = Path(parse_strictly(make_parser(), arguments).folder).expanduser()
    need_extra("report", "matplotlib", what="pictures of runs")
    groups = collect(folder)
    text = table(groups)
    try:
        (folder / "report.md").write_text(text + "\n", encoding="utf-8")
        picture(groups, folder / "report.png")
    except OSError as error:
        raise RunFailed(f"cannot write {folder}/report.* ({error.strerror})") from None
    print(printable_lines(f"\n{text}\n\npicture: {folder / 'report.png'}"))


class Run(NamedTuple):
    """One finished run: its result, and top-1 after each epoch that was evaluated (from 1)."""

    result: Mapping[str, Any]
    curve: Mapping[int, float]


Groups = Mapping[str, Sequence[Run]]


def collect(folder: Path) -> Groups:
    """Finished runs under `folder`, grouped by name without the seed; the teacher first."""
    groups = defaultdict(list)
    for path in sorted(folder.glob("*/result.json")):
        name = re.sub(r"_seed\d+$", "", path.parent.name)
        groups["teacher" if name.endswith("_teacher") else name].append(read_run(path.parent))
    if not groups:
        raise UserError(f"no finished run in {folder}: looked for {folder}/*/result.json")
    return dict(sorted(groups.items(), key=lambda item: (item[0] != "teacher", item[0])))


def read_run(folder: Path) -> Run:
    """The run in a folder; a UserError where its files are damaged."""
    # torch takes seconds to import: mistakes in the command are told before
    from srd.run.folder import RunFolder
    from srd.run.log import read_metrics

    files = RunFolder(folder)
    result = files.read_result() or {}
    if missing := [name for name in SHOWN if name not in result]:
        raise UserError(f"{files.result} is no run's result: it has no {missing[0]}")
    try:
        rows = read_metrics(files.metrics, "eval")
        curve = {row["epoch"] + 1: row["acc1"] for row in rows if "model" not in row}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{files.metrics} is damaged or not there ({error})") from None
    return Run(result, curve)


def spread(values: Sequence[float]) -> str:
    """`97.3 ± 0.4 (n=3)`: mean and sample standard deviation."""
    deviation = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean(values):.1f}{deviation} (n={len(values)})"


def table(groups: Groups) -> str:
    """Markdown: accuracy after the last epoch on the held-out images, mean and spread over seeds."""
    lines = [
        "| run | model | trained on | top-1 after the last epoch, % | best epoch, % | seconds each |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, runs in groups.items():
        first = runs[0].result
        lines.append(
            f"| {name} | {first['model']} | {first['train_images']} images "
            f"| {spread([run.result['acc1'] for run in runs])} "
            f"| {spread([run.result['best_acc1'] for run in runs])} "
            f"| {mean(run.result['seconds'] for run in runs):.0f} |"
        )
    return "\n".join(lines)


def picture(groups: Groups, path: Path) -> None:
    """Curves of top-1 over epochs, and a bar a run, as a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2))
    curves, bars = figure.subplots(1, 2, width_ratios=(3, 2))
    images = next(iter(groups.values()))[0].result["images"]
    for position, (name, runs) in enumerate(groups.items()):
        colour = COLOURS.get(name, f"C{position}")
        draw_curves(curves, name, runs, colour=colour)
        draw_bar(bars, position, [run.result["acc1"] for run in runs], colour=colour)
    curves.set(xlabel="epoch", ylabel="top-1, %", title=f"Accuracy on {images} held-out images")
    curves.legend(loc="lower right")
    curves.grid(alpha=0.3)
    lowest = min(run.result["acc1"] for runs in groups.values() for run in runs)
    bars.set_xticks(range(len(groups)), list(groups))
    bars.set(ylim=(max(0.0, lowest - 4), 100.9), ylabel="top-1, % (axis cut)")
    bars.set_title("After the last epoch, each seed a dot")
    bars.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def draw_curves(axes: Any, name: str, runs: Sequence[Run], *, colour: str) -> None:
    """A thin line for each seed, and a thick one for the mean where all of them were measured."""
    for run in runs:
        axes.plot(list(run.curve), list(run.curve.values()), color=colour, lw=0.8, alpha=0.45)
    epochs = sorted(set.intersection(*(set(run.curve) for run in runs)))
    means = [mean(run.curve[epoch] for run in runs) for epoch in epochs]
    axes.plot(epochs, means, color=colour, linewidth=2.2, label=name)


def draw_bar(axes: Any, position: int, finals: Sequence[float], *, colour: str) -> None:
    """The mean with its sample standard deviation, and a dot for each seed."""
    middle, error = mean(finals), stdev(finals) if len(finals) > 1 else 0.0
    errors = {"yerr": error, "capsize": 5} if error else {}
    axes.bar(position, middle, color=colour, width=0.65, **errors)
    axes.plot([position] * len(finals), finals, "k.", markersize=5)
    top = (position, max(*finals, middle + error))
    axes.annotate(f"{middle:.1f}", top, (0, 8), textcoords="offset points", ha="center")
