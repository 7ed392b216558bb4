"""Small pictures that keep Pillow busy: refused by what they hold, in no time."""

from __future__ import annotations

import io
import struct
import time

import pytest
from PIL import Image

from srd.data.image_source import read_image
from srd.data.picture_costs import TooLarge, gif_comments
from tests.files.yardstick import second


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
    started = time.process_time()
    with pytest.raises(TooLarge, match=told):
        read_image(io.BytesIO(data))
    assert (time.process_time() - started) / second() < 1


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
