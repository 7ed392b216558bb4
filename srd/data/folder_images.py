"""Pictures in folders, in ImageNet's layout: `<root>/<split>/<class>/<image>`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from srd.config.fields import Data
from srd.data.encoded import Encoded, of_file
from srd.data.image_source import Opened, Split
from srd.data.labels import turned
from srd.errors import UserError

SUFFIXES = (*IMG_EXTENSIONS, ".avif", ".gif", ".jfif")


def is_picture(name: str) -> bool:
    """Whether a file is one by its name; hidden ones, macOS's `._a.jpg` too, are none."""
    return name.lower().endswith(SUFFIXES) and not os.path.basename(name).startswith(".")


def by_suffix(names: Iterable[str]) -> str:
    """How many files there are of each kind, by their names: "3 .txt, 1 hidden"."""
    return _words(Counter(map(_kind, names)))


def _kind(name: str) -> str:
    return "hidden" if name.startswith(".") else Path(name).suffix.lower()


def _words(kinds: Counter[str]) -> str:
    counts = kinds.most_common(5)
    more = ", ..." if len(kinds) > len(counts) else ""
    return ", ".join(f"{n} {kind or 'without a suffix'}" for kind, n in counts) + more


def open_folder(data: Data, training: bool) -> Opened:
    """The splits of the folder `data.path`; without `train/` and `val/`, its class folders.

    Raises:
        UserError: no path, nothing there, or as `FolderImages`.
    """
    if not data.path:
        raise UserError(
            "no data path: set --data-path to a folder with train/ and val/ (or data.path in a "
            "YAML file), or use --dataset digits, which needs no files"
        )
    root = Path(data.path).expanduser()
    way: dict[str, Any] = {"exif_orientation": data.exif_orientation, "mode": data.mode}
    if (root / "val").exists():
        train = FolderImages(root, "train", **way) if training else None
        val = FolderImages(root, "val", **way)
        return Opened(train, val, [*(train.notes if train else ()), *val.notes, _read(train, val)])
    alone = not (root / "train").exists() and _has_class_folders(root)
    whole = FolderImages(root, None if alone else "train", **way)
    return Opened(whole, None, [*whole.notes, _read(whole)])


def _read(*splits: FolderImages | None) -> str:
    """What is read, and how."""
    opened = [split for split in splits if split is not None]
    names = [split.name(i) for split in opened for i in range(len(split))]
    way = "upright as EXIF says" if opened[0].upright else "as they are, whatever EXIF says"
    mode = opened[0].mode
    return f"pictures: {by_suffix(names)}; read in {mode} ({CHANNELS[mode]}), {way}"


CHANNELS = {"L": "1 channel", "RGB": "3 channels", "RGBA": "4 channels"}


def _has_class_folders(root: Path) -> bool:
    """Whether a folder in `root` holds a picture itself, not only further down."""
    try:
        folders = [folder for folder in root.iterdir() if folder.is_dir()]
        return any(is_picture(file.name) for folder in folders for file in folder.iterdir())
    except OSError:
        return False


class ClassFolders(ImageFolder):
    """torchvision's, which walks in circles where a link leads upwards; not so here.

    Its pictures are those of `is_picture`, none in a hidden folder, such as editors leave.
    """

    @staticmethod
    def make_dataset(
        directory: str | Path,
        class_to_idx: dict[str, int],
        extensions: tuple[str, ...] | None = None,
        is_valid_file: Callable[[str], bool] | None = None,
        allow_empty: bool = False,
    ) -> list[tuple[str, int]]:
        takes = is_valid_file or is_picture
        samples: list[tuple[str, int]] = []
        for name, number in sorted(class_to_idx.items()):
            before = len(samples)
            for folder, files in files_below(Path(directory) / name):
                paths = [os.path.join(folder, file) for file in sorted(files)]
                samples += [(path, number) for path in paths if takes(path)]
            if len(samples) == before and not allow_empty:
                raise FileNotFoundError(f"no pictures in {Path(directory) / name}")
        return samples


