"""How things are timed: in turn, in one process, so that a busy machine slows all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large the work is that is timed.

    Args:
        seconds: for each comparison; it makes at least three rounds.
        images: pictures in the files that are read.
        steps: of an epoch that is cached.
        state_mb: megabytes of a checkpoint.
        round_steps: that are timed together, so that a GPU may be told of one while it runs another.
        gpu_alone: leave out what the CPU does without the GPU.
    """

    seconds: float
    student: str = "tiny"
    teacher: str = "regnety_160"
    image_size: int = 224
    batch_size: int = 16
    images: int = 64
    steps: int = 4
    state_mb: int = 287
    round_steps: int = 1
    resnets: tuple[str, str] = ("resnet34", "resnet18")  # teacher, student
    gpu_alone: bool = False


SIZES = {
    "full": Sizes(seconds=40),
    "quick": Sizes(seconds=1, teacher="regnety_016", batch_size=2, images=24, steps=2),
    "gpu": Sizes(seconds=8, batch_size=256, images=512, steps=24, round_steps=8, gpu_alone=True),
    "tiny": Sizes(
        seconds=0.01, teacher="regnety_002", image_size=32, batch_size=4, images=4, state_mb=1
    ),
}


@dataclass(frozen=True, kw_only=True)
class Line:
    """One thing that was timed.

    Args:
        ours: seconds of every round.
        reference: seconds of the plain loop; empty where there is none.
        floor: seconds that the machine's own limit would take; None where it was not measured.
        items: that a round goes through, such as images.
        note: what reference and floor are.
    """

    name: str
    ours: list[float]
    reference: list[float]
    floor: float | None = None
    items: float = 1
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Our median over the reference's: below 1, ours is faster."""
        return median(self.ours) / median(self.reference) if self.reference else None

    def row(self) -> dict[str, Any]:
        """For JSON, with what follows from the rounds."""
        return {
            **asdict(self),
            "seconds": median(self.ours),
            "spread": spread(self.ours),
            "ratio": self.ratio,
            "items_per_second": self.items / median(self.ours),
        }


def spread(seconds: list[float]) -> float:
    """Half the distance between the quartiles, as a part of the median."""
    if len(seconds) < 2:
        return 0.0
    low, _, high = quantiles(seconds, n=4)
    return (high - low) / 2 / median(seconds)


def in_turn(
    calls: Mapping[str, Callable[[], object]],
    *,
    seconds: float,
    device: torch.device | None = None,
    rounds: int = 3,
    warm_up: bool = True,
) -> dict[str, list[float]]:
    """Seconds of every call, one after the other, again and again.

    Each is called once before, to warm up. It stops after `seconds`, and at least `rounds` rounds.
    """
    for call in calls.values() if warm_up else ():
        timed(call, device)
    times: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    while len(next(iter(times.values()))) < rounds or time.perf_counter() - start < seconds:
        for name, call in calls.items():
            times[name].append(timed(call, device))
    return times


def timed(call: Callable[[], object], device: torch.device | None = None) -> float:
    """Seconds until `call` is through, the GPU's work included."""
    start = time.perf_counter()
    call()
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
