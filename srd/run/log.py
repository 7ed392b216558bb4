"""What a run tells: a progress bar or plain lines, `log.txt`, `metrics.jsonl`, TensorBoard."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from srd.errors import RunFailed, UserError
from srd.files.checkpoint import write_text
from srd.files.limits import LIMITS
from srd.files.opened import Refused, not_through_a_link, read_small
from srd.printable import printable_lines
from srd.run.board import show_pictures, show_settings
from srd.run.tracking import Tracking

PLAIN_LINE_SECONDS = 10.0


class RunLog:
    """Tells one run; on every process but the main one it is silent and writes nothing.

    Args:
        folder: of the run; None writes no files.
        main: whether this process tells.
        first_step: number of updates already made; rows at or after it, from a run that was
            killed, are dropped, so that the files read as if the run had never stopped.
        copy_to: a second place for the lines of `log.txt`.
        tracking: sends the rows to a tracker.
    """

    def __init__(
        self,
        folder: Path | None,
        main: bool = True,
        first_step: int = 0,
        copy_to: Path | None = None,
        tracking: Tracking | None = None,
    ) -> None:
        self.main, self.folder = main, folder if main else None
        self.interactive = main and sys.stderr is not None and sys.stderr.isatty()
        self._copy: Any = None
        self._metrics: Any = None
        self._text: Any = None
        self._board: SummaryWriter | None = None
        self._tracking = tracking
        self._result: Mapping[str, Any] | None = None
        if main and copy_to is not None:
            try:
                copy_to.parent.mkdir(parents=True, exist_ok=True)
                self._copy = copy_to.open("a", encoding="utf-8")
            except (OSError, ValueError) as error:  # ValueError: a NUL in its name
                reason = getattr(error, "strerror", None) or error
                raise UserError(f"cannot write the log {copy_to} ({reason})") from None
        if self.folder is not None:
            try:
                self._text = _to_append(self.folder / "log.txt")
                self.start_at(first_step)
            except OSError as error:
                raise UserError(
                    f"cannot write the log of {self.folder} ({error.strerror})"
                ) from None

    def start_at(self, first_step: int) -> None:
        """Drop the rows from `first_step` on, and go on from there."""
        if self.folder is None:
            return
        if self._board is not None:
            self._metrics.close()
            self._board.close()
        metrics = self.folder / "metrics.jsonl"
        if metrics.exists():
            _drop_rows(metrics, first_step)
        self._metrics = _to_append(metrics)
        self._board = SummaryWriter(
            str(self.folder / "tensorboard"), purge_step=first_step, flush_secs=10
        )

    def info(self, message: str) -> None:
        """One line for the person and for `log.txt`; names that others chose are made printable."""
        if not self.main:
            return
        message = printable_lines(message)
        if self.interactive:
            tqdm.write(message, file=sys.stderr)
        else:
            print(message, file=sys.stderr, flush=True)
        for file in (self._text, self._copy):
            if file is not None:
                self._write(file, f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}\n")

    def lines(self, messages: Iterable[str]) -> None:
        """Several lines."""
        for message in messages:
            self.info(message)

    def row(
        self, kind: str, values: Mapping[str, Any], board: Mapping[str, float] | None = None
    ) -> None:
        """One object in `metrics.jsonl`; its numbers go to TensorBoard under `kind/name`."""
        if self._metrics is None:
            return
        self._write(self._metrics, json.dumps({"kind": kind, **values}) + "\n")
        told = board if board is not None else values
        if self._tracking is not None:
            self._tracking.row(kind, {**told, "step": values["step"]})
            self._news()
        assert self._board is not None
        try:
            for name, value in told.items():
                if isinstance(value, (int, float)) and name not in ("step", "epoch"):
                    self._board.add_scalar(f"{kind}/{name}", value, values["step"])
                elif isinstance(value, list):
                    self._board.add_histogram(f"{kind}/{name}", np.array(value), values["step"])
        except OSError as error:  # its thread met it while writing an earlier one
            raise RunFailed(
                f"cannot write {self._board.log_dir} ({error.strerror or error})"
            ) from error

    def settings(self, name: str, settings: Mapping[str, Any]) -> None:
        """The run's name and settings, for TensorBoard."""
        if self._board is not None:
            show_settings(self._board, name, settings)

    def pictures(
        self,
        images: Tensor,
        step: int,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        """A training batch, for TensorBoard; see `srd.run.board.show_pictures`."""
        if self._board is not None:
            show_pictures(self._board, images, step, mean=mean, std=std)

    def _write(self, file: Any, text: str) -> None:
        try:
            file.write(text)
            file.flush()
        except OSError as error:
            raise RunFailed(f"cannot write {file.name} ({error.strerror or error})") from error

    @contextmanager
    def bar(self, label: str, total: int, done: int = 0) -> Iterator[Bar]:
        """A progress bar of `total`, `done` of them already made; bars may nest."""
        with Bar(self, label, total, done) as bar:
            yield bar

    def result(self, values: Mapping[str, Any]) -> None:
        """What a run leaves at its end, for the tracker."""
        self._result = values

    def _news(self) -> None:
        if self._tracking is not None and (news := self._tracking.news()):
            self.info(news)

    def close(self) -> None:
        """Close the files, and the tracker."""
        if self._tracking is not None:
            self._tracking.close(self._result)
            with suppress(OSError, RunFailed):
                self._news()
        for file in (self._metrics, self._text, self._copy, self._board):
            if file is not None:
                with suppress(OSError):  # a full disk, a folder that is gone: told by who wrote
                    file.close()


class Bar:
    """Progress in a terminal; without one, a line every ten seconds; nothing on other processes."""

    def __init__(self, log: RunLog, label: str, total: int, done: int) -> None:
        self.log, self.label, self.total, self.done = log, label, total, done
        self._last_line = time.monotonic()
        self._bar = tqdm(
            total=total,
            initial=done,
            leave=False,
            dynamic_ncols=True,
            disable=not log.interactive,
            bar_format="{desc} {percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt}{postfix}",
        )

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(
        self, by: int, values: Mapping[str, float | str] | None = None, label: str | None = None
    ) -> None:
        """Move by `by`, and show `values` beside."""
        self.done, self.label = self.done + by, label or self.label
        told = "  ".join(_pair(*item) for item in (values or {}).items())
        if self.log.interactive:
            self._bar.set_description_str(self.label, refresh=False)
            self._bar.set_postfix_str(told, refresh=False)
            self._bar.update(by)
        elif told and time.monotonic() - self._last_line > PLAIN_LINE_SECONDS:
            self._last_line = time.monotonic()
            self.log.info(f"{self.label}  {self.done}/{self.total}  {told}")


def _pair(name: str, value: float | str) -> str:
    return f"{name} {value}" if isinstance(value, str) else f"{name} {value:.4g}"


def _to_append(path: Path) -> Any:
    return open(path, "a", encoding="utf-8", opener=not_through_a_link)


def _drop_rows(path: Path, first_step: int) -> None:
    """Rewrite a metrics file without the rows from `first_step` on, and without a torn last line."""
    try:
        rows = read_small(path, LIMITS.metrics_bytes).decode(errors="replace").splitlines()
    except Refused as refused:
        raise UserError(f"{path} {refused}") from None
    kept = [line for line in rows if _before(line, first_step)]
    write_text(path, "".join(line + "\n" for line in kept))


def _before(line: str, first_step: int) -> bool:
    try:
        return int(json.loads(line)["step"]) < first_step
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return False


def read_metrics(path: str | Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`, all or those of one kind."""
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if kind is None or row["kind"] == kind]


def clock(seconds: float) -> str:
    """Seconds as `1:02:03`."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}"
