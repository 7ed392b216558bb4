"""Small pictures that keep Pillow busy: refused by what they hold, before it begins."""

from __future__ import annotations

import io
import struct
import tracemalloc
import weakref
from typing import Any

import numpy as np
import pytest
from PIL import Image

from srd.data.image_source import read_image, upright
from srd.data.picture_costs import TooLarge, check_picture, gif_comments


def run_length_bmp(width: int, height: int, program: bytes) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(program), 0, 0, 256, 0)
    first = 14 + len(header) + 1024
    start = b"BM" + struct.pack("<IHHI", first + len(program), 0, 0, first)
    return start + header + bytes(1024) + program


def gif(*comments: bytes, piece: int = 255) -> bytes:
    """A picture of 8x8 with comments in pieces of so many bytes."""
    file = io.BytesIO()
    Image.new("P", (8, 8)).save(file, "GIF")
    data = file.getvalue()
    first = data.index(b",", 13 + 3 * 2)
    blocks = b""
    for text in comments:
        pieces = [text[start : start + piece] for start in range(0, len(text), piece)]
        blocks += b"!\xfe" + b"".join(bytes([len(part)]) + part for part in pieces) + b"\0"
    return data[:first] + blocks + data[first:]


STEP_AND_LINE = b"\0\2\1\0\0\0"  # one pixel is skipped, Pillow fills the line byte by byte
SLOW = {
    "lines of a bitmap": (run_length_bmp(211_000, 422, STEP_AND_LINE * 422), "89,042,000|422 pixels"),
    "a bitmap of runs": (run_length_bmp(4_000, 3_000, b"\xff\7" * 9), "more than 10,000,000"),
    "a comment of single bytes": (gif(b"a" * 400_000, piece=1), "more than 65,536 bytes of comm"),
    "many comments": (gif(*[b"a"] * 30_000), "more than 65,536 bytes of comments"),
    "comments in a plain PPM": (b"P3 900 900 255\n" + b"#\n" * 400_000, "more than 100 comments"),
}  # fmt: skip


@pytest.mark.parametrize("what", SLOW)
def test_what_keeps_pillow_busy_is_refused(what: str) -> None:
    data, told = SLOW[what]
    with pytest.raises(TooLarge, match=told):
        read_image(io.BytesIO(data))


def test_honest_pictures_of_these_kinds_are_read() -> None:
    bitmap = run_length_bmp(300, 200, (b"\xff\7\x2d\7\0\0") * 200)
    assert read_image(io.BytesIO(bitmap)).size == (300, 200)
    assert read_image(io.BytesIO(gif(b"made by hand", b"a" * 1_000))).size == (8, 8)
    assert read_image(io.BytesIO(b"P3\n# made by hand\n1 1 255\n1 2 3\n")).getpixel((0, 0)) == (
        1,
        2,
        3,
    )


def test_comments_are_counted_up_to_the_first_image() -> None:
    assert gif_comments(gif()) == 0
    assert gif_comments(gif(b"abc", b"de")) == (1 + 3 + 1) + (1 + 2 + 1)
    image = gif(b"abc")
    assert gif_comments(image + image) == gif_comments(image) == gif_comments(image[:60] + b"\0")
    assert gif_comments(b"GIF89a") == gif_comments(b"GIF") == 0


@pytest.mark.parametrize(("mode", "refused"), [("RGB", False), ("CMYK", True)])
def test_large_cmyk_in_several_scans_is_refused(mode: str, refused: bool) -> None:
    """The library holds its coefficients beside its pixels: 12 bytes of each."""
    file = io.BytesIO()
    Image.new(mode, (8, 8)).save(file, "JPEG", progressive=True)
    data = bytearray(file.getvalue())
    frame = data.index(b"\xff\xc2") + 5
    data[frame : frame + 4] = struct.pack(">HH", 9_000, 9_000)
    if refused:
        with pytest.raises(TooLarge, match="9000x9000 pixels: more than 44,739,242"):
            read_image(io.BytesIO(data))
    else:
        with Image.open(io.BytesIO(data)) as image:
            check_picture(image, bytes(data))


@pytest.mark.parametrize("kind", ["PNG", "PPM"])
def test_16_bits_take_few_bytes_on_their_way_to_8(kind: str) -> None:
    """A PNG of 0.2 MB can have 89 million pixels."""
    file = io.BytesIO()
    Image.fromarray(np.zeros((500, 600), np.uint16)).save(file, kind)
    tracemalloc.start()
    read_image(io.BytesIO(file.getvalue()))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12 * 500 * 600


def test_a_picture_that_is_turned_is_not_held_twice() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.new("RGBA", (8, 4)).save(file, "PNG", exif=exif)
    was: list[weakref.ref[Image.Image]] = []

    class Turned(Image.Image):
        def convert(self, *mode: Any, **how: Any) -> Image.Image:
            assert was[0]() is None
            return super().convert(*mode, **how)

    def turn(image: Image.Image) -> Image.Image:
        was.append(weakref.ref(image))
        turned = upright(image)
        turned.__class__ = Turned
        return turned

    assert read_image(file, turn).size == (4, 8)
