"""Runs that differ in their seeds alone, folded together; and what differs between the others."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from scipy.special import stdtrit

from srd.config.fields import NOT_RECIPE
from srd.report.runs import Run, is_number

# Other weights of a teacher, or other pictures, make another experiment, whatever they are called.
TELLING = ("teacher.checkpoint", "data.path")
STUDENTS = ("model.name", "distill.", "teacher.")  # what a teacher's training does not read
IGNORED = ("seed", *(key for key in NOT_RECIPE if key not in TELLING))


@dataclass(frozen=True)
class Spread:
    """Of one number over seeds: n, mean, sample standard deviation, and a 95 % interval of the mean.

    The interval is Student's t with n - 1 degrees of freedom; None, as the deviation, for n = 1.
    """

    n: int
    mean: float
    deviation: float | None
    half: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        n = len(values)
        if n == 1:
            return cls(1, values[0], None, None)
        deviation = stdev(values)
        half = float(stdtrit(n - 1, 0.975)) * deviation / n**0.5
        return cls(n, mean(values), deviation, half)

    def __str__(self) -> str:
        return self.text(1)

    def text(self, digits: int) -> str:
        """`94.3 ± 1.5`."""
        return f"{self.mean:.{digits}f}" + (f" ± {self.deviation:.{digits}f}" if self.n > 1 else "")

    def interval(self, digits: int = 1) -> str:
        """`94.1 to 97.2`, or that a single run has none."""
        if self.half is None:
            return "one run"
        return f"{self.mean - self.half:.{digits}f} to {self.mean + self.half:.{digits}f}"


@dataclass(frozen=True)
class Group:
    """Runs of the same settings, each with its own seed."""

    name: str
    runs: Sequence[Run]

    @property
    def settings(self) -> Mapping[str, Any]:
        """Of its first run; where that is torchdistill's, what its result tells."""
        run = self.runs[0]
        told = run.result or {}
        if not run.settings:
            names = {"model.name": "model", "teacher.name": "teacher"}
            return {key: told[name] for key, name in names.items() if told.get(name)}
        if not is_teacher(run):
            return _recipe(run)
        # a teacher's configuration may be its student's, too
        own = {k: v for k, v in _recipe(run).items() if not k.startswith(STUDENTS)}
        return {**own, "model.name": run.settings.get("teacher.name")}

    @property
    def labelled(self) -> bool:
        """Whether its runs are measured by their accuracy, not by a distance to the teacher."""
        return self.runs[0].measure == "acc1"

    @property
    def last(self) -> Spread:
        """Top-1, or the distance, at the end."""
        return Spread.of([run.last for run in self.runs])

    @property
    def best(self) -> Spread:
        """Of the best epoch, chosen on the same images: optimistic."""
        return Spread.of([run.best for run in self.runs])

    @property
    def state(self) -> str:
        """Whether its runs are finished."""
        states = dict.fromkeys(run.state for run in self.runs)
        return "; ".join(states)

    def over(self, name: str) -> Spread | None:
        """A number in the results of its finished runs."""
        values = [run.result.get(name) for run in self.runs if run.result]
        numbers = [float(value) for value in values if is_number(value)]
        return Spread.of(numbers) if numbers else None

    def mean_curve(self, name: str, kind: str = "evaluations") -> dict[int, float]:
        """The mean over its runs, in the epochs in which all of them were measured."""
        curves = [curve for run in self.runs if (curve := run.curve(name, kind))]
        epochs = set.intersection(*map(set, curves)) if curves else set()
        return {epoch: mean(curve[epoch] for curve in curves) for epoch in sorted(epochs)}


def _recipe(run: Run) -> dict[str, Any]:
    """What makes its result besides its seed."""
    return {key: value for key, value in run.settings.items() if not key.startswith(IGNORED)}


def fold(runs: Sequence[Run]) -> list[Group]:
    """Runs that differ in their seeds alone become one group; teachers first, then by name.

    A seed that comes twice is one run twice, not two: it opens a group of its own.
    """
    groups: list[tuple[Any, list[Run]]] = []
    for run in runs:
        key = _key(run)
        for other, members in groups:
            if other == key and run.seed not in (None, *(member.seed for member in members)):
                members.append(run)
                break
        else:
            groups.append((key, [run]))
    folded = [Group(_name(members), members) for _, members in groups]
    return sorted(folded, key=lambda group: (not is_teacher(group.runs[0]), group.name))


def _key(run: Run) -> Any:
    recipe = _recipe(run) if run.settings else _without_seed(run.name)
    return is_teacher(run) and bool(run.settings), run.measure, recipe


def _without_seed(name: str) -> str:
    return re.sub(r"[_-]?seed[=_]?\d+$", "", name) or name


def _name(runs: Sequence[Run]) -> str:
    """Without the seed; where that leaves several names, the first."""
    return _without_seed(runs[0].name)


def is_teacher(run: Run) -> bool:
    """By its result, or else by its name: its settings may be those of its student."""
    return (run.result or {}).get("trained") == "teacher" or "teacher" in run.folder.name


def differences(groups: Sequence[Group]) -> dict[str, list[str]]:
    """Settings of which two groups have different values: by name, a text for each group.

    A group that has no such setting (another loss, a teacher) gets a `-`, which is no value.
    """
    settings = [{k: _text(v) for k, v in group.settings.items()} for group in groups]
    keys = dict.fromkeys(key for values in settings for key in values)
    columns = {key: [values.get(key, "-") for values in settings] for key in keys}
    return {key: values for key, values in columns.items() if len({*values} - {"-"}) > 1}


def _text(value: Any) -> str:
    """As YAML would have it."""
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )
