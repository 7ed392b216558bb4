"""What the training loop is given, and where it is: task, schedule, data, position."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from srd.data.batches import TrainBatches
from srd.device import Readback
from srd.evaluation.accuracy import Measured

Losses = dict[str, Tensor]  # by name; `loss` is the one to differentiate
Evaluate = Callable[[Callable[[], bool]], Measured]  # measures the model, unless told to stop


class Task(Protocol):
    """What is trained, and its losses."""

    @property
    def model(self) -> nn.Module:
        """What is evaluated, and handed on as `student.safetensors`."""
        ...

    def losses(self, batch: Any, seed: int) -> Losses:
        """The losses of the global batch, from this process's share of it; its draws from `seed`."""
        ...

    def checkpoint(self) -> dict[str, Any]:
        """All that a step changes besides optimizer and schedule; `model` holds the student."""
        ...

    def load_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Take up what `checkpoint` returned."""
        ...


class Schedule(Protocol):
    """timm's interface of learning-rate schedules, as far as the loop uses it."""

    def step_update(self, num_updates: int) -> None:
        """Set the learning rate for the step that follows `num_updates` others."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


@dataclass(frozen=True, kw_only=True)
class TrainData:
    """Batches to train on.

    Args:
        loader: yields this process's share of each global batch, in the order of `batches`.
        prepare: (batch, steps from the start of its span, as the settings of now count them) to what
            the task reads: on the device, and mixed.
    """

    loader: Iterable[Any]
    batches: TrainBatches
    prepare: Callable[[Any, int], Any]


@dataclass
class Position:
    """Where a run is: the next step to make, and what must survive a stop besides tensors."""

    epoch: int = 0
    step: int = 0  # in the epoch
    updates: int = 0  # in the run
    best_acc1: float = -1.0  # or another score from 0 to 100 (`Measured`)
    best_epoch: int = -1
    seconds: float = 0.0  # trained, stops not counted
    sums: dict[str, float] = field(default_factory=dict)  # of this epoch's loss terms
    observed: dict[str, float] = field(default_factory=dict)  # of its last batch, by the probe


@dataclass(frozen=True)
class Span:
    """The part of a run that a loop trains: epochs from `first` to before `end`, after `updates`."""

    first: int
    end: int
    updates: int = 0


@dataclass
class Pending:
    """A step that is made but not logged: its numbers are still on their way from the device."""

    row: dict[str, Any]
    terms: Readback
    norm: Readback
    where: str
