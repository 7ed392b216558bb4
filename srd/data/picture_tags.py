"""How much the tags of a picture ask for (TIFF's, and EXIF in other formats), before anybody reads them.

Each tag names a piece of the file; thousands may name the same half a megabyte, and all are copied.
"""

from __future__ import annotations

import struct

UNITS = (1, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 1, 1, 8, 8, 8)  # bytes of a value, by type
EXIF = b"Exif\0\0"
SPARE = 1 << 20


def asks_for_too_much(data: bytes) -> bool:
    """Whether tags in a picture's file, or in its EXIF part, claim several times what there is."""
    for tags in (data, exif_of_jpeg(data), data.removeprefix(EXIF)):
        if claimed(tags) > 2 * len(tags) + SPARE:
            return True
    return False


def claimed(tags: bytes) -> int:
    """The bytes that the first directory of TIFF tags claims; 0 where these are no tags."""
    order = {b"II": "<", b"MM": ">"}.get(tags[:2])
    if order is None or len(tags) < 16:
        return 0
    big = tags[2:4] in (b"+\0", b"\0+")  # BigTIFF: longer numbers
    place = struct.unpack_from(f"{order}{'Q' if big else 'L'}", tags, 8 if big else 4)[0]
    head, entry = (8, f"{order}HHQ8x") if big else (2, f"{order}HHL4x")
    if place + head > len(tags):
        return 0
    count = struct.unpack_from(f"{order}{'Q' if big else 'H'}", tags, place)[0]
    size = struct.calcsize(entry)
    last = min(place + head + count * size, len(tags) - (len(tags) - place - head) % size)
    entries = struct.iter_unpack(entry, tags[place + head : last])
    return sum(values * (UNITS[kind] if kind < len(UNITS) else 1) for _, kind, values in entries)


def exif_of_jpeg(data: bytes) -> bytes:
    """The EXIF part of a JPEG file, its segments joined as Pillow does; b"" for others."""
    parts, place = [], 2
    while data[:2] == b"\xff\xd8" and data[place : place + 1] == b"\xff":
        marker = data[place + 1 : place + 2]
        if marker in (b"\xda", b"\xd9", b"") or place + 4 > len(data):
            break
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        segment = data[place + 4 : place + 2 + length]
        if marker == b"\xe1" and segment.startswith(EXIF):
            parts.append(segment.removeprefix(EXIF))
        place += 2 + max(length, 2)
    return b"".join(parts)
