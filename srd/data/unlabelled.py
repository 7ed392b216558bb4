"""Pictures without classes: a folder of them, flat or nested, or a source whose labels are not read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from srd.config.fields import Data
from srd.data.encoded import Encoded, encoded, of_file
from srd.data.folder_images import SUFFIXES, files_below, is_picture
from srd.data.image_source import LabelledSource, Opened
from srd.errors import UserError

ONE_CLASS = ["unlabelled"]  # that all pictures are of, for what splits and checks sources


def open_pictures(data: Data, training: bool) -> Opened:
    """All pictures below `data.path`; those below its `train/` and `val/`, where it has a `val/`.

    Raises:
        UserError: no path, or no pictures there.
    """
    if not data.path:
        raise UserError("no data path: set --data-path to a folder with pictures")
    root = Path(data.path).expanduser()
    way: dict[str, Any] = {"turn": data.exif_orientation is not False, "mode": data.mode}
    has_train = (root / "train").is_dir()
    if (root / "val").is_dir() and has_train:
        train = PictureFolder(root / "train", **way) if training else None
        return Opened(train, PictureFolder(root / "val", **way))
    return Opened(PictureFolder(root / "train" if has_train else root, **way), None)


class PictureFolder:
    """The pictures below a folder, however deep, in the order of their paths.

    Args:
        turn: pictures upright, as their EXIF says.
        mode: Pillow's, of what is read.

    Raises:
        UserError: there are none, or the folder cannot be read.
    """

    classes = ONE_CLASS

    def __init__(self, folder: Path, *, turn: bool = False, mode: str = "RGB") -> None:
        self.turn, self.mode = turn, mode
        if not folder.is_dir():
            raise UserError(f"no pictures at {folder}: set --data-path to a folder with pictures")
        try:
            found = files_below(folder)
        except OSError as error:
            raise UserError(f"cannot read {error.filename}: {error.strerror or error}") from None
        self._paths = [
            os.path.join(place, name)
            for place, names in found
            for name in names
            if is_picture(name)
        ]
        self._paths.sort()
        if not self._paths:
            raise UserError(f"no pictures below {folder}: looked for {' '.join(SUFFIXES)}")
        self.targets = np.zeros(len(self._paths), dtype=np.int64)

    def __len__(self) -> int:
        return len(self._paths)

    def load(self, index: int) -> tuple[Image.Image, int]:
        return self.encoded(index)[0].image, 0

    def encoded(self, index: int) -> tuple[Encoded, int]:
        """The file at `index`; raises as `load`."""
        return of_file(self._paths[index], self.turn, self.mode), 0

    def name(self, index: int) -> str:
        return self._paths[index]


class WithoutLabels:
    """A source whose labels are left unread."""

    classes = ONE_CLASS

    def __init__(self, source: LabelledSource) -> None:
        self.source = source
        self.targets = np.zeros(len(source), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.source)

    def load(self, index: int) -> tuple[Image.Image, int]:
        return self.source.load(index)[0], 0

    def encoded(self, index: int) -> tuple[Encoded | Image.Image, int]:
        """See `srd.data.encoded.encoded`."""
        return encoded(self.source, index)[0], 0

    def name(self, index: int) -> str:
        return self.source.name(index)


def without_labels(opened: Opened) -> Opened:
    """Both splits with their labels left unread."""
    train, val, notes = opened
    return Opened(
        None if train is None else WithoutLabels(train),
        None if val is None else WithoutLabels(val),
        notes,
    )
