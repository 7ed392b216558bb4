"""What a study found: a table with intervals, a plot, and a page that says how it was made."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from srd.printable import as_code, printable_lines
from srd.study.studies import KD, Study, Variant
from srd.study.tested import Tested

SPREAD = """Mean ± sample standard deviation over seeds, and the 95 % interval of the mean
(Student's t)."""
PAIRED = """ Runs of a
seed saw the same views, and what the same teacher said of them, so their differences vary less."""
ONE_SEED = "One seed, which says nothing of how much another would differ."

Results = Sequence[tuple[Variant, Sequence[Tested]]]


def half_interval(values: Sequence[float]) -> float | None:
    """Half the width of the 95 % interval of the mean (Student's t); None of a single value."""
    if len(values) < 2:
        return None
    from scipy.stats import t  # scikit-learn's; it takes a second to import

    return float(t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5


def spread(values: Sequence[float], sign: str = "", places: int = 1) -> str:
    """`93.1 ± 0.4 (92.6 to 93.6)`: mean, sample standard deviation, 95 % interval of the mean.

    Args:
        sign: `+` for differences.
        places: after the point.
    """
    form = f"{sign}.{places}f"
    if (half := half_interval(values)) is None:
        return f"{values[0]:{form}}"
    middle = mean(values)
    ends = f"{middle - half:{form}} to {middle + half:{form}}"
    return f"{middle:{form}} ± {stdev(values):.{places}f} ({ends})"


COLUMNS: dict[str, tuple[str, int]] = {  # what is shown: its head, its places after the point
    "effective_rank": ("effective rank of P", 1),
    "correlation": ("correlation of P's inputs and outputs", 3),
    "shift_error": ("what a shift changes in the features", 3),
    "same_class": ("class kept under a shift, %", 1),
}


def columns(study: Study) -> Sequence[str]:
    """Fields of `Tested` that the study's table shows beside the accuracies."""
    if study.shows == "shift_error":
        return ["shift_error", "same_class"]
    return ["effective_rank", "correlation"] if study.shows == "correlation" else ["effective_rank"]


def control_of(results: Results) -> tuple[Variant, Sequence[Tested]]:
    """What the others are compared with: the teacher's logits without a projector, else the first."""
    return next((pair for pair in results if pair[0].settings == KD), results[0])


def table(study: Study, results: Results) -> str:
    """Markdown, a row for each variant; the last epochs beside those of a control with the same seeds."""
    shown, control = columns(study), control_of(results)
    heads = ["variant", "top-1 of the selected epoch, %", "top-1 after the last epoch, %"]
    heads += [
        f"that over {control[0].label}'s, seed by seed",
        *(head for name in shown for head in heads_of(name, control)),
        "searched",
        *([f"reported by others: {study.reported}"] if study.reported else []),
        "seeds",
    ]
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for variant, runs in results:
        cells = [variant.label, spread([run.selected for run in runs])]
        cells += [spread([run.last for run in runs])]
        pairs = zip(runs, control[1], strict=True)
        cells += ["" if runs is control[1] else spread([a.last - b.last for a, b in pairs], "+")]
        cells += [cell for name in shown for cell in seen(runs, name, control[1])]
        chosen = runs[0].chosen
        cells += [f"{variant.search.key} {chosen:g}" if variant.search and chosen else ""]
        cells += [variant.reported] if study.reported else []
        lines.append(f"| {' | '.join([*cells, str(len(runs))])} |")
    return "\n".join(lines)


def heads_of(name: str, control: tuple[Variant, Sequence[Tested]]) -> list[str]:
    """Of a measure's column, and of that of its differences where the control has it."""
    differences = [f"that over {control[0].label}'s"] if has(control[1], name) else []
    return [COLUMNS[name][0], *differences]


def has(runs: Sequence[Tested], name: str) -> bool:
    """Whether all have a measure."""
    return all(getattr(run, name) is not None for run in runs)


def seen(runs: Sequence[Tested], name: str, control: Sequence[Tested]) -> list[str]:
    """A measure's cells (see `heads_of`); empty where a run has none."""
    own, others = ([getattr(run, name) for run in of] for of in (runs, control))
    places, there = COLUMNS[name][1], has(runs, name)
    cells = [spread(own, places=places) if there else ""]
    if has(control, name):
        pairs = zip(own, others, strict=True)
        compared = there and runs is not control
        cells.append(spread([a - b for a, b in pairs], "+", places) if compared else "")
    return cells


def page(
    name: str,
    study: Study,
    results: Results,
    *,
    command: str,
    data: str,
    made_with: Mapping[str, Any],
    picture: str,
    search: bool,
) -> str:
    """A page of Markdown.

    Args:
        search: whether settings were searched.
        data: what was trained and tested on, in a sentence.
        made_with: `srd.run.provenance.provenance()`.
    """
    versions = ", ".join(f"{key} {value}" for key, value in made_with["versions"].items())
    chosen = "Epochs and searched settings were" if search else "Nothing was searched; epochs were"
    same = all(variant.settings.get("cache.epochs") is None for variant, _ in results)
    about = SPREAD + PAIRED * same if len(results[0][1]) > 1 else ONE_SEED
    reported = [run for _, runs in results for run in runs]
    made_by = sorted({run.commit for run in reported if run.commit}) or [made_with["git_commit"]]
    return f"""# {name}

{study.question} ({study.source})

Reproduced here. {data}

{table(study, results)}

{about}
{chosen} chosen on images held out of the training split; the reported images were
looked at once for each run.

![{name}]({picture})

Made by

{as_code(command, "bash")}
in {seconds(reported):.0f} s of training (reported runs alone), with {versions};
trained by commit {", ".join(map(str, made_by))}.
"""


def seconds(reported: Sequence[Tested]) -> float:
    """Of training; a run that two variants share counts once."""
    runs = {(run.seed, run.last, *run.history.get("acc1", ())): run.seconds for run in reported}
    return sum(runs.values())


def picture(name: str, study: Study, results: Results) -> bytes:
    """What the study shows; a PNG file."""
    from matplotlib.figure import Figure

    if study.over_epochs:
        figure = Figure(figsize=(10, 4.2))
        left, right = figure.subplots(1, 2)
        draw_history(left, study, results)
        draw_spectra(right, results) if study.shows == "effective_rank" else draw_dots(
            right, results, "selected"
        )
        left.set_title(name, loc="left")
    else:
        figure = Figure(figsize=(7.5, 1.2 + 0.42 * len(results)))
        axes = figure.subplots()
        draw_dots(axes, results, study.shows)
        axes.set_title(name, loc="left")
    figure.tight_layout()
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=130)
    return file.getvalue()


def draw_dots(axes: Any, results: Results, shows: str) -> None:
    """A line for each variant: its seeds as dots, the mean with its 95 % interval."""
    rows = [
        (variant.label, [value for run in runs if (value := getattr(run, shows)) is not None])
        for variant, runs in results
    ]
    rows = [(label, values) for label, values in rows if values]
    for row, (_, values) in enumerate(rows):
        axes.plot(values, [row] * len(values), "o", color="#9db4c0", markersize=5, zorder=2)
        axes.errorbar(
            mean(values), row, xerr=half_interval(values), fmt="|", color="#1d3557", capsize=4,
            markersize=14, markeredgewidth=2.2, zorder=3,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [label for label, _ in rows])
    axes.invert_yaxis()
    what = "top-1 on the reported images, %" if shows == "selected" else COLUMNS[shows][0]
    axes.set_xlabel(f"{what}\n(dots: seeds; bar: mean, 95 % interval)")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)


