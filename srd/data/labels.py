"""What to call the classes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from timm.data import ImageNetInfo

from srd.errors import UserError
from srd.files.limits import LIMITS

IMAGENET_CLASSES = 1000


@cache
def _imagenet() -> Any:
    return ImageNetInfo()


def class_names(num_classes: int, recorded: Sequence[str] | None) -> tuple[str, ...] | None:
    """The names that a run recorded, where it is one for each; without a record, ImageNet's synsets
    for 1,000 classes; else None.

    Raises:
        UserError: they come from a file, and are no texts, or too long ones.
    """
    if recorded is not None:
        texts = isinstance(recorded, (list, tuple)) and all(
            isinstance(name, str) and len(name) <= LIMITS.text for name in recorded
        )
        if not texts:
            raise UserError(f"its class names are no texts of at most {LIMITS.text:,} characters")
        return tuple(recorded) if len(recorded) == num_classes else None
    return tuple(_imagenet().label_names()) if num_classes == IMAGENET_CLASSES else None


def is_imagenet(names: Sequence[str] | None) -> bool:
    """Whether these are ImageNet-1k's synsets in their usual order."""
    return names is not None and list(names) == _imagenet().label_names()


def turned(exif_orientation: bool | None, names: Sequence[str] | None) -> bool:
    """Whether pictures of these classes are turned upright (`data.exif_orientation`).

    ImageNet's are not, unless it is asked for: so the published accuracies were measured.
    """
    return not is_imagenet(names) if exif_orientation is None else exif_orientation


def readable(names: Sequence[str] | None, num_classes: int) -> list[str]:
    """A label for people for every class: synsets in words, other names as they are."""
    if names is None:
        return [f"class {number}" for number in range(num_classes)]
    return [_in_words(name) for name in names]


def _in_words(name: str) -> str:
    if not re.fullmatch(r"n\d{8}", name):
        return name
    try:
        return _imagenet().label_name_to_description(name)
    except KeyError:
        return name
