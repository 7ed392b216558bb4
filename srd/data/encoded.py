"""A picture as its file holds it: read, and not decoded yet, so that no more is decoded than is needed."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from srd.data.image_source import (
    ImageSource,
    orientation,
    prepared,
    read_bytes,
    read_image,
)
from srd.data.picture_costs import check_file, check_size
from srd.data.picture_tags import EXIF, exif_of_jpeg

# Of the parts of a side that libjpeg decodes to with vector instructions; a half saves less than the
# resize from it costs, which begins between pixels.
SCALES = (8, 4)
BASELINE = (0xC0, 0xC1)  # Huffman-coded, in one pass
EIGHT = b"\x08"  # bits of a value
END = b"\xff\xd9"
LEFT_OVER = "extraneous bytes before marker"  # libjpeg's words for pixels after the last row
SPARE_ROWS = 2  # colours of half the size are smoothed into the rows beside them
BARE = re.compile(rb"P6\n(\d{1,5}) (\d{1,5})\n255\n")
SMALL_REST = 16  # rows that are unpacked together


class JpegHead(NamedTuple):
    """What a JPEG file says before its pixels: size in pixels as stored, and EXIF's orientation.

    Args:
        place: of the height's two bytes in the file.
    """

    width: int
    height: int
    orientation: int
    place: int


@dataclass(frozen=True)
class Encoded:
    """A file's bytes, and how the picture in it is read.

    Args:
        name: of its file, for messages; None: it has none.
        turn: upright, as EXIF says.
        mode: that it is converted to before `read_as`; None: its own.
        read_as: the mode of the picture.
    """

    data: bytes
    name: str | None = None
    turn: bool = False
    mode: str | None = None
    read_as: str = "RGB"

    @cached_property
    def head(self) -> JpegHead | None:
        """Of a plain JPEG file; None where Pillow is to read it.

        Raises:
            TooLarge: it asks for more than a picture may.
        """
        if self.mode not in (None, "RGB"):
            return None
        head = read_head(self.data)
        if head is not None:
            check_size(head.width, head.height)
        return head

    @cached_property
    def bare(self) -> np.ndarray | None:
        """(H, W, 3) of a PPM file as Pillow writes it, which are its own bytes; None of others.

        Raises:
            TooLarge: it has more than a picture may.
        """
        found = BARE.match(self.data) if self.mode in (None, "RGB") else None
        if found is None:
            return None
        width, height = int(found[1]), int(found[2])
        check_size(width, height)
        if len(self.data) != found.end() + 3 * width * height:
            return None
        return np.frombuffer(self.data, np.uint8, offset=found.end()).reshape(height, width, 3)

    @cached_property
    def image(self) -> Image.Image:
        """As Pillow reads it; raises as `read_image`."""
        file, prepare = io.BytesIO(self.data), prepared(self.turn, self.mode)
        return read_image(file, prepare, self.read_as, name=self.name)

    def pixels(self, box: Sequence[int], least: tuple[int, int]) -> tuple[np.ndarray, int]:
        """Bytes (H, W, 3), and the number that their sides were divided by, 1, 4 or 8.

        What the fast decoder does not take without a warning, Pillow reads, or refuses.

        Args:
            box: top, left, height and width of the part that is needed; rows below it may be missing.
            least: height and width that this part has at least, where it is not smaller itself.

        Raises:
            Of `image`.
        """
        head = self.head
        if head is None:
            return (np.asarray(self.image) if self.bare is None else self.bare), 1
        import simplejpeg

        top, _, height, width = box
        shrunk = min(height // least[0], width // least[1])
        scale = next((scale for scale in SCALES if shrunk >= scale), 1)
        turned = self.turn and head.orientation != 1
        data, rows = (self.data, head.height) if turned else self._upper(top + height)
        size = -(-rows // scale), -(-head.width // scale)
        pixels = np.empty((*size, 3), dtype=np.uint8)
        try:
            simplejpeg.decode_jpeg(
                data,
                # coarser in a step or two of 256, which averages out where pixels become fewer
                fastdct=shrunk >= 1,
                fastupsample=shrunk >= 1,
                min_height=size[0],
                min_width=size[1],
                min_factor=scale,
                buffer=pixels,
            )
        except ValueError as error:
            if data is self.data or LEFT_OVER not in str(error):  # damaged, or rare: Pillow knows
                return np.asarray(self.image), 1
        return (_turned(pixels, head.orientation) if turned else pixels), scale

    def _upper(self, rows: int) -> tuple[bytes | bytearray, int]:
        """A file that says to have little more than so many rows, and how many; all of a small rest.

        A JPEG file is unpacked from its start on, so what follows costs nothing; the decoder tells of it
        after all pixels. A file that does not end as such files do is given whole: Pillow refuses those
        that were cut short.
        """
        head = self.head
        assert head is not None
        rows += SPARE_ROWS
        if head.height - rows < SMALL_REST or not self.data.endswith(END):
            return self.data, head.height
        upper = bytearray(self.data)
        upper[head.place : head.place + 2] = rows.to_bytes(2, "big")
        return upper, rows

    def size(self) -> tuple[int, int]:
        """Height and width, as it will be seen."""
        if self.head is None:
            height, width = self.image.size[::-1] if self.bare is None else self.bare.shape[:2]
            return height, width
        turned = self.turn and self.head.orientation >= 5
        return self.head[:2] if turned else (self.head.height, self.head.width)


def encoded(source: ImageSource, index: int) -> tuple[Encoded | Image.Image, int]:
    """The picture at `index`, decoded where the source has no files, and its class; raises as `load`."""
    own: Any = getattr(source, "encoded", source.load)
    return own(index)


def of_file(path: str | Path, turn: bool, read_as: str = "RGB") -> Encoded:
    """Raises OSError where it cannot be read."""
    return Encoded(read_bytes(path), str(path), turn, read_as=read_as)


def read_head(data: bytes) -> JpegHead | None:
    """The head of a JPEG file in one pass of 8 bits, grey or in colours; None for all others.

    Raises:
        TooLarge: its tags claim several times what the file has.
    """
    place, frame, tagged = 2, 0, False
    while data[:2] == b"\xff\xd8" and place + 4 <= len(data) and data[place] == 0xFF:
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if (
            marker in BASELINE
            and not frame
            and length >= 8
            and data[place + 4 : place + 5] == EIGHT
        ):
            frame = place + 5
        elif marker == 0xDA:
            return _head_of(data, frame, data[place + 4 : place + 5], tagged)
        elif 0xC0 <= marker <= 0xCF and marker != 0xC4:
            return None  # progressive, lossless, arithmetic, twelve bits
        elif not 0xC0 <= marker <= 0xFE:
            return None
        elif marker == 0xE1:
            tagged = True
        place += 2 + length
    return None


def _head_of(data: bytes, frame: int, scanned: bytes, tagged: bool) -> JpegHead | None:
    """What stands at `frame`, where a scan of so many components shows all of it."""
    if not frame or frame + 5 > len(data):
        return None
    height, width, components = struct.unpack_from(">HHB", data, frame)
    if not width * height or components not in (1, 3) or scanned != bytes([components]):
        return None
    return JpegHead(width, height, _orientation(data) if tagged else 1, frame)


def _orientation(data: bytes) -> int:
    """As `upright` takes it."""
    check_file(data)
    exif = Image.Exif()

    def tags() -> Image.Exif:
        exif.load(EXIF + exif_of_jpeg(data))
        return exif

    return orientation(tags)


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """What Pillow's transpositions of `TURNS` do, as views."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels
