"""Reading ahead: a thread has the next steps' rows in memory before anybody asks for them."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from srd.cache.codec import Values
from srd.cache.shards import Damaged, OpenShard, Shard, Shelf, positions

OPEN = 8  # shards that are kept open
Key = tuple[int, int]  # (epoch, step of the epoch)


class Reader:
    """Reads the rows of one share of the batch.

    Args:
        pinned: into memory that a GPU copies from by itself.
    """

    def __init__(self, shelf: Shelf, rank: int, world: int, *, pinned: bool = False) -> None:
        self.shelf, self.pinned = shelf, pinned
        self.share = positions(shelf.layout.batch_size, rank, world)
        self._open: dict[Path, OpenShard] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="teacher cache")
        self._ahead: dict[Key, Future[Values | None]] = {}

    def get(self, key: Key, ahead: Iterable[Key] = ()) -> Values | None:
        """The columns of a step on the CPU, with their checksums; None where some are not there.

        Args:
            ahead: the steps that will be asked for next.

        Raises:
            Damaged: they are there, and are not what was written.
        """
        wanted = [key, *ahead]
        for other in [other for other in self._ahead if other not in wanted]:
            self._ahead.pop(other).cancel()
        for each in wanted:
            if each not in self._ahead:
                self._ahead[each] = self._pool.submit(self._read, each)
        return self._ahead.pop(key).result()

    def forget(self, shard: Path) -> None:
        """Close a shard that was found damaged, and read nothing of it again."""
        self._ahead.clear()
        self._pool.submit(self._close, shard).result()
        self.shelf.forget()

    def close(self) -> None:
        """Close all files."""
        self._pool.shutdown(cancel_futures=True)
        for path in list(self._open):
            self._close(path)

    def _read(self, key: Key) -> Values | None:
        epoch, step = key
        shards = [shard for shard in self.shelf.shards(epoch, fresh=False) if step in shard]
        if not shards:
            return None
        rows = self.shelf.empty(len(self.share), pinned=self.pinned)
        left = set(range(len(self.share)))
        for shard in shards:
            if left:
                with suppress(FileNotFoundError):  # pruned meanwhile
                    left -= self._opened(shard).read(step, self.share, rows)
        return None if left else rows

    def _opened(self, shard: Shard) -> OpenShard:
        if shard.path not in self._open:
            while len(self._open) >= OPEN:
                self._close(next(iter(self._open)))
            self._open[shard.path] = OpenShard(shard, self.shelf.layout)
        return self._open[shard.path]

    def _close(self, path: Path) -> None:
        if (shard := self._open.pop(path, None)) is not None:
            shard.close()


def salvage(shelf: Shelf, path: Path) -> None:
    """Set a damaged shard aside as `<name>.damaged`; those of its steps that are whole stay.

    Another process may have done it already.
    """
    shard = shelf.named(path)
    if shard is None:
        return
    aside = path.with_name(f"{path.name}.damaged")
    with suppress(FileNotFoundError):
        path.replace(aside)
        shelf.forget()
        for steps, rows in _whole(shelf, shard._replace(path=aside)):
            shelf.write(shelf.shard(shard.epoch, steps, shard.rank, shard.world), rows)


def row_damage(shelf: Shelf, shard: Shard) -> Damaged | None:
    """The first damage in a shard; None where every row is as it was written."""
    share = positions(shelf.layout.batch_size, shard.rank, shard.world)
    try:
        opened = OpenShard(shard, shelf.layout)
        try:
            for step in range(shard.first, shard.end):
                opened.read(step, share, shelf.empty(len(share)))
        finally:
            opened.close()
    except Damaged as damage:
        return damage
    except FileNotFoundError:  # pruned meanwhile
        return None
    return None


def _whole(shelf: Shelf, shard: Shard) -> Iterable[tuple[range, list[Values]]]:
    """The whole steps of a shard, neighbours together."""
    share = positions(shelf.layout.batch_size, shard.rank, shard.world)
    try:
        opened = OpenShard(shard, shelf.layout)
    except Damaged:
        return
    rows: list[Values] = []
    for step in range(shard.first, shard.end + 1):
        values = shelf.empty(len(share))
        try:
            if step == shard.end:
                raise Damaged(shard.path, "ends")
            opened.read(step, share, values)
            rows.append(values)
        except Damaged:
            if rows:
                yield range(step - len(rows), step), rows
            rows = []
    opened.close()
