"""What is remembered of a study's run: its accuracies on the reported images, and what else was seen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import field
from io import StringIO
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass as checked

from srd.config.fields import Config
from srd.config.layers import Layer, build
from srd.errors import UserError
from srd.evaluation.of_checkpoint import evaluate_checkpoint
from srd.files.limits import LIMITS
from srd.files.opened import Refused, read_small
from srd.strict import STRICT

SEEN = ("epoch", "acc1", "effective_rank", "correlation", "agreement")
TESTED = "tested.json"  # in a run's folder: its accuracies on the reported images


@checked(config=STRICT, frozen=True, kw_only=True)
class Tested:
    """One run. Accuracies are top-1 in percent.

    Args:
        selected, last: on the reported images, of the epoch that was best on the held-out ones,
            and after the last.
        held_out: of that best epoch, on the held-out images.
        best_epoch: from 0.
        effective_rank: of the projector after the last epoch; None without one.
        chosen: the value of the searched setting; None where nothing was searched.
        correlation: of the projector's inputs and outputs in the last training batch.
        singular_values: of the projector after the last epoch, the largest first.
        shift_error: `srd.evaluation.shifts.ShiftError.features` after the last epoch.
        same_class: of 100 shifted images, how many keep their class.
        history: `epoch` of each evaluation, and what was seen there.
        commit: of the code that trained it.
    """

    seed: int
    selected: float
    last: float
    held_out: float
    best_epoch: int
    effective_rank: float | None
    chosen: float | None
    seconds: float
    images: int
    correlation: float | None = None
    singular_values: list[float] = field(default_factory=list)
    shift_error: float | None = None
    same_class: float | None = None
    history: dict[str, list[float]] = field(default_factory=dict)
    commit: str | None = None


def measured(config: Config, file: Path) -> Any:
    """The accuracy of a checkpoint, without a word."""
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        return evaluate_checkpoint(config, str(file))


def read_tested(path: Path) -> Tested:
    try:
        values = json.loads(read_small(path, LIMITS.description_bytes))
        return build(Tested, [Layer(str(path), values)])
    except (OSError, ValueError, RecursionError, Refused, UserError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is damaged ({reason}): remove it, and it is made again") from None


def history(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """What every evaluation saw, each as a list over them."""
    names = [name for name in SEEN if all(name in row for row in rows)]
    return {name: [float(row[name]) for row in rows] for name in names}
