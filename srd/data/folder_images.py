"""Pictures in folders, in ImageNet's layout: `<root>/<split>/<class>/<image>`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets import ImageFolder

from srd.config.fields import Data
from srd.data.image_source import Split, first_per_class, read_image
from srd.errors import UserError


def open_folder(data: Data, split: Split) -> FolderImages | None:
    """A split of the folder `data.path`; None for `val` where only `train` is there.

    Raises:
        UserError: no path, or as `FolderImages`.
    """
    if not data.path:
        raise UserError(
            "no data path: set --data-path to a folder with train/ and val/ (or data.path in a "
            "YAML file), or use --dataset digits, which needs no files"
        )
    root = Path(data.path).expanduser()
    if split == "val" and not (root / "val").exists() and (root / "train").is_dir():
        return None
    return FolderImages(data.path, split, data.images_per_class if split == "train" else None)


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
        self.targets = targets[keep]

    def __len__(self) -> int:
        return len(self._samples)

    def load(self, index: int) -> tuple[Image.Image, int]:
        path, target = self._samples[index]
        return read_image(path), target

    def name(self, index: int) -> str:
        return self._samples[index][0]
