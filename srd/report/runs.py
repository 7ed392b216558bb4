"""One run, as far as it came: what its folder says, finished or not."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from srd.config.layers import flatten, read_yaml
from srd.errors import UserError
from srd.files.limits import LIMITS
from srd.files.opened import Refused, read_small
from srd.run.folder import SCORES, RunFolder
from srd.run.predictions import Predictions, read_predictions
from srd.strict import MOST_COUNT, MOST_FLOAT

DEEPEST = 3  # folders below the one that is named, in which runs are looked for
Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run left.

    Args:
        name: of its folder, as far as it tells it from the others.
        settings: by dotted names; empty where its configuration is torchdistill's.
        result: None while it is not finished.
        evaluations: rows of `metrics.jsonl`, by epoch from 1; of the student alone.
        epochs, projector: likewise, the rows of those kinds.
    """

    name: str
    folder: Path
    settings: Mapping[str, Any]
    result: Mapping[str, Any] | None
    evaluations: Mapping[int, Row]
    epochs: Mapping[int, Row]
    projector: Mapping[int, Row]
    predictions: Predictions | None = None

    @property
    def seed(self) -> int | str | None:
        """What it was drawn from: its setting, its result's, or the end of its name."""
        for values in (self.settings, self.result or {}):
            if isinstance(values.get("seed"), int):
                return int(values["seed"])
        named = re.search(r"_seed(\d+)$", self.name)
        return int(named[1]) if named else None

    @property
    def measure(self) -> str:
        """What it is measured by: `acc1`, in percent, or without labels `distance`."""
        told = self.result or self.evaluations[max(self.evaluations)]
        return next(name for name in SCORES if name in told)

    @property
    def best(self) -> float:
        """The highest top-1, or the least distance, of all epochs; its last where none is there."""
        values = [float(row[self.measure]) for row in self.evaluations.values()]
        choose = max if self.measure == "acc1" else min
        return choose(values, default=self.last)

    @property
    def last(self) -> float:
        """Top-1, or distance, at its end; of an unfinished run, in its last evaluation so far."""
        told = self.result or self.evaluations[max(self.evaluations)]
        return float(told[self.measure])

    @property
    def state(self) -> str:
        """`finished`, or how far it is."""
        if self.result is not None:
            return "finished"
        total = self.settings.get("train.epochs")
        reached = max([*self.epochs, *self.evaluations], default=0)
        return "unfinished" + (f": epoch {reached} of {total}" if total else "")

    def curve(self, name: str, kind: str = "evaluations") -> dict[int, float]:
        """A number by epoch, where it is one."""
        rows: Mapping[int, Row] = getattr(self, kind)
        return {epoch: float(row[name]) for epoch, row in rows.items() if is_number(row.get(name))}


def find_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs that the folders are, or hold; each once, in the order of their names.

    Raises:
        UserError: a folder without a run, or a damaged one.
    """
    places: dict[Path, Path] = {}  # resolved, to as it was named
    for folder in folders:
        found = list(_places(folder, DEEPEST))
        if not found:
            raise UserError(
                f"no run in {folder}: looked for metrics.jsonl there and {DEEPEST} folders down"
            )
        for place in found:
            places.setdefault(Path(os.path.realpath(place)), place)
    names = _short_names(list(places))
    runs = [read_run(place, name) for place, name in zip(places.values(), names, strict=True)]
    if not (measured := [run for run in runs if run.evaluations or run.result]):
        raise UserError(f"no run in {folders[0]} has been evaluated yet: nothing to compare")
    return measured


def _places(folder: Path, deepest: int) -> Iterator[Path]:
    if os.path.isfile(folder / "metrics.jsonl"):
        yield folder
    elif deepest:
        try:
            inside = sorted(path for path in folder.iterdir() if path.is_dir())
        except OSError:
            return
        for path in inside:
            yield from _places(path, deepest - 1)


def _short_names(places: list[Path]) -> list[str]:
    """The folders' paths without what all of them begin with."""
    if len(places) == 1:
        return [places[0].name]
    common = Path(os.path.commonpath(places))
    return [str(place.relative_to(common)) for place in places]


def read_run(folder: Path, name: str) -> Run:
    """The run in a folder.

    Raises:
        UserError: its files are damaged; what is not there yet is no damage.
    """
    files = RunFolder(folder)
    result = files.finished()
    if result is None and os.path.isfile(files.result):
        raise UserError(
            f"{files.result} is no run's result: it has neither acc1 and best_acc1, nor distances"
        )
    rows = _read_rows(files.metrics)
    students = [row for row in rows if row["kind"] != "eval" or "model" not in row]
    evaluations = _by_epoch(students, "eval")
    told = [_scores(row) for row in evaluations.values()]
    told += [{name for name in SCORES if name in result}] if result else []
    if told and not set.intersection(*told):
        raise UserError(f"{files.metrics} is damaged: an evaluation without acc1, or distance")
    return Run(
        name=name,
        folder=folder,
        settings=_settings(files.config),
        result=result,
        evaluations=evaluations,
        epochs=_by_epoch(students, "epoch"),
        projector={e: row for e, row in evaluations.items() if "effective_rank" in row},
        predictions=read_predictions(files.predictions),
    )


def _scores(row: Row) -> set[str]:
    """What the evaluation measured of `SCORES`, within its range."""
    return {
        name
        for name, (least, most) in SCORES.items()
        if is_number(row.get(name)) and least <= row[name] <= most
    }


def _read_rows(path: Path) -> list[Row]:
    """All rows; the last line of a run that is being written may be torn."""
    try:
        lines = (
            read_small(path, LIMITS.metrics_bytes).decode("utf-8", errors="replace").splitlines()
        )
    except (OSError, Refused) as error:
        raise UserError(f"{path} cannot be read ({error})") from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            epoch = row["epoch"]
            if (
                not isinstance(row["kind"], str)
                or type(epoch) is not int
                or not 0 <= epoch < MOST_COUNT
            ):
                raise ValueError("kind and epoch")
        except (ValueError, LookupError, TypeError, RecursionError):
            if number == len(lines):
                break
            raise UserError(f"{path} is damaged: line {number} is no row") from None
        rows.append(row)
    return rows


def _by_epoch(rows: list[Row], kind: str) -> dict[int, Row]:
    return {row["epoch"] + 1: row for row in rows if row["kind"] == kind}


def _settings(path: Path) -> dict[str, Any]:
    """By dotted names; {} where there is none, or it has torchdistill's tags."""
    try:
        settings = flatten(read_yaml(path))
    except UserError:
        return {}
    return settings if "seed" in settings else {}


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a file gave a number that can be averaged, and drawn."""
    return type(value) in (int, float) and abs(value) <= MOST_FLOAT
