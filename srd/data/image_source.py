"""What a data source is: labelled pictures by position, in splits."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from srd.data.picture_costs import check_file, check_picture
from srd.files.limits import LIMITS
from srd.files.opened import Refused, read_small

Split = Literal["train", "val"]


# What a picture's file can raise; `one_line` says it.
BROKEN_IMAGE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError, MemoryError)


class DamagedPicture(OSError):
    """A picture whose pixels cannot be decoded, as it was found when they were needed."""


class ImageSource(Protocol):
    """Labelled images by position. `load` may raise OSError, ValueError or SyntaxError (Pillow's)."""

    classes: list[str]

    def __len__(self) -> int: ...

    def load(self, index: int) -> tuple[Image.Image, int]:
        """The image at `index`, in RGB or the mode that was asked for, and its class number."""
        ...

    def name(self, index: int) -> str:
        """What to call the image at `index` in a message (its path)."""
        ...

    # A source of files also has `encoded(index)`, which gives the file in the place of the image
    # (`srd.data.encoded.Encoded`): the fast path decodes it itself.


class LabelledSource(ImageSource, Protocol):
    """A source that knows the class of every image without opening it."""

    @property
    def targets(self) -> np.ndarray:
        """The class numbers, (size,) int64."""
        ...


class Opened(NamedTuple):
    """What an opener gives.

    Args:
        train: all training images; may be None where nobody trains and there is a `val`.
        val: the images to measure with; None where the data have no such split.
        notes: what to tell of them when the run starts.
    """

    train: LabelledSource | None
    val: LabelledSource | None
    notes: Sequence[str] = ()


# What is opened as a picture. Pillow knows more, and hands some of those to other programs.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "GIF", "TIFF", "WEBP", "AVIF")


def as_it_is(image: Image.Image) -> Image.Image:
    """The picture."""
    return image


def read_image(
    file: str | Path | io.BytesIO,
    prepare: Callable[[Image.Image], Image.Image] = as_it_is,
    mode: str = "RGB",
    *,
    name: str | None = None,
) -> Image.Image:
    """A picture in RGB, within `srd.files.limits`.

    Args:
        file: its name, or its bytes.
        prepare: is called with the picture as it is in the file.
        mode: Pillow's, where it shall be another one: L or RGBA.
        name: of the file that the bytes are of.

    Raises:
        OSError, ValueError, SyntaxError, MemoryError: it is no file, no picture of FORMATS, damaged,
            or too large (`BROKEN_IMAGE`).
    """
    if isinstance(file, (str, Path)):
        name, file = str(file), io.BytesIO(read_bytes(file))
    try:
        # nothing here holds the picture as it was: of large ones, there is room for two at a time
        return in_mode(prepare(open_image(file)), mode)
    except UnidentifiedImageError:
        what = "" if name is None else f" {name!r}"
        raise OSError(f"cannot identify image file{what}: one of {', '.join(FORMATS)}?") from None
    except (OSError, ValueError, SyntaxError, MemoryError, Image.DecompressionBombError):
        raise
    except Exception as error:  # of damaged files, Pillow raises whatever it meets
        raise OSError(f"damaged ({type(error).__name__})") from error


def one_line(error: Exception) -> str:
    """What is wrong with a picture."""
    reason = getattr(error, "strerror", None) or str(error)
    return " ".join(reason.split()) or type(error).__name__


def read_bytes(file: str | Path) -> bytes:
    """A file's content; an OSError where it cannot be read, or is larger than a picture's may be."""
    try:
        return read_small(file, LIMITS.picture_bytes)
    except Refused as refusal:
        raise OSError(str(refusal)) from None


def prepared(turn: bool, mode: str | None) -> Callable[[Image.Image], Image.Image]:
    """Turns a picture upright, if it is to be, and converts it, if it is to have a mode."""

    def prepare(image: Image.Image) -> Image.Image:
        image = upright(image) if turn else image
        return image.convert(mode) if mode else image

    return prepare


def upright(image: Image.Image) -> Image.Image:
    """A picture turned as its EXIF says; as it is where that says nothing, or is damaged."""
    if (found := orientation(image.getexif)) == 1:
        return image
    turned = image.transpose(TURNS[found])
    turned.format = image.format
    return turned


def orientation(tags: Callable[[], Image.Exif]) -> int:
    """What EXIF says of how a picture was taken, 2 to 8; 1 where it says nothing, or is damaged."""
    try:
        found = tags().get(ORIENTATION)
    except Exception:  # of damaged tags, Pillow raises whatever it meets
        return 1
    return found if found in TURNS else 1


ORIENTATION = 0x0112  # EXIF 2.32, 4.6.4 A: what the camera's sensor was turned by
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def in_mode(image: Image.Image, mode: str = "RGB") -> Image.Image:
    """A picture in a mode; one of 16 bits by its upper 8, which Pillow would cut off at 255.

    Raises:
        ValueError: one of 32-bit numbers, whose range only its maker knows.
    """
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format in SIXTEEN)
    if sixteen:
        image = _upper_bits(image)
    elif image.mode in ("I", "F"):
        raise ValueError(
            "pixels are 32-bit numbers without a known range: save it with 8 or 16 bits"
        )
    if type(image) is Image.Image and image.mode == mode:  # turned: no need for a third one
        return image
    return image.convert(mode)


SIXTEEN = ("PNG", "PPM")  # of which Pillow gives 16 bits as 32


def _upper_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if values.dtype.itemsize > 2:
        values = values.clip(0, 65_535)
    return Image.fromarray((values >> 8).astype(np.uint8))


def open_image(file: io.BytesIO) -> Image.Image:
    """A picture of FORMATS, of which only the head is read; raises as `read_image`."""
    data = file.getvalue()
    check_file(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # it is refused below
        image = Image.open(file, formats=_formats())
    check_picture(image, data)
    return image


@cache
def _formats() -> tuple[str, ...]:
    """Those that this Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def first_per_class(targets: np.ndarray, per_class: int | None) -> np.ndarray:
    """Positions, ascending, of the first `per_class` entries of every class (all for None)."""
    if per_class is None:
        return np.arange(len(targets))
    kept = [np.flatnonzero(targets == c)[:per_class] for c in np.unique(targets)]
    return np.sort(np.concatenate(kept))


class Subset:
    """Some images of a source, by position, as a source of their own."""

    def __init__(self, source: LabelledSource, positions: np.ndarray) -> None:
        self.source, self.positions, self.classes = source, positions, source.classes
        self.targets: np.ndarray = source.targets[positions]

    def __len__(self) -> int:
        return len(self.positions)

    def load(self, index: int) -> tuple[Image.Image, int]:
        return self.source.load(int(self.positions[index]))

    def encoded(self, index: int) -> tuple[Any, int]:
        """See `srd.data.encoded.encoded`."""
        position = int(self.positions[index])
        own: Any = getattr(self.source, "encoded", self.source.load)
        return own(position)

    def name(self, index: int) -> str:
        return self.source.name(int(self.positions[index]))
