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

PATIENCE_SECONDS = 30.0  # for an earlier life of the run, which may be saving


def claim(folder: Path) -> BinaryIO | None:
    """Keep other processes, on other machines too, from writing a run in `folder`.

    Returns:
        What holds the claim until it is closed; None where the folder cannot be written. On a file
        system without locks nothing is claimed.

    Raises:
        UserError: another process holds it, and did not leave in `PATIENCE_SECONDS`.
    """
    try:
        file = (folder / ".lock").open("ab+", buffering=0)
    except OSError:
        return None
    started, told = time.monotonic(), False
    while not _locked(file):
        file.seek(0)
        holder = file.read().decode(errors="replace").strip() or "another process"
        if time.monotonic() - started > PATIENCE_SECONDS:
            file.close()
            raise UserError(
                f"{folder} is in use by {holder}: wait for it, stop it, or use another --name"
            )
        if not told:
            print(f"waiting for {holder} to leave {folder}", file=sys.stderr)
            told = True
        time.sleep(0.1)
    with suppress(OSError):  # a full disk: the name is a courtesy
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}".encode())
    return file


def _locked(file: BinaryIO) -> bool:
    # A POSIX lock belongs to the process alone: a loader's worker that outlives it keeps nothing.
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True
