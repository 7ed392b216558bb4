"""scikit-learn's scanned digits: a data set that needs no files."""

from __future__ import annotations

from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import numpy as np
from PIL import Image

from srd.config.fields import Data
from srd.data.image_source import Opened, Split, first_per_class
from srd.errors import UserError

DIGITS_TEST_PER_CLASS = 50


def open_digits(data: Data, training: bool) -> Opened:
    """Both splits of the digits; a UserError where there is a path to other images."""
    if data.path is not None:
        raise UserError(
            "data.path has no effect with --dataset digits: leave it out, or set --dataset "
            "imagefolder"
        )
    train = DigitImages("train", data.images_per_class) if training else None
    return Opened(train, DigitImages("val"))


@cache
def read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Images (1797, 8, 8) with values from 0 to 16, and classes (1797,), in scikit-learn's order.

    Its file is read without importing scikit-learn, which takes longer than all else here.
    """
    package = find_spec("sklearn")
    assert package is not None and package.submodule_search_locations, "a dependency"
    file = Path(package.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    if not file.is_file():  # another version has it elsewhere
        from sklearn.datasets import load_digits

        digits = load_digits()
        return digits.images, digits.target
    rows = np.loadtxt(file, delimiter=",")
    return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(int)


class DigitImages:
    """scikit-learn's 1,797 scanned digits (UCI, 8x8 pixels), with a fixed split.

    The test part is 50 images of each class, drawn once and for all; the rest, 1,297 images, is
    for training. `per_class` keeps the first n training images of each class.

    Raises:
        UserError: no such split, or no such number.
    """

    def __init__(self, split: Split, per_class: int | None = None) -> None:
        if split not in get_args(Split):
            raise UserError(
                f"the digits have no split {split!r}: one of {', '.join(get_args(Split))}"
            )
        if per_class is not None and (type(per_class) is not int or per_class < 1):
            raise UserError(
                f"per_class of the digits is {per_class!r}: a number of images, or null"
            )

        self._images, targets = read_digits()
        self.classes = [str(digit) for digit in range(10)]
        self._classes = targets
        # RandomState's streams are frozen by NumPy's compatibility policy: the split never moves.
        order = np.random.RandomState(0).permutation(len(targets))
        test = order[first_per_class(targets[order], DIGITS_TEST_PER_CLASS)]
        if split == "val":
            self._indices = np.sort(test)
        else:
            train = order[~np.isin(order, test)]
            self._indices = np.sort(train[first_per_class(targets[train], per_class)])
        self.targets = targets[self._indices]

    def __len__(self) -> int:
        return len(self._indices)

    @cached_property
    def _pixels(self) -> np.ndarray:
        return np.round(self._images * (255 / 16)).astype(np.uint8)

    def load(self, index: int) -> tuple[Image.Image, int]:
        position = self._indices[index]
        image = Image.fromarray(self._pixels[position]).convert("RGB")
        return image, int(self._classes[position])

    def name(self, index: int) -> str:
        return f"digit {self._indices[index]}"
