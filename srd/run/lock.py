"""One run at a time in a folder: a lock that the system lifts when its process ends, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from srd.errors import UserError
from srd.files.opened import not_through_a_link

PATIENCE_SECONDS = 30.0  # for an earlier life of the run, which may be saving


class Claim:
    """Keeps other processes, on other machines too, from writing a run in `folder`.

    Where the folder cannot be written, or its file system knows no locks, it keeps nobody out.

    Raises:
        UserError: another process is there, and did not leave in `PATIENCE_SECONDS`.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".lock"
        started, told = time.monotonic(), False
        while (file := self._open()) is not None:
            if _lock(file) and _is_mine(file, self.path):
                break
            holder = file.read().decode(errors="replace") or "another process"
            file.close()
            if time.monotonic() - started > PATIENCE_SECONDS:
                raise UserError(
                    f"{folder} is in use by {holder}: wait for it, stop it, or use another --name"
                )
            if not told:
                print(f"waiting for {holder} to leave {folder}", file=sys.stderr)
                told = True
            time.sleep(0.1)
        self.file = file
        if file is not None:
            with suppress(OSError):  # a full disk: the name is a courtesy
                file.truncate(0)
                file.write(f"process {os.getpid()} on {platform.node()}".encode())

    def release(self) -> None:
        """Let others in, and leave no file."""
        if self.file is not None:
            with suppress(OSError):
                self.path.unlink()
            self.file.close()

    def _open(self) -> BinaryIO | None:
        try:
            file = open(self.path, "ab+", buffering=0, opener=not_through_a_link)  # noqa: SIM115
            file.seek(0)
        except OSError:
            return None
        return file


class Turn:
    """A piece of work that one process does, taken without waiting: `taken` says whether it is ours.

    Where the folder cannot be written, or its file system knows no locks, everybody gets it.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.taken = path, True
        self._file: BinaryIO | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "ab", buffering=0, opener=not_through_a_link)  # noqa: SIM115
        except OSError:
            return
        self.taken = _lock(file) and _is_mine(file, path)
        if self.taken:
            self._file = file
        else:
            file.close()

    def release(self) -> None:
        """Leave it to others, without a trace."""
        if self._file is not None:
            with suppress(OSError):
                self.path.unlink()
            self._file.close()
            self._file = None


def _is_mine(file: BinaryIO, path: Path) -> bool:
    """Whether what is locked is the file that others would open."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def _lock(file: BinaryIO) -> bool:
    # A POSIX lock belongs to the process alone: a loader's worker that outlives it keeps nothing.
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True
