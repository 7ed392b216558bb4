"""A picture as its file holds it: read, and not decoded yet, so that no more is decoded than is needed."""

from __future__ import annotations

import io
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

SCALES = (8, 4, 2)  # of the parts of a side that libjpeg decodes to with vector instructions
BASELINE = (0xC0, 0xC1)  # Huffman-coded, in one pass


class JpegHead(NamedTuple):
    """What a JPEG file says before its pixels: size in pixels as stored, and EXIF's orientation."""

    width: int
    height: int
    orientation: int


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
        check_file(self.data)
        head = read_head(self.data)
        if head is not None:
            check_size(head.width, head.height)
        return head

    @cached_property
    def image(self) -> Image.Image:
        """As Pillow reads it; raises as `read_image`."""
        file, prepare = io.BytesIO(self.data), prepared(self.turn, self.mode)
        return read_image(file, prepare, self.read_as, name=self.name)

    def pixels(self, crop: tuple[int, int], least: tuple[int, int]) -> tuple[np.ndarray, int]:
        """Bytes (H, W, 3), and the number that their sides were divided by, 1, 2, 4 or 8.

        What the fast decoder does not take without a warning, Pillow reads, or refuses.

        Args:
            crop: height and width of the part that is needed.
            least: height and width that this part has at least, where it is not smaller itself.

        Raises:
            Of `image`.
        """
        head = self.head
        if head is None:
            return np.asarray(self.image), 1
        import simplejpeg

        shrunk = min(own // out for own, out in zip(crop, least, strict=True))
        scale = next((scale for scale in SCALES if shrunk >= scale), 1)
        try:
            decoded: np.ndarray = simplejpeg.decode_jpeg(
                self.data,
                # coarser in a step or two of 256, which averages out where pixels become fewer
                fastdct=shrunk >= 1,
                fastupsample=shrunk >= 1,
                min_height=-(-head.height // scale),
                min_width=-(-head.width // scale),
                min_factor=scale,
            )
        except ValueError:  # damaged, or rare: Pillow knows
            return np.asarray(self.image), 1
        return (_turned(decoded, head.orientation) if self.turn else decoded), scale

    def size(self) -> tuple[int, int]:
        """Height and width, as it will be seen."""
        if self.head is None:
            width, height = self.image.size
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
    """The head of a JPEG file in one pass of 8 bits, grey or in colours; None for all others."""
    place, size = 2, None
    while data[:2] == b"\xff\xd8" and place + 4 <= len(data) and data[place] == 0xFF:
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        segment = data[place + 4 : place + 2 + length]
        if marker in BASELINE and size is None and len(segment) >= 6 and segment[0] == 8:
            size = int.from_bytes(segment[3:5], "big"), int.from_bytes(segment[1:3], "big")
            components = segment[5]
        elif marker == 0xDA:
            whole = size is not None and segment[:1] == bytes([components])
            if size is None or not whole or components not in (1, 3) or not all(size):
                return None
            return JpegHead(*size, _orientation(data))
        elif 0xC0 <= marker <= 0xCF and marker != 0xC4:
            return None  # progressive, lossless, arithmetic, twelve bits
        elif not 0xC0 <= marker <= 0xFE:
            return None
        place += 2 + length
    return None


def _orientation(data: bytes) -> int:
    """As `upright` takes it."""
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
