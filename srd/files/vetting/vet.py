"""A checkpoint file looked over before it is read: what it is, and whether reading it is safe.

Known are torch's zip archives, torch's older ("legacy") files and safetensors, told apart by their
content, not by their suffix. A zip's directory must add up before anything in it is touched, and
its pickle is followed on paper (`srd.files.vetting.pickles`).
"""

from __future__ import annotations

import io
import mmap
import os
import struct
import zipfile
from enum import Enum, auto
from pathlib import Path
from typing import IO, cast

from srd.files.vetting.pickles import PickleCheck
from srd.files.vetting.values import Refused, is_a, plain_value

MOST_DIRECTORY = 16 << 20  # bytes of a zip's directory: some 150,000 records
MOST_PICKLE = 256 << 20  # bytes of a pickle, without the tensors' data
LEGACY_START = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # torch's magic number, pickled
LEGACY_PICKLES = 5  # magic number, version, machine, content, keys of the data that follows
MOST_HEADER = 100_000_000  # bytes; safetensors' own limit


class Format(Enum):
    """What a file can be."""

    ZIP = auto()
    LEGACY = auto()
    SAFETENSORS = auto()
    PICKLE = auto()  # not torch's: followed only to say what it asks for


def vet(path: Path) -> Format:
    """The format of a file, after a look at everything that reading it would do.

    Raises:
        Refused: it is no checkpoint, is damaged, or asks for more than a checkpoint needs. OSError:
            it cannot be read. ValueError, LookupError, zipfile.BadZipFile: it is damaged.
    """
    with open(path, "rb") as file:
        head = file.read(1024)
    found = format_of(head)
    if found is Format.ZIP:
        _check_zip(path)
    elif found is Format.LEGACY:
        _follow(path, LEGACY_PICKLES)
    elif found is Format.PICKLE:
        _follow(path, 1)
        raise Refused("is a plain pickle, not a torch file: save it with torch.save")
    return found


def format_of(head: bytes) -> Format:
    """The format that a file's first kilobyte shows; Refused says what it is instead."""
    if len(head) > 8 and head[8:9] == b"{" and 2 <= struct.unpack("<Q", head[:8])[0] <= MOST_HEADER:
        return Format.SAFETENSORS
    starts = {b"PK\x03\x04": Format.ZIP, LEGACY_START: Format.LEGACY, b"\x80": Format.PICKLE}
    for start, found in starts.items():
        if head.startswith(start):
            return found
    raise Refused(what_else(head))


def what_else(head: bytes) -> str:
    """In words, what a file that is no checkpoint seems to be."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "is empty: the download or the copy failed, fetch it again"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository"
    if text.startswith((b"<!doctype html", b"<html", b"<?xml", b"<head", b"<script")):
        return (
            "is a web page, not weights (as failed downloads from cloud drives are): "
            "fetch the file again, by hand in a browser"
        )
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ")) or head[257:262] == b"ustar":
        return "is an archive (gzip, bzip2, xz or tar): unpack it, and give the file inside"
    return "is damaged or not a checkpoint (neither a torch file nor safetensors)"


def _check_zip(path: Path) -> None:
    try:
        if _directory_size(path) > MOST_DIRECTORY:
            raise Refused("is a zip archive of too many records")
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile:
        raise Refused("is damaged: cut short, its end is missing; fetch it again") from None
    with archive:
        pickle, sizes = _records(archive, path.stat().st_size)
        with archive.open(pickle) as stream:
            program = stream.read(pickle.file_size)
    PickleCheck(sizes, 0).follow(io.BytesIO(program))


def _directory_size(path: Path) -> int:
    """Bytes of a zip's directory, from the records at the file's end.

    Torch ends its files with the 56 bytes of a zip64 record, 20 of its locator, 22 of the old
    record, and no comment. All must agree, and the directory must lie right before them: else
    torch's reader and Python's could find two different ones.
    """
    with open(path, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 98))
        tail = file.read()
    if len(tail) < 22 or tail[-22:-18] != b"PK\x05\x06" or tail[-2:] != b"\0\0":
        raise Refused("is damaged: cut short, its end is missing; fetch it again")
    size, offset = struct.unpack("<LL", tail[-10:-2])
    whole = size + offset == end - 22
    if tail[-42:-38] == b"PK\x06\x07":
        (record,) = struct.unpack("<Q", tail[-34:-26])
        sizes = struct.unpack("<QQ", tail[40:56])
        agree = all(
            old in (new, 0xFFFFFFFF) for old, new in zip((size, offset), sizes, strict=True)
        )
        whole = tail[:4] == b"PK\x06\x06" and record == sum(sizes) == end - 98 and agree
        size = sizes[0]
    if not whole:
        raise Refused("is damaged: the records at its end do not agree; fetch it again")
    return size


def _records(archive: zipfile.ZipFile, size: int) -> tuple[zipfile.ZipInfo, dict[str, int]]:
    """The record of the pickle, and bytes of each record of data by key.

    Torch stores records plainly, each once, in one folder. So must these: a compressed record may
    be a bomb, and of two with the same name nobody knows which is read.
    """
    records = archive.infolist()
    names = [record.filename.lower() for record in records]  # torch looks without regard to case
    folder = records[0].filename.split("/")[0] + "/" if records else ""
    inside = {record.filename.removeprefix(folder): record for record in records}
    if any(name.startswith("code/") for name in inside) or "constants.pkl" in inside:
        raise Refused("is a TorchScript program, not weights: save its state_dict() instead")
    if any(record.orig_filename != record.filename for record in records):
        raise Refused("holds records with names that torch never writes: refused")
    if len(set(names)) < len(names):
        raise Refused("holds two records of the same name: refused")
    if any(
        record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size
        for record in records
    ):
        raise Refused("holds compressed records, which torch never writes: refused")
    ends = (record.header_offset + record.file_size for record in records)
    if sum(record.file_size for record in records) > size or any(end > size for end in ends):
        raise Refused("is damaged: cut short, it claims more data than it has; fetch it again")
    if "data.pkl" not in inside or not all(name.startswith(folder.lower()) for name in names):
        raise Refused("is a zip archive, not a torch file: unpack it, and give the file inside")
    if inside["data.pkl"].file_size > MOST_PICKLE:
        raise Refused("holds a pickle of more than 256 MiB: no checkpoint does")
    keys = {name.removeprefix("data/"): r for name, r in inside.items() if name.startswith("data/")}
    return inside["data.pkl"], {key: record.file_size for key, record in keys.items()}


def _follow(path: Path, pickles: int) -> None:
    """Follow the pickles at the start of a file, of which an old torch file's last names its data."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
        check = PickleCheck(None, len(memory))
        found = [check.follow(cast(IO[bytes], memory)) for _ in range(pickles)]
    keys = set(filter(plain_value, found[-1].items if is_a(found[-1], "list") else ()))
    missing = [key for key in check.storages if key not in keys]
    if pickles == LEGACY_PICKLES and missing:
        raise Refused(f"is damaged: the data {missing[0][:20]!r} of a tensor is missing")
