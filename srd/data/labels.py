"""What to call the classes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from timm.data import ImageNetInfo

IMAGENET_CLASSES = 1000


@cache
def _imagenet() -> Any:
    return ImageNetInfo()


def class_names(num_classes: int, recorded: Sequence[str] | None) -> tuple[str, ...] | None:
    """The names that a run recorded, where it is one for each; without a record, ImageNet's synsets for
    1,000 classes; else None."""
    if recorded is not None:
        return tuple(recorded) if len(recorded) == num_classes else None
    return tuple(_imagenet().label_names()) if num_classes == IMAGENET_CLASSES else None


def is_imagenet(names: Sequence[str] | None) -> bool:
    """Whether these are ImageNet-1k's synsets in their usual order."""
    return names is not None and list(names) == _imagenet().label_names()


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
