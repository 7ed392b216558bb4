"""CIFAR-10 and CIFAR-100 from their binary files (https://www.cs.toronto.edu/~kriz/cifar.html).

A picture is one record: its label (of CIFAR-100 the coarse one and the fine one, a byte each), then 3,072
bytes, the red, green and blue 32x32 pixels row by row. The same pictures are published as pickles too,
which are code: those are not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from srd.config.fields import Data
from srd.data.image_source import Opened
from srd.errors import UserError
from srd.files.opened import Refused, read_small

PIXELS = 3 * 32 * 32
MOST_BYTES = 200_000_000  # of one file; the largest has 154 MB


@dataclass(frozen=True)
class Layout:
    """Where a data set's records are, and what stands before the pixels of each."""

    name: str
    folder: str  # in which the archive puts its files
    pickled: str  # the folder of the other archive
    train: Sequence[str]
    test: str
    classes: str  # a name a line
    labels: int  # bytes; the last one is the class


CIFAR10 = Layout(
    name="CIFAR-10",
    folder="cifar-10-batches-bin",
    pickled="cifar-10-batches-py",
    train=[f"data_batch_{number}.bin" for number in range(1, 6)],
    test="test_batch.bin",
    classes="batches.meta.txt",
    labels=1,
)
CIFAR100 = Layout(
    name="CIFAR-100",
    folder="cifar-100-binary",
    pickled="cifar-100-python",
    train=["train.bin"],
    test="test.bin",
    classes="fine_label_names.txt",
    labels=2,
)


class Records:
    """Labelled pictures of 32x32 pixels, held in memory (CIFAR's have 154 MB).

    Args:
        files: of records, one after the other.
        classes: names, in the order of the labels.

    Raises:
        UserError: a file is missing, holds no whole number of records, or a label without a name.
    """

    def __init__(self, files: Sequence[Path], classes: list[str], labels: int) -> None:
        self.classes, self.files = classes, files
        self.records = np.concatenate([_records(file, labels) for file in files])
        self.targets = self.records[:, labels - 1].astype(np.int64)
        self.pixels = self.records[:, labels:].reshape(-1, 3, 32, 32)
        if self.targets.max() >= len(classes):
            raise UserError(
                f"{files[0]}: a picture of class {self.targets.max()}, and {len(classes)} have names"
            )

    def __len__(self) -> int:
        return len(self.records)

    def load(self, index: int) -> tuple[Image.Image, int]:
        image = Image.fromarray(np.ascontiguousarray(self.pixels[index].transpose(1, 2, 0)))
        return image, int(self.targets[index])

    def name(self, index: int) -> str:
        return f"{self.files[0].parent.name} picture {index}"


def open_cifar10(data: Data, training: bool) -> Opened:
    """Both splits of CIFAR-10."""
    return _open(CIFAR10, data, training)


def open_cifar100(data: Data, training: bool) -> Opened:
    """Both splits of CIFAR-100, by its fine classes."""
    return _open(CIFAR100, data, training)


def _open(layout: Layout, data: Data, training: bool) -> Opened:
    folder = _folder(layout, data.path)
    names = _read(folder / layout.classes).decode("utf-8", "replace").split("\n")
    classes = [name.strip() for name in names if name.strip()]
    if len(classes) > 256:  # a label is a byte
        raise UserError(f"{folder / layout.classes} names {len(classes):,} classes: 256 at most")
    train = [folder / name for name in layout.train]
    return Opened(
        Records(train, classes, layout.labels) if training else None,
        Records([folder / layout.test], classes, layout.labels),
    )


def _folder(layout: Layout, path: str | None) -> Path:
    """`path`, or the archive's folder in it."""
    if path is None:
        raise UserError(f"{layout.name} needs --data-path: the folder with its files")
    given = Path(path).expanduser()
    for folder in (given, given / layout.folder):
        if (folder / layout.classes).is_file():
            return folder
    if given.name == layout.pickled or (given / layout.pickled).is_dir():
        raise UserError(
            f"{given} holds {layout.name} as pickles, which can run code: fetch the binary version "
            f"({layout.folder}), of the same pictures"
        )
    raise UserError(
        f"no {layout.name} in {given}: no {layout.classes} there, nor in {layout.folder}/"
    )


def _records(file: Path, labels: int) -> np.ndarray:
    content, size = _read(file), labels + PIXELS
    if not content or len(content) % size:
        raise UserError(f"{file} has {len(content)} bytes, no multiple of the {size} of a picture")
    return np.frombuffer(content, dtype=np.uint8).reshape(-1, size)


def _read(file: Path) -> bytes:
    try:
        return read_small(file, MOST_BYTES)
    except Refused as refused:
        raise UserError(f"{file} {refused}") from None
    except OSError as error:
        raise UserError(f"cannot read {file} ({error.strerror})") from None
