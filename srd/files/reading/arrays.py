"""NumPy's numbers and arrays in a pickle, such as the best accuracy that a training noted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from srd.files.limits import LIMITS
from srd.files.opened import Refused
from srd.printable import printable

KINDS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")
ORDERS = ("<", ">", "|", "=")


@dataclass
class NumberType:
    """A NumPy type of numbers, whose order of bytes a file tells after its name."""

    kind: str
    order: str = "="

    def set_order(self, state: Any) -> None:
        match state:
            case (3 | 4, str(order), None, None, None, -1, -1, 0, *_) if order in ORDERS:
                self.order = order
            case _:
                raise Refused("describes a numpy.dtype in an unknown way: refused")

    def read(self, data: Any) -> np.ndarray:
        """The numbers in `data`, in this machine's order of bytes, (items,)."""
        dtype = np.dtype(f"{self.order}{self.kind}")
        if not isinstance(data, bytes) or len(data) % dtype.itemsize:
            raise Refused("describes NumPy's numbers in an unknown way: refused")
        return np.frombuffer(data, dtype).astype(self.kind)


@dataclass
class Array:
    """An array whose content a file tells later; `place` in the memo is where it waits for that."""

    place: int | None = None


def number_type(kind: Any) -> NumberType:
    if kind not in KINDS:
        raise Refused(f"holds NumPy's values of the type {printable(str(kind)[:20])}: refused")
    return NumberType(kind)


def scalar(numbers: Any, data: Any) -> bool | int | float | complex:
    """A number as Python's own."""
    values = numbers.read(data).tolist() if isinstance(numbers, NumberType) else []
    if len(values) != 1:
        raise Refused("describes NumPy's numbers in an unknown way: refused")
    return values[0]


def array(state: tuple[Any, ...]) -> Tensor:
    """An array, told as (version, shape, type, by columns, data), as a tensor of the same numbers."""
    _, shape, numbers, by_column, data = state
    if not isinstance(numbers, NumberType) or not isinstance(shape, tuple):
        raise Refused("describes a numpy.ndarray in an unknown way: refused")
    values = numbers.read(data)
    whole = all(type(size) is int and 0 <= size < 2**63 for size in shape)
    if len(shape) > LIMITS.dimensions or not whole or math.prod(shape) != len(values):
        raise Refused("describes a numpy.ndarray in an unknown way: refused")
    ordered: np.ndarray = values.reshape(shape, order="F" if by_column else "C")
    return torch.from_numpy(np.ascontiguousarray(ordered).reshape(shape))