def draw_history(axes: Any, study: Study, results: Results) -> None:
    """What the study shows at every evaluation: the mean over seeds, and their range."""
    for variant, runs in results:
        curves = [run.history[study.shows] for run in runs if study.shows in run.history]
        if not curves:
            continue
        epochs = [epoch + 1 for epoch in runs[0].history["epoch"]]
        low, middle, high = (
            [of(values) for values in zip(*curves, strict=True)] for of in (min, mean, max)
        )
        (line,) = axes.plot(epochs, middle, label=variant.label)
        axes.fill_between(epochs, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set(xlabel="epoch", ylabel=COLUMNS[study.shows][0])
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def draw_spectra(axes: Any, results: Results) -> None:
    """Singular values after the last epoch as shares of the largest, the mean over seeds."""
    for variant, runs in results:
        spectra = [run.singular_values for run in runs if run.singular_values]
        if spectra:
            shares = [[value / max(values[0], 1e-30) for value in values] for values in spectra]
            axes.plot([mean(values) for values in zip(*shares, strict=True)], label=variant.label)
    axes.set(xlabel="singular value", ylabel="share of the largest", yscale="log")
    axes.spines[["top", "right"]].set_visible(False)


def shown(text: str) -> str:
    """For a terminal."""
    return printable_lines(text)
