"""Pictures from anyone: formats by list, sizes with limits, nothing waited for."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from srd.config.fields import Data
from srd.data.folder_images import FolderImages, open_folder
from srd.data.image_source import FORMATS, ORIENTATION, open_image, read_image, upright
from srd.data.preprocess import Preprocessing
from srd.data.unlabelled import open_pictures
from srd.data.views import BROKEN_IMAGE, SeededViews
from srd.errors import UserError


def png(width: int, height: int, rows: int = 1) -> bytes:
    """The head of a PNG file of any size, and a few of its rows."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        whole = kind + data
        return struct.pack(">I", len(data)) + whole + struct.pack(">I", zlib.crc32(whole))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    data = zlib.compress(bytes((1 + (width + 7) // 8) * rows))
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
    return start + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def picture(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3)).save(file, kind)
    return file.getvalue()


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 9 9
%%EndComments
(OWNED) (w) file closefile
showpage
"""


@pytest.mark.parametrize("kind", [name for name in FORMATS if name != "AVIF"])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ""])
def test_a_picture_is_what_its_content_says(tmp_path: Path, kind: str, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(picture(kind))
    found = read_image(path)
    with Image.open(path) as file:
        assert np.array_equal(np.asarray(found), np.asarray(file.convert("RGB")))
    assert found.mode == "RGB" and found.size == (16, 16)
    assert read_image(io.BytesIO(picture(kind))).tobytes() == found.tobytes()


def test_no_other_program_is_started_for_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gs = tmp_path / "bin" / "gs"
    gs.parent.mkdir()
    gs.write_text(f"#!/bin/sh\ntouch {tmp_path}/owned\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", f"{gs.parent}:{os.environ['PATH']}")
    path = tmp_path / "x.jpg"
    path.write_bytes(EPS)
    with Image.open(path) as file, pytest.raises(OSError):
        file.load()  # Pillow alone asks for it
    assert (tmp_path / "owned").exists()
    (tmp_path / "owned").unlink()
    with pytest.raises(OSError, match="cannot identify"):
        read_image(path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "width, height, told",
    [(80_000_000, 1, "long and narrow"), (1, 501, "long and narrow"), (501, 1, "long and narrow"),
     (10_000, 9_000, "more than 89,478,485"), (100_000, 100_000, "pixels"), (0, 5, ".")],
)  # fmt: skip
def test_sizes_that_no_picture_has(tmp_path: Path, width: int, height: int, told: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(width, height, 0))
    with pytest.raises(BROKEN_IMAGE, match=told):
        read_image(path)


def test_a_picture_of_many_scans() -> None:
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    assert open_image(io.BytesIO(data)).size == (16, 16)
    last = data.rindex(b"\xff\xda")
    many = data[:last] + data[last:-2] * 200 + data[-2:]
    with pytest.raises(ValueError, match=r"a JPEG file of 20\d scans"):
        read_image(io.BytesIO(many))


def test_a_pipe_or_a_device_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path / "pipe.jpg", Path("/dev/zero")):
        with pytest.raises(OSError, match="no file that can be read"):
            read_image(path)


class Strange:
    """A source of a good picture, one that is too narrow to be resized, and one without memory."""

    classes: list[str] = ["a"]  # noqa: RUF012 (nobody adds to it)

    def __len__(self) -> int:
        return 3

    def load(self, index: int) -> tuple[Image.Image, int]:
        if index == 2:
            raise MemoryError
        return Image.new("RGB", ((8, 8), (4000, 8))[index]), 0

    def name(self, index: int) -> str:
        return f"picture {index}"


def test_one_picture_does_not_take_the_others_with_it() -> None:
    """Nor in the transform, where it becomes larger."""
    transform = Preprocessing(image_size=4000, crop=0.5).transform()
    views = SeededViews(Strange(), transform, seed=0, substitute=False)
    assert views[0, 0].image is not None and views[0, 0].broken == ()
    assert views[0, 1].broken == ("picture 1 (too long and narrow to be resized: 4000x8)",)
    assert views[0, 2].broken == ("picture 2 (MemoryError)",)


def test_a_webp_picture_takes_more_memory_and_may_have_half_the_pixels() -> None:
    sizes = {(8_000, 6_000): False, (8_000, 5_000): True}
    for size, taken in sizes.items():
        file = io.BytesIO()
        Image.new("RGB", size).save(file, "WEBP", lossless=True, quality=0, method=0)
        if taken:
            assert open_image(file).size == size
        else:
            with pytest.raises(ValueError, match="more than 44,739,242 are not read"):
                open_image(file)


def turned_file(path: Path, orientation: int | None, mode: str = "RGB") -> np.ndarray:
    """A picture that is upright once it is turned by its EXIF; returns its upright pixels."""
    pixels = np.arange(6 * 4, dtype=np.uint16).reshape(6, 4) * 2560  # no symmetry
    if mode == "RGB":
        pixels = np.stack([(pixels >> 8).astype(np.uint8)] * 3, axis=-1)
    image = Image.fromarray(pixels)
    tags = Image.Exif()
    if orientation:
        tags[ORIENTATION] = orientation
    image.save(path, exif=tags)
    by_pillow = ImageOps.exif_transpose(Image.open(path))
    return np.asarray(by_pillow.convert("RGB")) if mode == "RGB" else np.asarray(by_pillow) >> 8


@pytest.mark.parametrize("mode", ["RGB", "I;16"])
@pytest.mark.parametrize("orientation", [None, 1, 2, 3, 4, 5, 6, 7, 8, 9])
def test_pictures_are_turned_as_pillow_turns_them(
    tmp_path: Path, orientation: int | None, mode: str
) -> None:
    expected = turned_file(tmp_path / "x.png", orientation, mode)
    found = np.asarray(read_image(tmp_path / "x.png", upright))
    assert np.array_equal(found if mode == "RGB" else found[..., 0], expected)


def test_folders_are_turned_unless_their_classes_are_imagenets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "val" / name).mkdir(parents=True)
        turned_file(tmp_path / "val" / name / "x.png", 6)

    def size(exif_orientation: bool | None) -> tuple[int, int]:
        source = FolderImages(tmp_path, "val", exif_orientation=exif_orientation)
        return source.load(0)[0].size

    assert (size(None), size(True), size(False)) == ((6, 4), (6, 4), (4, 6))
    monkeypatch.setattr("srd.data.labels._imagenet", lambda: Synsets)
    assert (size(None), size(True), size(False)) == ((4, 6), (6, 4), (4, 6))
    data = Data(path=str(tmp_path), exif_orientation=True)
    with pytest.raises(UserError, match="no images at"):
        open_folder(data, True)
    (told,) = open_folder(data, False).notes
    assert told == "pictures: 2 .png; read in RGB (3 channels), upright as EXIF says"


class Synsets:
    @staticmethod
    def label_names() -> list[str]:
        return ["cat", "dog"]


def test_pictures_without_labels_are_turned_unless_a_setting_says_otherwise(tmp_path: Path) -> None:
    turned_file(tmp_path / "x.png", 6)
    for turn, size in ((None, (6, 4)), (True, (6, 4)), (False, (4, 6))):
        source = open_pictures(Data(path=str(tmp_path), exif_orientation=turn), True).train
        assert source is not None and source.load(0)[0].size == size
