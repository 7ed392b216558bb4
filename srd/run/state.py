"""What a checkpoint must hold for its run to go on: checked before anything is taken up from it.

`check_outline` knows what every run's checkpoint has; `check_like` compares with what a run has now.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

MOST = 2**53  # up to here, whole numbers are floats as well
# The numbers of `position`: kind, smallest and largest; beside them are the `sums` of loss terms.
NUMBERS: dict[str, tuple[type, float, float]] = {
    "epoch": (int, 0, MOST),
    "step": (int, 0, MOST),
    "updates": (int, 0, MOST),
    "best_acc1": (float, -1, 100),
    "best_epoch": (int, -1, MOST),
    "seconds": (float, 0, MOST),
}
NEEDED = {"epoch", "step", "updates"}  # the others have defaults


class Misfit(Exception):
    """A field that a run cannot go on from: its name, what it is, and what it should be."""


def check_outline(state: Mapping[str, Any]) -> None:
    """Raise a Misfit unless `state` has a position, and numbers and tensors that are numbers.

    Of the settings, only that they are plain values by name is looked at.
    """
    if not isinstance(state.get("config"), Mapping) or "position" not in state:
        raise Misfit("it is not a checkpoint of a run here")
    _check_plain(state["config"], "config")
    check_position(state["position"])
    for name, value in state.items():
        if name != "config":
            _check_numbers(value, name)


def check_position(position: Any) -> None:
    """Raise a Misfit unless `position` is one, wherever in a run."""
    if not isinstance(position, Mapping):
        raise Misfit(f"position is {_kind(position)}, not a mapping")
    if missing := sorted(NEEDED - set(position)):
        raise Misfit(f"position.{missing[0]} is missing")
    for name, value in position.items():
        if name in ("sums", "observed"):
            like = dict.fromkeys(value, 0.0) if isinstance(value, Mapping) else {}
            check_like(value, like, f"position.{name}")
            continue
        if name not in NUMBERS:
            raise Misfit(f"position.{str(name)[:40]} is unknown")
        kind, least, most = NUMBERS[name]
        if not _is_number(value) or (kind is int and isinstance(value, float)):
            raise Misfit(f"position.{name} is {_kind(value)}, not a number like {least}")
        if not least <= value <= most:
            raise Misfit(f"position.{name} is {value}: out of range")


def check_like(saved: Any, own: Any, name: str, *, complete: bool = True) -> None:
    """Raise a Misfit unless `saved` may take the place of `own`: kinds, shapes, finite numbers.

    Args:
        name: of the value, in the message.
        complete: mappings need all keys and no others. Otherwise flags and texts may be missing,
            and there may be more: other versions of a library write others.
    """
    if isinstance(own, Tensor):
        _check_tensor(saved, own, name)
    elif isinstance(own, Mapping):
        if not isinstance(saved, Mapping):
            raise Misfit(f"{name} is {_kind(saved)}, not a mapping")
        for key, value in own.items():
            if key in saved:
                check_like(saved[key], value, f"{name}.{key}", complete=complete)
            elif complete or isinstance(value, (Tensor, Mapping, list, tuple)) or _is_number(value):
                raise Misfit(f"{name}.{key} is missing")
        if complete and (more := [key for key in saved if key not in own]):
            raise Misfit(f"{name}.{str(more[0])[:60]} is unknown")
    elif isinstance(own, (list, tuple)):
        if not isinstance(saved, (list, tuple)) or len(saved) != len(own):
            raise Misfit(f"{name} is {_kind(saved)}, not {len(own)} values")
        for number, (value, like) in enumerate(zip(saved, own, strict=True)):
            check_like(value, like, f"{name}.{number}", complete=complete)
    elif _is_number(own):
        if not _is_number(saved):
            raise Misfit(f"{name} is {_kind(saved)}, not a number")
        if not _is_finite(saved) and _is_finite(own):
            raise Misfit(f"{name} is out of range, or no number")
    elif isinstance(own, bool) and not isinstance(saved, bool):
        raise Misfit(f"{name} is {_kind(saved)}, not true or false")
    elif isinstance(own, (str, type(None))) and isinstance(saved, (Tensor, Mapping)):
        raise Misfit(f"{name} is {_kind(saved)}, not like {own}")


def _check_tensor(saved: Any, own: Tensor, name: str) -> None:
    if not isinstance(saved, Tensor):
        raise Misfit(f"{name} is {_kind(saved)}, not a tensor")
    if saved.shape != own.shape:
        raise Misfit(f"{name} is {tuple(saved.shape)} instead of {tuple(own.shape)}")
    if saved.is_floating_point() != own.is_floating_point() or saved.is_complex():
        raise Misfit(f"{name} is of {saved.dtype} instead of {own.dtype}")
    if not torch.isfinite(saved).all() and torch.isfinite(own).all():
        raise Misfit(f"{name} is not finite")


def _check_numbers(value: Any, name: str) -> None:
    """Raise a Misfit for a number, in whatever containers, that is none (NaN)."""
    if isinstance(value, Tensor):
        if value.is_floating_point() and torch.isnan(value).any():
            raise Misfit(f"{name} is not finite")
    elif isinstance(value, float) and math.isnan(value):
        raise Misfit(f"{name} is not finite")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _check_numbers(item, f"{name}.{key}")
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        for number, item in enumerate(value):
            _check_numbers(item, f"{name}.{number}")


def _check_plain(value: Any, name: str) -> None:
    """Raise a Misfit for what is no setting: settings are compared with a run's, and told."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise Misfit(f"{name} has the key {str(key)[:40]}, which is no name")
            _check_plain(item, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            _check_plain(item, f"{name}.{number}")
    elif not isinstance(value, (str, int, float, type(None))):
        raise Misfit(f"{name} is {_kind(value)}")


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _kind(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"{len(value)} values"
    return "nothing" if value is None else f"a {type(value).__name__}"
