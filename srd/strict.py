"""What sections of settings are made of: strict dataclasses, numbers with a range, paths."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)  # of pydantic's dataclasses

# Far above what anybody means, far below what overflows on the way, or cannot be saved.
MOST_COUNT, MOST_FLOAT = 2**31 - 1, 1e9

Count = Annotated[int, Field(ge=1, le=MOST_COUNT)]
Index = Annotated[int, Field(ge=0, le=MOST_COUNT)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[float, Field(gt=0, le=MOST_FLOAT)]
NonNegative = Annotated[float, Field(ge=0, le=MOST_FLOAT)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Below1 = Annotated[float, Field(ge=0, lt=1)]


def _of_the_file_system(text: str) -> str:
    if "\0" in text:
        raise ValueError("should be a path, without NUL characters")
    try:
        Path(text).expanduser()
    except RuntimeError:
        raise ValueError("should begin with a home folder that is there") from None
    return text


PathText = Annotated[str, AfterValidator(_of_the_file_system)]


LONGEST_NAME = 200  # bytes: 255 are what file systems take, and names get endings


def plain_name(text: str) -> str:
    """The name of a folder below another one; a ValueError for one that leads elsewhere."""
    parts = text.split("/")
    if not text.isprintable():
        raise ValueError("should be printable")
    if "" in parts or not {".", ".."}.isdisjoint(parts):
        raise ValueError("should name a folder below --output, without .. or a leading /")
    if any(len(part.encode()) > LONGEST_NAME for part in parts):
        raise ValueError(f"should have at most {LONGEST_NAME} bytes")
    return text


RunName = Annotated[str, AfterValidator(plain_name)]
