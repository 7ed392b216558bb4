"""Signals that ask a run to stop: noted when they come, obeyed between two steps."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from srd.errors import EXIT_SIGTERM


class StopSignals:
    """SIGTERM, SIGINT and SIGUSR1 ask the run to save and stop after the step that is under way.

    SIGUSR1 is what a scheduler sends before a time limit. A second SIGINT interrupts at once. A
    terminal that is lost (SIGHUP) stops nothing.
    """

    NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self) -> None:
        self.received: int | None = None

    def asked(self) -> bool:
        """Whether this process has been asked to stop."""
        return self.received is not None

    @property
    def code(self) -> int:
        """128 + the number of the signal; SIGTERM's where another process was told."""
        return EXIT_SIGTERM if self.received is None else 128 + self.received

    @contextmanager
    def listening(self) -> Iterator[StopSignals]:
        """Handle the signals inside; put the old handlers back after."""
        old = {number: signal.signal(number, self._note) for number in self.NUMBERS}
        old[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            yield self
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def _note(self, number: int, _: Any) -> None:
        if self.received == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.received = number


def stop_with_torchrun() -> None:
    """Where torchrun started this process: take its death, even by SIGKILL, for a SIGTERM.

    torchrun gives its processes sessions of their own, so that what kills it, and its process
    group, leaves them at work. Linux only; elsewhere nothing happens.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        stop_with_parent()


def stop_with_parent() -> None:
    """Get SIGTERM when the process that started this one dies (prctl's PR_SET_PDEATHSIG)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM.value)
