"""Hugging Face `datasets`: saved to a folder, in files that it reads, or on the Hub."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from srd.config.fields import Data
from srd.data.encoded import Encoded, of_file
from srd.data.image_source import Opened
from srd.data.labels import turned
from srd.errors import UserError
from srd.files.limits import LIMITS
from srd.files.locate import answers
from srd.files.opened import read_small
from srd.installed import need_extra

HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
VAL_SPLITS = ("validation", "val", "valid", "test")  # the first that is there is measured on


def open_dataset(data: Data, training: bool) -> Opened:
    """The splits of the data set `data.path`; one table without splits is for training.

    Raises:
        UserError: `datasets` is not installed, nothing there, no split, or as `HFImages`.
    """
    need_extra("datasets", "datasets", what="Hugging Face data sets")
    if not data.path:
        raise UserError("--dataset datasets: set --data-path to a folder or a name on the Hub")
    splits = _load(data.path)
    name = next((name for name in VAL_SPLITS if name in splits), None)
    training = training or name is None
    if training and "train" not in splits:
        raise UserError(f"{data.path} has no split train: it has {', '.join(map(str, splits))}")
    train = HFImages(splits, "train", data) if training else None
    if name is None:
        return Opened(train, None)
    note = f"validation images: split {name} of {data.path}"
    return Opened(train, HFImages(splits, name, data), [note])


def _load(path: str) -> Mapping[str, Any]:
    """Splits by name; no code that comes with the data is run."""
    import datasets  # it takes seconds to import

    folder = Path(path).expanduser()
    if folder.is_file():
        raise UserError(f"{path} is a file: set --data-path to its folder")
    here = str(folder) if folder.is_dir() else path
    where = "" if folder.is_dir() else "no folder, and "
    if where and HUB_NAME.fullmatch(path) and not _hub_answers():
        where = "no folder, the Hub cannot be reached, and it is "
    saved = is_saved(folder)
    try:
        if saved:
            _check_saved(folder)
        loaded: Any = (
            datasets.load_from_disk(here)
            if saved
            else datasets.load_dataset(here, trust_remote_code=False)  # versions before 4 ask
        )
    except Exception as error:  # the library's, the Hub client's: no common class
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(
            f"{path} is {where}no data set that `datasets` can open ({reason})"
        ) from None
    return loaded if isinstance(loaded, dict) else {"train": loaded}


def is_saved(path: str | Path | None) -> bool:
    """Whether a folder is what the library saves, and `srd data pack` writes."""
    folder = Path(path).expanduser() if path else None
    files = ("dataset_dict.json", "state.json")
    return folder is not None and any((folder / name).is_file() for name in files)


def _check_saved(folder: Path) -> None:
    """Raise unless a saved data set names files of its own, whose numbers fit: Arrow believes them."""
    import pyarrow

    whole = (folder / "state.json").is_file()
    for split in [folder] if whole else [each for each in folder.iterdir() if each.is_dir()]:
        state = json.loads(read_small(split / "state.json", LIMITS.description_bytes))
        files = [*state["_data_files"], *(state.get("_indices_files") or [])]
        names = [file["filename"] for file in files]
        if len(set(names)) < len(names) or any("/" in name for name in names):
            raise ValueError("its state.json names other files than its own")
        for name in names:
            if not (split / name).is_file():
                raise ValueError(f"{name} is missing")
            with pyarrow.memory_map(str(split / name)) as file:
                for batch in pyarrow.ipc.open_stream(file):
                    batch.validate(full=True)  # all but the pictures' bytes


def _hub_answers() -> bool:
    """Whether the Hub is there; if not, only what was fetched before is looked for from now on.

    The library would ask again and again for half a minute.
    """
    import datasets.config
    from huggingface_hub.constants import ENDPOINT

    if not datasets.config.HF_HUB_OFFLINE and not answers(ENDPOINT):
        datasets.config.HF_HUB_OFFLINE = datasets.config.HF_DATASETS_OFFLINE = True
    return not datasets.config.HF_HUB_OFFLINE


class HFImages:
    """One split of a Hugging Face data set, with random access; decoded where it is read.

    Classes are those of the label column, or "0" to "n-1" where it holds plain integers.

    Args:
        splits: all of the data set, so that splits agree on their classes.
        split: the one to read.

    Raises:
        UserError: no column, or several, with images or with class labels; images without a label.
    """

    def __init__(self, splits: Mapping[str, Any], split: str, data: Data) -> None:
        import datasets

        rows, self._of = splits[split], f"{data.path}, split {split}"
        features = dict(rows.features)
        images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
        named = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
        # A plain integer may be anything: it is a label only where it is named as one.
        numbers = [
            name
            for name, kind in features.items()
            if isinstance(kind, datasets.ClassLabel | datasets.Value) and "int" in kind.dtype
        ]
        self._image = self._column(data.image_column, images, allowed=images, what="image")
        label = self._column(data.label_column, named, allowed=numbers, what="label")
        self._mode, self._read_as = features[self._image].mode, data.mode
        # encoded: decoding by the library would open whatever format Pillow knows, of any size
        encoded = datasets.Image(decode=False)
        files = rows.select_columns([self._image]).cast_column(self._image, encoded)
        self._rows = files.with_format("arrow")  # as bytes lie there
        self.targets = _labels(rows, label)
        if len(rows) == 0 or self.targets.min() < 0:
            raise UserError(f"{self._of}: no images, or images without a label")
        self.classes = features[label].names if label in named else self._numbered(splits, label)
        if not all(isinstance(name, str) for name in self.classes):
            raise UserError(f"{self._of}: a class has a name that is no text")
        self._upright = turned(data.exif_orientation, self.classes)

    def _column(
        self, given: str | None, fitting: list[str], *, allowed: Collection[str], what: str
    ) -> str:
        choice = f"--set data.{what}_column=... names one of: {', '.join(allowed) or 'none fits'}"
        if given is not None and given not in allowed:
            raise UserError(f"{self._of} has no {what} column {given!r}; {choice}")
        if given is None and len(fitting) != 1:
            several = f"several {what} columns" if fitting else f"no {what} column"
            raise UserError(f"{self._of} has {several}; {choice}")
        return given or fitting[0]

    def _numbered(self, splits: Mapping[str, Any], label: str) -> list[str]:
        tables = [rows for rows in splits.values() if label in rows.features]
        count = 1 + max(int(_labels(rows, label).max(initial=-1)) for rows in tables)
        if count > sum(len(rows) for rows in tables):
            raise UserError(
                f"{self._of}: column {label} has numbers up to {count - 1}, more than there are "
                "images; classes are numbered from 0"
            )
        return [str(number) for number in range(count)]

    def __len__(self) -> int:
        return len(self._rows)

    def load(self, index: int) -> tuple[Image.Image, int]:
        picture, target = self.encoded(index)
        return picture.image, target

    def encoded(self, index: int) -> tuple[Encoded, int]:
        """The file in row `index`, and its class; raises as `load`."""
        row = self._rows[int(index)].column(0)[0].as_py()
        if row is None:
            raise OSError("there is no image")
        content, target = row["bytes"], int(self.targets[index])
        # as the library does: upright, and in the mode of its column
        if content is None:
            picture = of_file(str(row["path"]), self._upright, self._read_as)
            return replace(picture, mode=self._mode), target
        picture = Encoded(content, turn=self._upright, mode=self._mode, read_as=self._read_as)
        return picture, target

    def name(self, index: int) -> str:
        return f"row {index} of {self._of}"


def _labels(rows: Any, column: str) -> np.ndarray:
    """A column of integers, (rows,) int64, -1 where there is none; without decoding the images."""
    values = rows.select_columns([column]).with_format("arrow")[:].column(column)
    labels: np.ndarray = values.fill_null(-1).to_numpy().astype(np.int64)
    return labels
