"""Recording beside the training: rows leave the device, and a thread writes them, shard by shard."""

from __future__ import annotations

import math
import queue
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from srd.cache.codec import MOST_HALF, Values
from srd.cache.shards import CHECK, Shelf, checksums, positions
from srd.errors import RunFailed, UserError
from srd.run.lock import Turn

WAITING = 64  # steps that may be on their way to the disk
RESERVE = 256 << 20  # bytes of the disk that are left to checkpoints and logs


@dataclass
class Part:
    """A process's rows of consecutive steps, until they are a shard."""

    epoch: int
    chunk: int
    turn: Turn
    first: int = 0
    steps: list[Values] = field(default_factory=list)


class Rows(NamedTuple):
    """A step's rows on their way to the host."""

    part: Part
    step: int
    columns: Values
    arrived: torch.cuda.Event | None


class Recorder:
    """Writes the rows of one share of the batch.

    Parts that another process is recording are left to it. Where writing fails, a disk that is full
    say, or the values are none that can be kept (a UserError), nothing more is recorded, and
    `failure` says why: nothing is raised.
    """

    def __init__(self, shelf: Shelf, rank: int, world: int) -> None:
        self.shelf, self.rank, self.world = shelf, rank, world
        self.share = positions(shelf.layout.batch_size, rank, world)
        self.failure: RunFailed | UserError | None = None
        self._part: Part | None = None
        self._queue: queue.Queue[Rows | Callable[[], None] | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._work, name="teacher cache", daemon=True)
        self._thread.start()

    def take(self, epoch: int, step: int) -> bool:
        """Whether the shard of a step is ours to record; the one before is written first."""
        chunk = self.shelf.layout.chunk(step)
        if self._part is None or (self._part.epoch, self._part.chunk) != (epoch, chunk):
            self.leave()
            name = f".turn_{chunk:05}_rows_{self.rank}of{self.world}"
            turn = Turn(self.shelf.epoch_folder(epoch) / name)
            self._part = Part(epoch, chunk, turn)
            if turn.taken:
                self._clear(self._part)
        return self._part.turn.taken

    def put(self, epoch: int, step: int, columns: Values) -> None:
        """Record a step's columns, on any device."""
        if self.failure is not None or not self.take(epoch, step):
            return
        assert self._part is not None
        arrived = None
        if next(iter(columns.values())).is_cuda:
            host = {
                n: torch.empty(v.shape, dtype=v.dtype, pin_memory=True) for n, v in columns.items()
            }
            for name, value in columns.items():
                host[name].copy_(value, non_blocking=True)
            columns, arrived = host, torch.cuda.Event()
            arrived.record()
        self._queue.put(Rows(self._part, step, columns, arrived))

    def leave(self) -> None:
        """Write what there is of the shard under way, and let others record the rest of it."""
        if (part := self._part) is not None:
            self._part = None
            self._queue.put(lambda: self._finish(part))

    def close(self) -> None:
        """Write what there is, and wait until it is written."""
        self.leave()
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            try:
                if isinstance(item, Rows):
                    self._add(item)
                else:
                    item()
            except (RunFailed, UserError) as error:
                self.failure = self.failure or error
            except OSError as error:
                reason = error.strerror or error
                self.failure = RunFailed(f"cannot write {self.shelf.folder} ({reason})")

    def _add(self, rows: Rows) -> None:
        part = rows.part
        if part.steps and rows.step != part.first + len(part.steps):
            self._flush(part)
        if rows.arrived is not None:
            rows.arrived.synchronize()
        whole = {name: value.contiguous() for name, value in rows.columns.items()}
        check_kept(whole)
        layout, share = self.shelf.layout, self.share
        sums = checksums(whole, part.epoch, rows.step, share, layout.columns, range(len(share)))
        whole[CHECK] = torch.tensor([total for _, total in sums], dtype=torch.int64)
        if not part.steps:
            part.first = rows.step
        part.steps.append(whole)

    def _finish(self, part: Part) -> None:
        try:
            self._flush(part)
        finally:
            part.turn.release()

    def _flush(self, part: Part) -> None:
        steps, part.steps = part.steps, []
        if not steps or self.failure is not None:
            return
        shelf, layout = self.shelf, self.shelf.layout
        size = len(steps) * len(self.share) * layout.row_bytes
        if shutil.disk_usage(shelf.folder).free < size + RESERVE:
            raise RunFailed(
                f"cannot write {shelf.folder} (less than {(size + RESERVE) / 1e6:,.0f} MB are free)"
            )
        span = range(part.first, part.first + len(steps))
        shelf.write(shelf.shard(part.epoch, span, self.rank, self.world), steps)

    def _clear(self, part: Part) -> None:
        """Remove what a recorder of this shard left when it was killed: we have its turn."""
        ending = f"_rows_{self.rank}of{self.world}.safetensors."
        for leftover in self.shelf.epoch_folder(part.epoch).glob(f".steps_*{ending}*.part"):
            first = leftover.name.split("_")[1]
            if first.isdecimal() and self.shelf.layout.chunk(int(first)) == part.chunk:
                with suppress(OSError):
                    leftover.unlink()


def check_kept(columns: Values) -> None:
    """Raise a UserError for values that are no numbers, or that float16 cut off."""
    for column, value in columns.items():
        if not value.is_floating_point():
            continue
        name, largest = column.partition(".")[0], value.abs().max().item()
        if not math.isfinite(largest):
            raise UserError(f"the teacher says {name} that are no finite numbers")
        if value.dtype == torch.float16 and largest >= MOST_HALF:
            raise UserError(
                f"the teacher says {name} beyond {MOST_HALF:,.0f}, the most that float16 holds: set "
                "cache.dtype=float32"
            )
