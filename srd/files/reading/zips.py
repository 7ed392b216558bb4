"""Torch's zip archives: a pickle, and a record of data for each storage.

The directory must add up before anything in it is touched. Torch stores records plainly, each
once, in one folder; so must these: a compressed record may be a bomb, and overlapping ones give
the same bytes again and again.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import Any

from srd.files.limits import LIMITS
from srd.files.opened import OpenedFile, Refused
from srd.files.reading.pickles import Unpickler

START = b"PK\x03\x04"
LOCAL_HEADER = struct.Struct("<4s22xHH")  # before each record: its start, lengths of what follows
UTF8_NAME = 0x800  # a record's flag
CHUNK = 1 << 24


@dataclass(frozen=True)
class Record:
    """Where a record's bytes are in the file."""

    offset: int
    size: int
    checksum: int  # CRC-32


def read_zip(file: OpenedFile, *, checked: bool) -> Any:
    """What an archive's pickle describes, with the data of its tensors.

    Args:
        checked: compare every record with its checksum.

    Raises:
        Refused: it is none of torch's, is damaged, or asks for more than a checkpoint needs.
            ValueError, LookupError, zipfile.BadZipFile: it is damaged.
    """
    records = read_directory(file)
    if checked:
        for record in records.values():
            check_record(file, record)
    pickle = records["data.pkl"]
    if pickle.size > LIMITS.pickle_bytes:
        raise Refused(f"holds a pickle of more than {LIMITS.pickle_bytes >> 20} MiB")

    def claim(key: str, nbytes: int) -> None:
        record = records.get(f"data/{key}")
        if record is None:
            raise Refused(f"is damaged: the data {key[:20]!r} of a tensor is missing")
        if nbytes > record.size:
            raise Refused(f"claims {nbytes:,} bytes for a tensor whose data has {record.size:,}")

    unpickler = Unpickler(file.read(pickle.offset, pickle.size), claim)
    content = unpickler.load()
    swapped = _byteorder(file, records) == b"big"
    for key, storage in unpickler.storages.items():
        file.fill(storage.data, records[f"data/{key}"].offset)
        if swapped:
            storage.data.untyped_storage().byteswap(storage.dtype)
    return content


def _byteorder(file: OpenedFile, records: dict[str, Record]) -> bytes:
    record = records.get("byteorder")
    order = file.read(record.offset, min(record.size, 8)) if record else b"little"
    if order not in (b"little", b"big"):
        raise Refused("is damaged: the order of its bytes is unknown")
    return order


def read_directory(file: OpenedFile) -> dict[str, Record]:
    """Where each record is, by its name inside the archive's one folder."""
    if _directory_size(file) > LIMITS.directory_bytes:
        raise Refused("is a zip archive of too many records")
    try:
        with zipfile.ZipFile(file.raw) as archive:
            entries = archive.infolist()
    except zipfile.BadZipFile:
        raise Refused("is damaged: its directory cannot be read; fetch it again") from None
    if len(entries) > LIMITS.tensors + 10:
        raise Refused(f"holds more than {LIMITS.tensors:,} records: no checkpoint does")
    folder = entries[0].filename.split("/")[0] + "/" if entries else ""
    inside = {entry.filename.removeprefix(folder): entry for entry in entries}
    if any(name.startswith("code/") for name in inside) or "constants.pkl" in inside:
        raise Refused("is a TorchScript program, not weights: save its state_dict() instead")
    if any(entry.orig_filename != entry.filename for entry in entries):
        raise Refused("holds records with names that torch never writes: refused")
    if len({entry.filename.lower() for entry in entries}) < len(entries):  # as torch compares them
        raise Refused("holds two records of the same name: refused")
    if any(
        entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size
        for entry in entries
    ):
        raise Refused("holds compressed records, which torch never writes: refused")
    if sum(entry.file_size for entry in entries) > file.size:
        raise Refused("is damaged: cut short, it claims more data than it has; fetch it again")
    if "data.pkl" not in inside or not all(e.filename.startswith(folder) for e in entries):
        raise Refused("is a zip archive, not a torch file: unpack it, and give the file inside")
    return {name: _record(file, entry) for name, entry in inside.items()}


def _record(file: OpenedFile, entry: zipfile.ZipInfo) -> Record:
    """Where the record's data is: behind a header of its own, which must tell the same name."""
    name = entry.orig_filename.encode("utf-8" if entry.flag_bits & UTF8_NAME else "cp437")
    header = file.read(entry.header_offset, LOCAL_HEADER.size + len(name))
    start, name_length, extra_length = LOCAL_HEADER.unpack_from(header)
    if start != START or name_length != len(name) or not header.endswith(name):
        raise Refused("is damaged: its directory names other records than it holds; fetch it again")
    offset = entry.header_offset + LOCAL_HEADER.size + name_length + extra_length
    if offset + entry.file_size > file.size:
        raise Refused("is damaged: cut short, it claims more data than it has; fetch it again")
    return Record(offset, entry.file_size, entry.CRC)


def check_record(file: OpenedFile, record: Record) -> None:
    """Refused, if a record has another checksum than it was written with."""
    checksum = 0
    for start in range(0, record.size, CHUNK):
        part = file.read(record.offset + start, min(CHUNK, record.size - start))
        checksum = zlib.crc32(part, checksum)
    if checksum != record.checksum:
        raise Refused("is damaged: a record has another checksum than it was written with")


def _directory_size(file: OpenedFile) -> int:
    """Bytes of a zip's directory, from the records at the file's end.

    Torch ends its files with the 56 bytes of a zip64 record, 20 of its locator, 22 of the old
    record, and no comment. All must agree, and the directory must lie right before them: a file
    of two archives would be two things at once.
    """
    tail = file.read(max(0, file.size - 98), min(98, file.size))
    if len(tail) < 22 or tail[-22:-18] != b"PK\x05\x06" or tail[-2:] != b"\0\0":
        raise Refused("is damaged: cut short, its end is missing; fetch it again")
    size, offset = struct.unpack("<LL", tail[-10:-2])
    whole = size + offset == file.size - 22
    if tail[-42:-38] == b"PK\x06\x07":
        (record,) = struct.unpack("<Q", tail[-34:-26])
        sizes = struct.unpack("<QQ", tail[40:56])
        agree = all(
            old in (new, 0xFFFFFFFF) for old, new in zip((size, offset), sizes, strict=True)
        )
        end = file.size - 98
        whole = tail[:4] == b"PK\x06\x06" and record == sum(sizes) == end and agree
        size = sizes[0]
    if not whole:
        raise Refused("is damaged: the records at its end do not agree; fetch it again")
    return size
