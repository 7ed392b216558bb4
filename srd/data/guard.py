"""What both halves check of images and labels before the first step."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from srd.errors import UserError


class Labelled(NamedTuple):
    """What a split says of itself.

    Args:
        name: `train`, `val` or `test`, for messages.
        size: number of images.
        classes: their names; None where it does not tell.
        targets: every image's class number, (size,); None where that is only seen in a batch.
    """

    name: str
    size: int
    classes: Sequence[Any] | None
    targets: np.ndarray | None = None


def check_splits(splits: Sequence[Labelled]) -> None:
    """Raise a UserError unless the splits have images, of the same classes, with fitting labels."""
    for split in splits:
        if split.size == 0:
            raise UserError(f"{split.name} has no images")
        if split.classes is not None:
            _check_names(split.name, split.classes)
            _check_labels(split, len(split.classes))
    named = [split for split in splits if split.classes is not None]
    for other in named[1:]:
        _check_same_classes(named[0], other)


def check_classes(classes: Sequence[Any] | None) -> None:
    """Raise a UserError for a single class to train on, which every answer is right for."""
    if classes is not None and len(classes) == 1:
        raise UserError(
            f"the training images are all of one class, {classes[0]}, so there is nothing to tell apart: "
            "make a folder for each class (without classes: srd train --unlabelled)"
        )


def check_head(what: str, known: int, classes: Sequence[Any] | None) -> None:
    """Raise a UserError unless a classifier of `known` classes is one for data of `classes`.

    Args:
        what: the model, and the setting that says how many classes it knows.
    """
    if classes is not None and known != len(classes):
        raise UserError(f"{what} knows {known} classes, the data has {len(classes)}")


def check_targets(targets: Tensor, known: int) -> None:
    """Raise a UserError for class numbers (B,) that a classifier of `known` classes cannot learn.

    Other targets, such as mixed ones (B, C), are left to the loss.
    """
    if targets.ndim != 1 or targets.is_floating_point() or len(targets) == 0:
        return
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= known:
        raise UserError(
            f"an image has the class number {low if low < 0 else high}, and the model knows {known} "
            f"classes, 0 to {known - 1}"
        )


def check_descriptors(workers: int) -> None:
    """Raise a UserError where so many loader processes need more open files than are allowed.

    Where it may, it allows this process more.
    """
    needed = 64 + 8 * workers if workers else 0
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
            return
        raise UserError(
            f"{workers} loader processes need {needed} open files, and {soft} are allowed: raise the "
            "limit (ulimit -n), or use fewer workers"
        )


def _check_names(split: str, classes: Sequence[Any]) -> None:
    hidden = [name for name in classes if isinstance(name, str) and name.startswith(".")]
    if hidden:
        raise UserError(
            f"the class {hidden[0]} in {split} is a hidden folder, such as editors leave: remove it"
        )


def _check_labels(split: Labelled, classes: int) -> None:
    if split.targets is None or len(split.targets) == 0:
        return
    low, high = int(split.targets.min()), int(split.targets.max())
    if low < 0 or high >= classes:
        raise UserError(
            f"{split.name}: an image has the class number {low if low < 0 else high}, and there are "
            f"{classes} classes, 0 to {classes - 1}"
        )


def _check_same_classes(train: Labelled, val: Labelled) -> None:
    """Raise a UserError that names the classes on which two splits disagree."""
    mine, theirs = ([str(name) for name in split.classes or ()] for split in (train, val))
    if mine == theirs:
        return
    missing, extra = sorted(set(mine) - set(theirs)), sorted(set(theirs) - set(mine))
    parts = [f"{len(mine)} classes in {train.name}, {len(theirs)} in {val.name}"]
    if missing:
        parts.append(f"missing from {val.name}: {_some(missing)}")
    if extra:
        parts.append(f"only in {val.name}: {_some(extra)}")
    raise UserError("; ".join(parts) + " (both need the same class folders)")


def _some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
