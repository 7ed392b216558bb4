"""Data by name: what `--dataset` opens, and the validation split where there is none.

A new source is a file with an opener, and a line in `SOURCES`, here or in that file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from srd.config.fields import Data
from srd.data.cifar import open_cifar10, open_cifar100
from srd.data.digits import open_digits
from srd.data.folder_images import open_folder
from srd.data.guard import Labelled, check_splits
from srd.data.hf_datasets import is_saved, open_dataset
from srd.data.image_source import LabelledSource, Opened, Subset, first_per_class
from srd.data.unlabelled import ONE_CLASS, open_pictures, without_labels
from srd.errors import UserError, nearest

# Called with the data's settings, and whether somebody trains; `images_per_class` is seen to here.
Opener = Callable[[Data, bool], Opened]

SOURCES: dict[str, Opener] = {
    "imagefolder": open_folder,
    "digits": open_digits,
    "cifar10": open_cifar10,
    "cifar100": open_cifar100,
    "datasets": open_dataset,
}
VAL_FRACTION = 0.1  # where there is no validation split, and data.val_fraction is not set


class Splits(NamedTuple):
    """Both splits, and what to tell of them; `train` is None where nobody asked."""

    train: LabelledSource | None
    val: LabelledSource
    notes: list[str]


def open_splits(data: Data, *, training: bool) -> Splits:
    """The splits of the data set that a configuration names.

    Where it has no validation split, a part of every class is held out of the training images: the
    same part in every run, whatever its seed, so that no teacher has seen it. With
    `data.select_fraction` another part stands in for the validation split, which is not looked at.

    Raises:
        UserError: an unknown source, no data, other classes, or a setting without effect.
    """
    check_known(data.dataset)
    if data.dataset == "imagefolder" and not data.unlabelled and is_saved(data.path):
        data = replace(data, dataset="datasets")  # `srd data pack` wrote it
    read_by = {"image_column": ["datasets"], "label_column": ["datasets"]}
    read_by["exif_orientation"] = ["datasets", "imagefolder"]
    for name, sources in read_by.items():
        if data.dataset not in sources and getattr(data, name) is not None:
            raise UserError(
                f"data.{name} has no effect with --dataset {data.dataset}: leave it out"
            )
    selecting = data.select_fraction is not None
    whole = replace(data, images_per_class=None) if selecting else data
    if data.unlabelled and data.dataset == "imagefolder":
        train, val, notes = open_pictures(whole, training or selecting)
    elif data.unlabelled:
        train, val, notes = without_labels(SOURCES[data.dataset](whole, training or selecting))
    else:
        train, val, notes = SOURCES[data.dataset](whole, training or selecting)
    if val is None:
        assert train is not None, "an opener gives training images where it has no others"
        train, val, note = _held_out(train, data.val_fraction or VAL_FRACTION)
        notes = [*notes, f"no validation split: {note} (data.val_fraction)"]
    elif data.val_fraction is not None:
        raise UserError("data.val_fraction has no effect: the data have a validation split")
    if data.select_fraction is not None:
        assert train is not None, "asked for above"
        train, val, note = _held_out(train, data.select_fraction)
        notes = [*notes, f"to select by: {note} (data.select_fraction)"]
    if not training:
        check_splits([_labelled("val", val)])
        return Splits(None, val, [*notes])
    assert train is not None, "an opener gives training images to who trains"
    check_splits([_labelled("train", train), _labelled("val", val)])
    if data.images_per_class is not None:
        train = Subset(train, first_per_class(train.targets, data.images_per_class))
    return Splits(train, val, [*notes])


def check_known(name: str) -> None:
    """Raise a UserError unless there is such a source."""
    if name not in SOURCES:
        known = ", ".join(SOURCES)
        raise UserError(f"data.dataset {name!r} is unknown{nearest(name, SOURCES)}: one of {known}")


def _labelled(name: str, source: LabelledSource) -> Labelled:
    return Labelled(name, len(source), source.classes, source.targets)


def _held_out(whole: LabelledSource, fraction: float) -> tuple[Subset, Subset, str]:
    """Training images, validation images, and what to tell of them."""
    held = hold_out(whole.targets, fraction, whole.classes)
    rest = np.setdiff1d(np.arange(len(whole)), held)
    of_each = "" if whole.classes == ONE_CLASS else " of each class"
    note = f"{len(held)} of {len(whole)} training images are held out, {100 * fraction:g}%{of_each}"
    return Subset(whole, rest), Subset(whole, held), note


def hold_out(targets: np.ndarray, fraction: float, classes: list[str]) -> np.ndarray:
    """Positions, ascending, of `fraction` of every class, at least one; drawn once and for all.

    Raises:
        UserError: a class with a single image cannot be split.
    """
    # RandomState's streams are frozen by NumPy's compatibility policy: the split never moves.
    draw, held = np.random.RandomState(0), []
    for number, name in enumerate(classes):
        own = np.flatnonzero(targets == number)
        if len(own) < 2:
            raise UserError(
                f"class {name} has {len(own)} image(s): training and validation need one each; "
                "add images, or a validation split"
            )
        count = min(max(1, round(fraction * len(own))), len(own) - 1)
        held.append(draw.permutation(own)[:count])
    return np.sort(np.concatenate(held))
