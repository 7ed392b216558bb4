"""What a teacher says of a batch as columns to keep, and back: exact, or small."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from srd.config.fields import Cache
from srd.errors import UserError

LOGITS = "logits"
MOST_HALF = torch.finfo(torch.float16).max
Values = dict[str, Tensor]  # by name, a row an image


class Column(NamedTuple):
    """The type and the shape of an image's row."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Of one image."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def empty(self, rows: int, *, pinned: bool = False) -> Tensor:
        """Room for so many images."""
        return torch.empty((rows, *self.shape), dtype=self.dtype, pin_memory=pinned)


class Codec:
    """Between the fields of an output and the columns that are kept.

    `float32` is exact. `float16` rounds to eleven bits, and cuts off beyond 65,504. `int8` scales
    the largest value of each vector to 127; its logits are float16. `top_logits` keeps the largest
    k as log-probabilities, and spreads the rest of the probability evenly over the other classes.

    Args:
        fields: the shape of an image's row of each.
        exact: the type of `float32` columns: float64 in runs in double precision.

    Raises:
        UserError: `top_logits` is not less than the classes.
    """

    def __init__(
        self, cache: Cache, fields: Mapping[str, tuple[int, ...]], exact: torch.dtype
    ) -> None:
        self.fields, self.exact = dict(fields), exact
        self.plain = exact if cache.dtype == "float32" else torch.float16
        self.scaled = [n for n in fields if cache.dtype == "int8" and n != LOGITS]
        self.top = cache.top_logits if LOGITS in fields else None
        if self.top is not None and self.top >= (classes := fields[LOGITS][0]):
            raise UserError(
                f"cache.top_logits {self.top} of {classes} classes: leave it out, or keep fewer"
            )

    def columns(self) -> dict[str, Column]:
        """By name."""
        columns: dict[str, Column] = {}
        for name, shape in self.fields.items():
            if name in self.scaled:
                columns[name] = Column(torch.int8, shape)
                columns[f"{name}.scale"] = Column(torch.float32, shape[:-1])
            elif name == LOGITS and self.top is not None:
                few = torch.int16 if shape[0] <= 2**15 else torch.int32
                columns[f"{name}.top"] = Column(self.plain, (self.top,))
                columns[f"{name}.class"] = Column(few, (self.top,))
                columns[f"{name}.rest"] = Column(torch.float32, ())
            else:
                columns[name] = Column(self.plain, shape)
        return columns

    def encode(self, values: Mapping[str, Tensor]) -> Values:
        """The columns of fields (B, ...), on their device."""
        columns: Values = {}
        for name in self.fields:
            value = values[name].detach()
            if name in self.scaled:
                value = value.to(torch.promote_types(torch.float32, value.dtype))
                scale = (value.abs().amax(dim=-1) / 127).float()
                step = torch.where(scale > 0, scale, 1).unsqueeze(-1)
                columns[name] = (value / step).round().clamp(-127, 127).to(torch.int8)
                columns[f"{name}.scale"] = scale
            elif name == LOGITS and self.top is not None:
                columns |= self._largest(name, value, self.top)
            else:
                columns[name] = self._rounded(value)
        return columns

    def decode(self, columns: Mapping[str, Tensor]) -> Values:
        """The fields (B, ...) in float32, or in double precision."""
        values: Values = {}
        for name, shape in self.fields.items():
            if name in self.scaled:
                scale = columns[f"{name}.scale"].to(self.exact).unsqueeze(-1)
                values[name] = columns[name].to(self.exact) * scale
            elif name == LOGITS and self.top is not None:
                top = columns[f"{name}.top"].to(self.exact)
                rest = columns[f"{name}.rest"].to(self.exact).unsqueeze(-1)
                whole = rest.expand(len(rest), shape[0]).clone()
                values[name] = whole.scatter_(-1, columns[f"{name}.class"].long(), top)
            else:
                values[name] = columns[name].to(self.exact)
        return values

    def _largest(self, name: str, logits: Tensor, count: int) -> Values:
        exact = logits.to(torch.promote_types(torch.float32, logits.dtype))
        largest = exact.log_softmax(dim=-1).topk(count, dim=-1)
        rest = (1 - largest.values.exp().sum(dim=-1)).clamp_min(torch.finfo(torch.float32).tiny)
        kind = torch.int16 if logits.shape[-1] <= 2**15 else torch.int32
        return {
            f"{name}.top": self._rounded(largest.values),
            f"{name}.class": largest.indices.to(kind),
            f"{name}.rest": (rest / (logits.shape[-1] - count)).log().float(),
        }

    def _rounded(self, value: Tensor) -> Tensor:
        if self.plain == torch.float16:
            value = value.clamp(-MOST_HALF, MOST_HALF)
        return value.to(self.plain)
