"""Hugging Face `datasets`: saved to a folder, in files that it reads, or on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from srd.config.fields import Data
from srd.data.image_source import Split, Subset, first_per_class
from srd.errors import UserError
from srd.installed import need_extra

SPLITS = {"train": ("train",), "val": ("validation", "val", "valid", "test")}


def open_dataset(data: Data, split: Split) -> HFImages | Subset | None:
    """A split of the data set `data.path`; None for `val` where there is none.

    Raises:
        UserError: `datasets` is not installed, nothing there, no images, no labels.
    """
    need_extra("datasets", "datasets", what="Hugging Face data sets")
    if not data.path:
        raise UserError("--dataset datasets: set --data-path to a folder or a name on the Hub")
    splits = _load(data.path)
    name = next((name for name in SPLITS[split] if name in splits), None)
    if name is None:
        if split == "val":
            return None
        raise UserError(f"{data.path} has no split train: it has {', '.join(map(str, splits))}")
    images = HFImages(splits[name], data)
    if split == "train" and data.images_per_class is not None:
        return Subset(images, first_per_class(images.targets, data.images_per_class))
    return images


def _load(path: str) -> Any:
    """Splits by name."""
    import datasets

    folder = Path(path).expanduser()
    saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
    try:
        loaded: Any = datasets.load_from_disk(str(folder)) if saved else datasets.load_dataset(path)
    except Exception as error:  # the library's, the Hub client's: no common class
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"{path} is no data set that `datasets` can open ({reason})") from error
    return loaded if isinstance(loaded, dict) else {"train": loaded}


class HFImages:
    """One split of a Hugging Face data set, with random access; decoded where it is read.

    Raises:
        UserError: no column, or several, with images or with class labels.
    """

    def __init__(self, rows: Any, data: Data) -> None:
        import datasets

        self._rows, self._path = rows, data.path
        features = dict(rows.features)
        images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
        labels = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
        self._image = self._column(data.image_column, images, features, "image")
        self._label = self._column(data.label_column, labels, features, "label")
        self.targets = np.asarray(rows[self._label], dtype=np.int64)
        kind = features[self._label]
        count = int(self.targets.max(initial=-1)) + 1
        named = isinstance(kind, datasets.ClassLabel)
        self.classes = list(kind.names) if named else [str(number) for number in range(count)]
        if len(rows) == 0 or self.targets.min() < 0:
            raise UserError(f"{data.path} has no images, or images without a label")

    def _column(
        self, given: str | None, fitting: list[str], features: dict[str, Any], what: str
    ) -> str:
        if given is not None:
            if given not in features:
                known = ", ".join(features)
                raise UserError(f"{self._path} has no column {given!r}: it has {known}")
            return given
        if len(fitting) != 1:
            several = (
                f"several {what} columns ({', '.join(fitting)})" if fitting else f"no {what} column"
            )
            raise UserError(
                f"{self._path} has {several}; name it: --set data.{what}_column=..., one of "
                f"{', '.join(features)}"
            )
        return fitting[0]

    def __len__(self) -> int:
        return len(self._rows)

    def load(self, index: int) -> tuple[Image.Image, int]:
        row = self._rows[int(index)]
        image = row[self._image]
        if not isinstance(image, Image.Image):
            raise OSError("not an image")
        return image.convert("RGB"), int(row[self._label])

    def name(self, index: int) -> str:
        return f"row {index} of {self._path}"
