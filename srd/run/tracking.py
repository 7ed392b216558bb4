"""Sends what a run logs to its tracker, from a thread of its own: the training never waits for it."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from srd.errors import UserError
from srd.files.checkpoint import write_text
from srd.run.trackers import ID, SECONDS, TRACKERS, Row, Tracker, read_id

MOST_WAITING = 10_000  # rows; a tracker that is slower than that loses some
MOST_AT_ONCE = 500


class Tracking:
    """A tracker at work.

    Args:
        name: of the tracker, one that `check_tracker` has passed.
        folder: of the run; it keeps what the tracker knows the run by.
    """

    def __init__(self, name: str, folder: Path, settings: Mapping[str, Any]) -> None:
        self.name, self.folder, self.settings = name, folder, settings
        self.trouble: str | None = None  # the first one, until it is told
        self._told = False
        self._rows: queue.Queue[Row | None] = queue.Queue(MOST_WAITING)
        self._result: Mapping[str, Any] | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"track {name}", daemon=True)
        self._is_new = read_id(folder, name) is None
        self._thread.start()

    def check(self) -> None:
        """Wait until a run that is new to the tracker is there; one that goes on waits for nothing.

        Raises:
            UserError: it cannot be started.
        """
        if self._is_new:
            self._started.wait()
            if self.trouble is not None:
                trouble, mend = self.trouble.rstrip("."), TRACKERS[self.name].mend
                raise UserError(f"--track {self.name}: {trouble}; {mend}")

    def row(self, kind: str, values: Mapping[str, Any]) -> None:
        """Numbers of a row of `metrics.jsonl`, to be sent."""
        numbers = {
            f"{kind}/{name}": value
            for name, value in values.items()
            if isinstance(value, (int, float)) and name != "step"
        }
        try:
            self._rows.put_nowait(Row(int(values["step"]), numbers))
        except queue.Full:
            self._fail("it is too slow, and some rows are left out")

    def news(self) -> str | None:
        """What went wrong, once."""
        if self.trouble is None or self._told:
            return None
        self._told = True
        return f"warning: --track {self.name}: {self.trouble}; the training goes on"

    def close(self, result: Mapping[str, Any] | None) -> None:
        """Send what is left, with the result of a run that is done; waits for seconds, at most."""
        self._result = result
        try:
            self._rows.put(None, timeout=SECONDS)
        except queue.Full:
            return
        self._thread.join(SECONDS)
        if self._thread.is_alive():
            self._fail(f"it did not take all within {SECONDS} seconds")

    def _work(self) -> None:
        """The thread: start, send, finish."""
        tracker = self._start()
        self._started.set()
        going = True
        while going:
            rows = self._waiting()
            going = None not in rows
            if tracker is not None and (numbers := [row for row in rows if row is not None]):
                try:
                    tracker.log(numbers)
                except Exception as error:  # whatever a library raises, or the network
                    self._fail(_reason(error))
        if tracker is not None:
            try:
                tracker.finish(self._result)
            except Exception as error:
                self._fail(_reason(error))

    def _start(self) -> Tracker | None:
        known = read_id(self.folder, self.name)
        try:
            tracker = TRACKERS[self.name].tracker(
                self.folder.name, self.settings, self.folder, known
            )
            if tracker.id != known:
                self._keep(tracker.id)
        except (Exception, SystemExit) as error:
            self._fail(_reason(error))
            return None
        return tracker

    def _keep(self, id: str) -> None:
        ids = {name: read_id(self.folder, name) for name in TRACKERS}
        ids = {name: known for name, known in {**ids, self.name: id}.items() if known}
        write_text(self.folder / ID, json.dumps(ids) + "\n")

    def _waiting(self) -> list[Row | None]:
        """What has come meanwhile; waits for something."""
        rows = [self._rows.get()]
        while rows[-1] is not None and len(rows) < MOST_AT_ONCE:
            try:
                rows.append(self._rows.get_nowait())
            except queue.Empty:
                break
        return rows

    def _fail(self, reason: str) -> None:
        self.trouble = self.trouble or reason


def _reason(error: BaseException) -> str:
    """An exception in a line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
