"""Folders of pictures in a torchdistill file: our list of formats, and torchvision's pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import Subset
from torchvision.datasets import DatasetFolder, ImageFolder
from torchvision.datasets.folder import default_loader

from resnet.pictures import open_picture, read_by_list
from resnet.trust import built, called
from srd.errors import UserError

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n"


@pytest.fixture
def folder(make_jpegs: Callable[..., Path], tmp_path: Path) -> Path:
    return make_jpegs(tmp_path, {"a": 2, "b": 1})


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "1"])
def test_the_pixels_are_torchvisions(folder: Path, mode: str) -> None:
    file = folder / ("x.tif" if mode == "CMYK" else "x.png")
    pixels = np.random.RandomState(0).randint(0, 256, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(file)
    assert np.array_equal(open_picture(str(file)), default_loader(str(file)))


def test_a_folder_is_read_by_list_however_it_is_wrapped(folder: Path) -> None:
    plain, part = ImageFolder(str(folder)), ImageFolder(str(folder))
    read_by_list(plain)
    read_by_list(Subset(part, [0]))
    assert plain.loader is open_picture and part.loader is open_picture
    (folder / "a" / "0.jpg").write_bytes(EPS)
    with pytest.raises(OSError, match="cannot identify image file"):
        plain[0]
    assert plain[1][0].size == (32, 40)


def test_a_reader_of_ones_own_stays(folder: Path) -> None:
    def mine(path: str) -> str:
        return path

    items = DatasetFolder(str(folder), loader=mine, extensions=(".jpg",))
    read_by_list(items)
    assert items.loader is mine


def test_a_folder_in_a_file_is_walked_as_in_the_other_half(folder: Path) -> None:
    """Links that lead upwards: torchvision walks along them until the path is too long."""
    plain = ImageFolder(str(folder)).samples
    (folder / "a" / "up").symlink_to("..")
    (folder / "a" / ".hidden").mkdir()
    for name in (".hidden/0.jpg", "._0.jpg"):
        (folder / "a" / name).write_bytes(b"")
    made = called("torchvision.datasets.ImageFolder", [str(folder)], {}, "x.yaml")
    found = built(made, {})
    assert found.samples == plain and isinstance(found, ImageFolder)
    (folder / "c").mkdir()
    with pytest.raises(UserError, match=r"building .*ImageFolder failed \(no pictures in .*/c\)"):
        built(made, {})
