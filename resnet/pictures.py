"""Pictures of torchvision's folders, read by our list of formats and within our limits."""

from __future__ import annotations

from typing import Any

from PIL import Image
from torch.utils.data import Subset
from torchvision.datasets import DatasetFolder
from torchvision.datasets.folder import default_loader

from srd.data.image_source import read_image


def read_by_list(dataset: Any) -> None:
    """Give a folder of pictures our reader in the place of torchvision's, which opens anything.

    The pixels are the same. A data set may be wrapped, by torchdistill or as a part of another.
    """
    if isinstance(dataset, Subset):
        read_by_list(dataset.dataset)
    elif hasattr(dataset, "org_dataset"):
        read_by_list(dataset.org_dataset)
    elif isinstance(dataset, DatasetFolder) and dataset.loader is default_loader:
        dataset.loader = open_picture


def open_picture(path: str) -> Image.Image:
    """In RGB; raises as `read_image`."""
    return read_image(path)
