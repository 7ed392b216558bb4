"""Where images come from: folders in ImageNet's layout, and the digits that need no files."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import ImageFolder

from srd.errors import UserError

Split = Literal["train", "val"]
DIGITS_TEST_PER_CLASS = 50


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


class FolderImages:
    """One split of an ImageNet-style folder: `<root>/<split>/<class>/<image>`.

    Args:
        root: the folder that holds `train/` and `val/`.
        split: which of the two.
        per_class: keep only the first n images (by file name) of each class.

    Raises:
        UserError: nothing there, no classes, an empty class, or an unreadable folder.
    """

    def __init__(self, root: str | Path, split: Split, per_class: int | None = None) -> None:
        folder = Path(root).expanduser() / split
        if not folder.is_dir():
            raise UserError(
                f"no images at {root}: looked for {folder}/<class>/<image>; set --data-path, "
                "or use --dataset digits, which needs no files"
            )
        try:
            images = ImageFolder(folder, allow_empty=True)
        except FileNotFoundError:
            raise UserError(
                f"{folder} has no class folders: expected {folder}/<class>/<image>"
            ) from None
        except OSError as error:
            raise UserError(f"cannot read {folder}: {error.strerror or error}") from None
        self.classes = images.classes
        samples = images.samples
        targets = np.array([target for _, target in samples], dtype=np.int64)
        counts = np.bincount(targets, minlength=len(self.classes))
        if empty := [name for name, count in zip(self.classes, counts, strict=True) if count == 0]:
            raise UserError(
                f"no images in {folder / empty[0]}"
                + (f" and {len(empty) - 1} other class folders" if len(empty) > 1 else "")
                + ": add images or remove the folder"
            )
        keep = first_per_class(targets, per_class)
        self._samples = [samples[i] for i in keep]

    def __len__(self) -> int:
        return len(self._samples)

    def load(self, index: int) -> tuple[Image.Image, int]:
        path, target = self._samples[index]
        return read_image(path), target

    def name(self, index: int) -> str:
        return self._samples[index][0]


class DigitImages:
    """scikit-learn's 1,797 scanned digits (UCI, 8x8 pixels), with a fixed split.

    The test part is 50 images of each class, drawn once and for all; the rest, 1,297 images, is
    for training. `per_class` keeps the first n training images of each class.
    """

    def __init__(self, split: Split, per_class: int | None = None) -> None:
        self._digits = load_digits()
        self.classes = [str(digit) for digit in range(10)]
        targets = self._digits.target
        # RandomState's streams are frozen by NumPy's compatibility policy: the split never moves.
        order = np.random.RandomState(0).permutation(len(targets))
        test = order[first_per_class(targets[order], DIGITS_TEST_PER_CLASS)]
        if split == "val":
            self._indices = np.sort(test)
        else:
            train = order[~np.isin(order, test)]
            self._indices = np.sort(train[first_per_class(targets[train], per_class)])

    def __len__(self) -> int:
        return len(self._indices)

    @cached_property
    def _pixels(self) -> np.ndarray:
        return np.round(self._digits.images * (255 / 16)).astype(np.uint8)

    def load(self, index: int) -> tuple[Image.Image, int]:
        position = self._indices[index]
        image = Image.fromarray(self._pixels[position]).convert("RGB")
        return image, int(self._digits.target[position])

    def name(self, index: int) -> str:
        return f"digit {self._indices[index]}"


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


def open_images(
    dataset: Literal["imagefolder", "digits"],
    path: str | Path | None,
    split: Split,
    per_class: int | None = None,
) -> ImageSource:
    """One split of the data set that a configuration names.

    Raises:
        UserError: as `FolderImages`, or no path for an image folder.
    """
    if dataset == "digits":
        return DigitImages(split, per_class)
    if not path:
        raise UserError(
            "no data path: set --data-path to a folder with train/ and val/ (or data.path in a "
            "YAML file), or use --dataset digits, which needs no files"
        )
    return FolderImages(path, split, per_class)


def check_same_classes(train: ImageSource, val: ImageSource) -> None:
    """Raise a UserError that names the classes on which the two splits disagree."""
    if train.classes == val.classes:
        return
    missing = sorted(set(train.classes) - set(val.classes))
    extra = sorted(set(val.classes) - set(train.classes))
    parts = [f"{len(train.classes)} classes in train, {len(val.classes)} in val"]
    if missing:
        parts.append(f"missing from val: {_some(missing)}")
    if extra:
        parts.append(f"only in val: {_some(extra)}")
    raise UserError("; ".join(parts) + " (both need the same class folders)")


def _some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
