"""Table and picture of a folder of runs: `python scripts/report.py runs/demo`.

Runs that differ only in their seed (`<name>_seed<N>`) are one row: mean and spread.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from srd.errors import UserError, exit_code
from srd.run.log import read_metrics

COLOURS = {"teacher": "#7a7a7a", "alone": "#c8553d", "distilled": "#2a6f97"}


class Run(NamedTuple):
    """One finished run: its result, and (epoch, top-1) at each evaluation."""

    result: dict[str, Any]
    curve: list[tuple[int, float]]


def collect(folder: Path) -> dict[str, list[Run]]:
    """Finished runs under `folder`, grouped by name without the seed; the teacher first."""
    groups: dict[str, list[Run]] = {}
    for path in sorted(folder.glob("*/result.json")):
        rows = read_metrics(path.parent / "metrics.jsonl", "eval")
        curve = [(row["epoch"] + 1, row["acc1"]) for row in rows if "model" not in row]
        name = re.sub(r"_seed\d+$", "", path.parent.name)
        name = "teacher" if name.endswith("_teacher") else name
        groups.setdefault(name, []).append(Run(json.loads(path.read_text()), curve))
    if not groups:
        raise UserError(f"no finished run in {folder}: looked for {folder}/*/result.json")
    return dict(sorted(groups.items(), key=lambda item: (item[0] != "teacher", item[0])))


def spread(values: list[float]) -> str:
    """`97.3 ± 0.4 (n=3)`: mean and sample standard deviation."""
    deviation = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean(values):.1f}{deviation} (n={len(values)})"


def table(groups: dict[str, list[Run]]) -> str:
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


def picture(groups: dict[str, list[Run]], path: Path) -> None:
    """Curves of top-1 over epochs (a thin line a seed, a thick one for the mean) and a bar a run."""
    figure, (curves, bars) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=(3, 2))
    for position, (name, runs) in enumerate(groups.items()):
        colour = COLOURS.get(name, f"C{position}")
        for run in runs:
            curves.plot(*zip(*run.curve, strict=True), color=colour, linewidth=0.8, alpha=0.45)
        epochs = [epoch for epoch, _ in runs[0].curve]
        means = [
            mean(values) for values in zip(*([y for _, y in r.curve] for r in runs), strict=True)
        ]
        curves.plot(epochs, means, color=colour, linewidth=2.2, label=name)
        finals = [run.result["acc1"] for run in runs]
        error = stdev(finals) if len(finals) > 1 else None
        bars.bar(position, mean(finals), yerr=error, capsize=5, color=colour, width=0.65)
        bars.plot([position] * len(finals), finals, "k.", markersize=5)
        bars.annotate(
            f"{mean(finals):.1f}",
            (position, max(*finals, mean(finals) + (error or 0))),
            (0, 8),
            textcoords="offset points",
            ha="center",
        )
    images = next(iter(groups.values()))[0].result["images"]
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
    plt.close(figure)


def main(arguments: list[str]) -> None:
    """Print the table; write `report.md` and `report.png` into the folder."""
    if len(arguments) != 1:
        raise UserError("usage: python scripts/report.py FOLDER")
    folder = Path(arguments[0])
    groups = collect(folder)
    text = table(groups)
    (folder / "report.md").write_text(text + "\n")
    picture(groups, folder / "report.png")
    print(f"\n{text}\n\npicture: {folder / 'report.png'}")


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:])))
