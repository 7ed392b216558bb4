"""A file opened once: what is looked over is what is read, whatever happens to its name meanwhile."""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

CHUNK = 1 << 24  # bytes that are hashed at once


class Refused(Exception):
    """A file asks for something that no honest one needs; says what, without the file's name."""


class OpenedFile:
    """A regular file's bytes by position; never more than it had when it was opened.

    It is read and not mapped: where a mapped file is cut short, who touches the rest is killed.

    Raises:
        Refused: the file ends before what is asked for, or has become shorter.
    """

    def __init__(self, raw: io.FileIO) -> None:
        self.raw = raw
        self.size = os.fstat(raw.fileno()).st_size

    def read(self, offset: int, count: int) -> bytes:
        """The `count` bytes from `offset` on."""
        if not 0 <= offset <= offset + count <= self.size:
            raise Refused("is damaged: cut short, it claims more data than it has; fetch it again")
        self.raw.seek(offset)
        data = self.raw.read(count) or b""
        if len(data) < count:  # one call reads 2 GiB at most
            rest = bytearray(count - len(data))
            self.read_into(offset + len(data), memoryview(rest))
            data += rest
        return data

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` (of bytes) with those from `offset` on."""
        if not 0 <= offset <= offset + len(buffer) <= self.size:
            raise Refused("is damaged: cut short, it claims more data than it has; fetch it again")
        self.raw.seek(offset)
        done = 0
        while done < len(buffer):  # one call reads 2 GiB at most
            count = self.raw.readinto(buffer[done:])
            if not count:
                raise Refused("became shorter while it was read: read it again when it is written")
            done += count

    def sha256(self) -> str:
        """Of all of it, as 64 hexadecimal digits."""
        digest = hashlib.sha256()
        for offset in range(0, self.size, CHUNK):
            digest.update(self.read(offset, min(CHUNK, self.size - offset)))
        return digest.hexdigest()

    def fill(self, data: Tensor, offset: int) -> None:
        """Fill a tensor of bytes with those from `offset` on."""
        self.read_into(offset, memoryview(cast(Any, data.numpy())))


def allocate(nbytes: int) -> Tensor:
    """Bytes that are not yet written; a MemoryError where there is no place for them."""
    try:
        return torch.empty(nbytes, dtype=torch.uint8)
    except RuntimeError:
        raise MemoryError from None


@contextmanager
def open_once(path: str | Path) -> Iterator[OpenedFile]:
    """Open a regular file without waiting for it, as a pipe or a terminal would make one wait.

    Raises:
        Refused: it is something else than a file. OSError: it cannot be opened.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
    flags |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    with open(path, "rb", buffering=0, opener=lambda name, _: os.open(name, flags)) as raw:
        if not stat.S_ISREG(os.fstat(raw.fileno()).st_mode):
            raise Refused("is no file that can be read: a pipe, a device or a socket")
        yield OpenedFile(raw)


def not_through_a_link(name: str, flags: int) -> int:
    """Opens a file that is written in a folder from anybody (`open(..., opener=...)`).

    A link in its place would have something else written, and a pipe would have one wait.

    Raises:
        OSError: there is one.
    """
    more = (getattr(os, flag, 0) for flag in ("O_NOFOLLOW", "O_NONBLOCK"))
    return os.open(name, flags | sum(more), 0o666)


def read_small(path: str | Path, most: int) -> bytes:
    """All of a file that has at most `most` bytes; raises as `open_once` and `OpenedFile`."""
    with open_once(path) as file:
        if file.size > most:
            raise Refused(f"has {file.size:,} bytes, and {most:,} are the most that is read of it")
        return file.read(0, file.size)
