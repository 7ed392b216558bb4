"""What a data source is: labelled pictures by position, in splits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, Protocol

import numpy as np
from PIL import Image

Split = Literal["train", "val"]


class ImageSource(Protocol):
    """Labelled images by position. `load` may raise OSError, ValueError or SyntaxError (Pillow's)."""

    classes: list[str]

    def __len__(self) -> int: ...

    def load(self, index: int) -> tuple[Image.Image, int]:
        """The RGB image at `index` and its class number."""
        ...

    def name(self, index: int) -> str:
        """What to call the image at `index` in a message (its path)."""
        ...


class LabelledSource(ImageSource, Protocol):
    """A source that knows the class of every image without opening it."""

    @property
    def targets(self) -> np.ndarray:
        """The class numbers, (size,) int64."""
        ...


class Opened(NamedTuple):
    """What an opener gives.

    Args:
        train: all training images; may be None where nobody trains and there is a `val`.
        val: the images to measure with; None where the data have no such split.
        notes: what to tell of them when the run starts.
    """

    train: LabelledSource | None
    val: LabelledSource | None
    notes: Sequence[str] = ()


def read_image(file: str | Path | BinaryIO) -> Image.Image:
    """A picture in RGB; raises what Pillow raises (`srd.data.views.BROKEN_IMAGE`)."""
    with Image.open(file) as image:
        return image.convert("RGB")


def first_per_class(targets: np.ndarray, per_class: int | None) -> np.ndarray:
    """Positions, ascending, of the first `per_class` entries of every class (all for None)."""
    if per_class is None:
        return np.arange(len(targets))
    kept = [np.flatnonzero(targets == c)[:per_class] for c in np.unique(targets)]
    return np.sort(np.concatenate(kept))


class Subset:
    """Some images of a source, by position, as a source of their own."""

    def __init__(self, source: LabelledSource, positions: np.ndarray) -> None:
        self.source, self.positions, self.classes = source, positions, source.classes
        self.targets: np.ndarray = source.targets[positions]

    def __len__(self) -> int:
        return len(self.positions)

    def load(self, index: int) -> tuple[Image.Image, int]:
        return self.source.load(int(self.positions[index]))

    def name(self, index: int) -> str:
        return self.source.name(int(self.positions[index]))
