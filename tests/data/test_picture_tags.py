"""Tags of pictures that claim the same bytes again and again."""

from __future__ import annotations

import io
import struct

import pytest
from PIL import Image

from srd.data.image_source import read_image
from srd.data.picture_costs import TooLarge
from srd.data.picture_tags import EXIF, claimed, exif_of_jpeg


def tags(count: int, size: int, *, order: str = "<") -> bytes:
    """A TIFF file of 8x8 grey pixels with `count` tags that all name the same `size` bytes."""
    needed = [(256, 3, 1, 8), (257, 3, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1),
              (273, 4, 1, 8), (277, 3, 1, 1), (278, 3, 1, 8), (279, 4, 1, 64)]  # fmt: skip
    entries = [*needed, *((1000 + number, 1, size, 8) for number in range(count))]
    packed = b"".join(struct.pack(f"{order}HHLL", *entry) for entry in entries)
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}L", 8 + size)
    return start + bytes(size) + struct.pack(f"{order}H", len(entries)) + packed + bytes(4)


def jpeg(exif: bytes, segment: int = 60_000) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (9, 9, 9)).save(file, "JPEG")
    parts = [EXIF + exif[start : start + segment] for start in range(0, len(exif), segment)]
    segments = [b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part for part in parts]
    return file.getvalue()[:2] + b"".join(segments) + file.getvalue()[2:]


@pytest.mark.parametrize("make", [tags, lambda *sizes: jpeg(tags(*sizes))], ids=["tiff", "exif"])
def test_tags_that_repeat_what_is_there_are_refused(make: object) -> None:
    bomb = make(3_000, 200_000)  # type: ignore[operator]
    with pytest.raises(TooLarge, match="its tags claim several times what the file has"):
        read_image(io.BytesIO(bomb))
    assert read_image(io.BytesIO(make(2, 200_000))).size == (8, 8)  # type: ignore[operator]


@pytest.mark.parametrize("order", ["<", ">"])
def test_what_the_first_directory_claims(order: str) -> None:
    assert claimed(tags(7, 1_000, order=order)) == 7_000 + 9 * 2 + 2 * 2
    assert claimed(b"II*\0") == claimed(b"\x89PNG") == claimed(tags(7, 1_000)[:500]) == 0
    assert 0 < claimed(tags(7, 1_000)[:-40]) < 7_000  # cut short: of what is left


def test_big_tiff() -> None:
    entries = struct.pack("<HHQQ", 1000, 2, 500, 16) * 3
    file = b"II+\0" + struct.pack("<HHQ", 8, 0, 16) + struct.pack("<Q", 3) + entries
    assert claimed(file) == 1_500


def test_exif_is_joined_over_segments() -> None:
    exif = bytes(range(256)) * 500
    assert exif_of_jpeg(jpeg(exif)) == exif
    assert exif_of_jpeg(jpeg(b"")) == exif_of_jpeg(b"\xff\xd8\xff") == exif_of_jpeg(b"") == b""
