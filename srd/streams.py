"""Standard output and error that outlast the terminal: a run goes on when nobody reads it any more."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


class Lasting:
    """A stream that says nothing any more once it cannot be written: a closed pipe, a lost terminal.

    Its file descriptor then leads nowhere, so that nothing else fails on it either, be it a library, a
    process that this one starts, or the interpreter at its end.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"  # ASCII in some containers
        shown = text.encode(encoding, "backslashreplace").decode(encoding)
        self._try(lambda: self._stream.write(shown))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, write: Any) -> None:
        try:
            write()
        except (OSError, ValueError):  # ValueError: it was closed
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)


@contextmanager
def lasting() -> Iterator[None]:
    """Inside, standard output and error can be written whatever becomes of them."""
    _open_the_standard_three()
    old = sys.stdout, sys.stderr
    nowhere = open(os.devnull, "w") if None in old else None  # noqa: SIM115 (closed below)
    try:
        sys.stdout, sys.stderr = (
            stream
            if isinstance(stream, Lasting)
            else Lasting(nowhere if stream is None else stream)
            for stream in old
        )
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = old
        if nowhere is not None:
            nowhere.close()


def _open_the_standard_three() -> None:
    """Where one of the descriptors 0, 1 and 2 is closed, the next file would get its number, and what
    a library prints would be written into it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the smallest that is free