def files_below(top: str | Path) -> list[tuple[str, list[str]]]:
    """Each folder below `top`, links included, with its files, in torchvision's order.

    Each folder once, by whatever name comes first, and none that `top` lies in. A hidden one is not
    looked into, and stands among the files.

    Raises:
        OSError: a folder cannot be read.
    """

    def stop(error: OSError) -> None:
        raise error

    seen = {_identity(folder) for folder in Path(top).absolute().parents}
    found = []
    for folder, folders, files in os.walk(top, onerror=stop, followlinks=True):
        if (identity := _identity(folder)) in seen:
            folders.clear()
            continue
        seen.add(identity)
        files += [name for name in folders if name.startswith(".")]
        folders[:] = sorted(set(folders).difference(files))
        found.append((folder, files))
    return sorted(found)


def _identity(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


class FolderImages:
    """One split of an ImageNet-style folder: `<root>/<split>/<class>/<image>`.

    Args:
        root: the folder that holds `train/` and `val/`.
        split: which of the two; None: the class folders are in `root` itself.
        exif_orientation: whether to turn pictures upright; None: unless the classes are ImageNet's.
        mode: Pillow's, of what is read.

    Raises:
        UserError: nothing there, no classes, an empty class, or an unreadable folder.
    """

    def __init__(
        self,
        root: str | Path,
        split: Split | None,
        *,
        exif_orientation: bool | None = None,
        mode: str = "RGB",
    ) -> None:
        self.mode = mode
        folder = Path(root).expanduser() / (split or "")
        self._left_out: Counter[str] = Counter()
        if not folder.is_dir():
            raise UserError(
                f"no images at {root}: looked for {folder}/<class>/<image>; {_advice(Path(root))}"
            )
        try:
            images = ClassFolders(folder, is_valid_file=self._takes, allow_empty=True)
        except FileNotFoundError:
            raise UserError(
                f"{folder} has no class folders: expected {folder}/<class>/<image>"
            ) from None
        except OSError as error:
            raise UserError(f"cannot read {folder}: {error.strerror or error}") from None
        self.classes, self._samples = images.classes, images.samples
        self.targets = np.array(images.targets, dtype=np.int64)
        self.upright = turned(exif_orientation, self.classes)
        counts = np.bincount(self.targets, minlength=len(self.classes))
        if empty := [name for name, count in zip(self.classes, counts, strict=True) if count == 0]:
            raise UserError(
                f"no images in {folder / empty[0]}"
                + (f" and {len(empty) - 1} other class folders" if len(empty) > 1 else "")
                + ": add images or remove the folder"
                + (f" (left out: {self._suffixes()})" if self._left_out else "")
            )

        self.notes = [f"left out of {folder}: {self._suffixes()}"] if self._left_out else []

    def _takes(self, path: str) -> bool:
        """Whether torchvision shall list a file; others are counted, by suffix."""
        name = Path(path).name
        if is_picture(name):
            return True
        self._left_out[_kind(name)] += 1
        return False

    def _suffixes(self) -> str:
        return f"{_words(self._left_out)} (pictures are {' '.join(SUFFIXES)})"

    def __len__(self) -> int:
        return len(self._samples)

    def load(self, index: int) -> tuple[Image.Image, int]:
        picture, target = self.encoded(index)
        return picture.image, target

    def encoded(self, index: int) -> tuple[Encoded, int]:
        """The file at `index`, and its class; raises as `load`."""
        path, target = self._samples[index]
        return of_file(path, self.upright, self.mode), target

    def name(self, index: int) -> str:
        return self._samples[index][0]


def _advice(root: Path) -> str:
    """How to go on where there are no class folders."""
    try:
        flat = any(is_picture(name) for name in os.listdir(root.expanduser()))
    except OSError:
        flat = False
    if flat:
        return "pictures without classes teach a student by --unlabelled"
    return "set --data-path, or use --dataset digits, which needs no files"
