"""What a picture costs to be read beside its pixels: small files that keep Pillow busy."""

from __future__ import annotations

from PIL import Image

from srd.data.picture_tags import asks_for_too_much
from srd.files.limits import LIMITS

JPEG_SCAN = b"\xff\xda"  # before each scan, and nowhere inside one

# Pillow holds these twice while it reads them, with a channel more: 12 to 20 bytes a pixel. So does
# its JPEG library with CMYK pictures that come in several scans.
HELD_TWICE = ("WEBP", "AVIF")


class TooLarge(ValueError):
    """A picture asks for more than `srd.files.limits` allow, as it is or when it is resized."""


def check_file(data: bytes) -> None:
    """Raise TooLarge for a file whose head alone would cost too much."""
    if asks_for_too_much(data):
        raise TooLarge("its tags claim several times what the file has")
    if data[:3] == b"GIF" and gif_comments(data) > LIMITS.comments:
        raise TooLarge(f"more than {LIMITS.comments:,} bytes of comments")


def check_picture(image: Image.Image, data: bytes) -> None:
    """Raise TooLarge for a picture, of which the head is read, whose pixels would cost too much."""
    if asks_for_too_much(image.info.get("exif") or b""):
        raise TooLarge("its tags claim several times what the file has")
    width, height = image.size
    scans = data.count(JPEG_SCAN) if image.format in ("JPEG", "MPO") else 0
    twice = image.format in HELD_TWICE or (scans > 1 and image.mode == "CMYK")
    most = LIMITS.pixels // 2 if twice else LIMITS.pixels
    decoder = image.tile[0].codec_name if image.tile else ""  # type: ignore[attr-defined]
    if decoder == "bmp_rle":  # unpacked by Python, a pixel at a time
        most = LIMITS.slow_pixels
    check_size(width, height, most)
    if scans > LIMITS.scans or scans * width * height > LIMITS.scanned:
        raise TooLarge(f"a JPEG file of {scans} scans")
    if decoder == "ppm_plain" and data.count(b"#") > LIMITS.scans:
        raise TooLarge(f"a PPM file of more than {LIMITS.scans} comments")


def check_size(width: int, height: int, most: int = LIMITS.pixels) -> None:
    """Raise TooLarge for a picture of more than `most` pixels, or that is too long."""
    if not 0 < width * height <= most:
        raise TooLarge(f"{width}x{height} pixels: more than {most:,} are not read")
    if max(width, height) > LIMITS.aspect * min(width, height):
        raise TooLarge(f"{width}x{height} pixels: too long and narrow")


def gif_comments(data: bytes) -> int:
    """The bytes of comments before the first image of a GIF file, which Pillow joins one by one."""
    place, total = 13 + (3 << 1 + (data[10] & 7) if len(data) > 10 and data[10] & 128 else 0), 0
    while place < len(data) and data[place] != ord(","):
        if data[place] != ord("!"):
            place += 1
            continue
        comment = data[place + 1 : place + 2] == b"\xfe"
        place += 2
        while place < len(data) and data[place]:
            total += (1 + data[place]) * comment
            place += 1 + data[place]
        total += comment
        place += 1
    return total
