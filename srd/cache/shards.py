"""Shards: files of some hundred steps of one epoch, written whole, read by the row, each row checked.

A shard holds a process's rows of consecutive steps. Its name says which, so that the folder is the
index: `epoch_0003/steps_000200_000329_rows_0of2.safetensors` holds the steps 200 to 328 of epoch 3, and
of each the first of two shares of the batch (`srd.data.batches.rank_share`). Another number of
processes reads the same rows out of other shares.
"""

from __future__ import annotations

import os
import re
import struct
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from srd.cache.codec import Column, Values
from srd.data.batches import rank_share
from srd.files.checkpoint import save_weights
from srd.files.opened import OpenedFile, Refused, open_once
from srd.files.reading.safetensors import Header, read_header

NAME = re.compile(r"steps_(\d{6,9})_(\d{6,9})_rows_(\d{1,5})of(\d{1,5})\.safetensors")
EPOCH = re.compile(r"epoch_(\d{4,9})")
CHECK = "check"  # the column of checksums
SHARD_BYTES, SHARD_STEPS = 256 << 20, 200  # at most
LISTED_SECONDS = 10.0  # how long a listing of a folder is believed
KEY = struct.Struct("<QQQ")


class Damaged(Exception):
    """A shard that is not what it was when it was written: its path, and what is wrong with it."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} {reason}")
        self.path = path


class Shard(NamedTuple):
    """The rows of share `rank` of `world` shares, of the steps from `first` up to `end`."""

    path: Path
    epoch: int
    first: int
    end: int
    rank: int = 0
    world: int = 1

    def __contains__(self, step: object) -> bool:
        return isinstance(step, int) and self.first <= step < self.end


@dataclass(frozen=True)
class Layout:
    """What all shards of a cache agree on.

    Args:
        columns: of a row, besides its checksum.
        digest: of the manifest, which every shard carries.
    """

    columns: Mapping[str, Column]
    batch_size: int
    steps: int
    digest: str

    @cached_property
    def row_bytes(self) -> int:
        """Of one view, its checksum included."""
        return sum(column.row_bytes for column in self.columns.values()) + 8

    @cached_property
    def shard_steps(self) -> int:
        """Steps of a whole shard."""
        fit = SHARD_BYTES // (self.row_bytes * self.batch_size)
        return max(1, min(fit, SHARD_STEPS, self.steps))

    @property
    def epoch_bytes(self) -> int:
        """Of all rows of an epoch."""
        return self.row_bytes * self.batch_size * self.steps

    def chunk(self, step: int) -> int:
        """The number of the shard, within its epoch, that a step belongs to."""
        return step // self.shard_steps

    def chunks(self) -> range:
        """All of an epoch's."""
        return range(-(-self.steps // self.shard_steps))


@lru_cache(maxsize=256)
def positions(batch_size: int, rank: int, world: int) -> tuple[int, ...]:
    """Where the rows of a share are in the global batch; none where it has no such shares."""
    try:
        return tuple(rank_share(range(batch_size), rank, world)) if rank < world else ()
    except (ValueError, ZeroDivisionError):
        return ()


class Run(NamedTuple):
    """Neighbours in a shard that are neighbours in a share, too."""

    at: int  # in the share
    row: int  # in the shard
    length: int


@lru_cache(maxsize=256)
def runs(wanted: tuple[int, ...], held: tuple[int, ...]) -> tuple[Run, ...]:
    """How to get the positions `wanted` out of those `held`, as far as they are there."""
    rows = {position: row for row, position in enumerate(held)}
    found: list[Run] = []
    for at, position in enumerate(wanted):
        if (row := rows.get(position)) is None:
            continue
        last = found[-1] if found else None
        if last and last.at + last.length == at and last.row + last.length == row:
            found[-1] = last._replace(length=last.length + 1)
        else:
            found.append(Run(at, row, 1))
    return tuple(found)


class Shelf:
    """The shards in a cache's folder."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder, self.layout = folder, layout
        self._listed: dict[int, tuple[float, list[Shard]]] = {}
        self.cut: set[Path] = set()  # shards that are shorter than they say
        self.ignored: set[Path] = set()  # damaged ones

    def epoch_folder(self, epoch: int) -> Path:
        """Where an epoch's shards are."""
        return self.folder / f"epoch_{epoch:04}"

    def shard(self, epoch: int, steps: range, rank: int, world: int) -> Shard:
        """A shard, by what it holds."""
        name = f"steps_{steps.start:06}_{steps.stop:06}_rows_{rank}of{world}.safetensors"
        path = self.epoch_folder(epoch) / name
        return Shard(path, epoch, steps.start, steps.stop, rank, world)

    def shards(self, epoch: int, *, fresh: bool = True) -> list[Shard]:
        """The shards of an epoch by their names, without those that are shorter than they say."""
        listed = self._listed.get(epoch)
        if listed is not None and not fresh and time.monotonic() - listed[0] < LISTED_SECONDS:
            return listed[1]
        found = []
        with (
            suppress(FileNotFoundError, NotADirectoryError),
            os.scandir(self.epoch_folder(epoch)) as entries,
        ):
            for entry in entries:
                if (shard := self.named(Path(entry.path))) is None:
                    continue
                if shard.path in self.ignored:
                    continue
                if entry.stat().st_size >= self._least_bytes(shard):
                    found.append(shard)
                else:
                    self.cut.add(shard.path)
        found.sort(key=lambda shard: (shard.world, shard.first, -shard.end))
        self._listed[epoch] = time.monotonic(), found
        return found

    def missing(self, epoch: int) -> list[int]:
        """The steps of which a row is missing."""
        layout = self.layout
        if not (shards := self.shards(epoch)):
            return list(range(layout.steps))
        there = np.zeros((layout.steps, layout.batch_size), dtype=bool)
        for shard in shards:
            rows = positions(layout.batch_size, shard.rank, shard.world)
            there[shard.first : shard.end, rows] = True
        return np.flatnonzero(~there.all(axis=1)).tolist()

    def write(self, shard: Shard, rows: Sequence[Values]) -> None:
        """Write a shard, whole or not at all; a RunFailed where that fails.

        Args:
            rows: of each step, the columns on the CPU, with their checksums.
        """
        tensors = {name: torch.stack([step[name] for step in rows]) for name in rows[0]}
        save_weights(shard.path, tensors, {"manifest": self.layout.digest})
        self._listed.pop(shard.epoch, None)

    def forget(self) -> None:
        """Look into the folders again."""
        self._listed.clear()

    def empty(self, rows: int, *, pinned: bool = False) -> Values:
        """Room for a step's rows and their checksums."""
        columns = {**self.layout.columns, CHECK: Column(torch.int64, ())}
        return {name: column.empty(rows, pinned=pinned) for name, column in columns.items()}

    def named(self, path: Path) -> Shard | None:
        """What a shard holds by its name; None where it is the name of no shard of this cache."""
        folder, match = EPOCH.fullmatch(path.parent.name), NAME.fullmatch(path.name)
        if folder is None or match is None:
            return None
        first, end, rank, world = map(int, match.groups())
        sound = first < end <= self.layout.steps
        if not sound or not positions(self.layout.batch_size, rank, world):
            return None
        return Shard(path, int(folder[1]), first, end, rank, world)

    def _least_bytes(self, shard: Shard) -> int:
        rows = len(positions(self.layout.batch_size, shard.rank, shard.world))
        return (shard.end - shard.first) * rows * self.layout.row_bytes


class OpenShard:
    """A shard that is open, its header compared with the layout.

    It is read and not mapped, straight to where the rows are wanted: where a mapped file is cut
    short, who touches the rest is killed.

    Raises:
        Damaged: it is not this cache's, or not whole. FileNotFoundError: it is gone.
    """

    def __init__(self, shard: Shard, layout: Layout) -> None:
        self.shard, self.layout = shard, layout
        self._stack = ExitStack()
        try:
            with self._damage():
                self._file: OpenedFile = self._stack.enter_context(open_once(shard.path))
                self._header: Header = read_header(self._file)
                self._check_header()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._stack.close()

    def read(self, step: int, wanted: tuple[int, ...], into: Values) -> set[int]:
        """Read the rows of a step that are `wanted` and here, checked; returns their places in `into`.

        Raises:
            Damaged: a row is not what was written.
        """
        shard = self.shard
        held = positions(self.layout.batch_size, shard.rank, shard.world)
        read: set[int] = set()
        with self._damage():
            for run in runs(wanted, held):
                for name, place in self._header.places.items():
                    size = (place.end - place.start) // ((shard.end - shard.first) * len(held))
                    row = (step - shard.first) * len(held) + run.row
                    start = self._header.first + place.start + row * size
                    self._file.read_into(start, _bytes(into[name][run.at : run.at + run.length]))
                read |= set(range(run.at, run.at + run.length))
            sums = checksums(into, shard.epoch, step, wanted, self.layout.columns, sorted(read))
            if any(into[CHECK][at].item() != total for at, total in sums):
                raise Refused(f"is damaged: the checksum of step {step} is another one")
        return read

    def _check_header(self) -> None:
        shard, layout = self.shard, self.layout
        if self._header.metadata.get("manifest") != layout.digest:
            raise Refused("belongs to another cache")
        rows = len(positions(layout.batch_size, shard.rank, shard.world))
        columns = {**layout.columns, CHECK: Column(torch.int64, ())}
        shapes = {
            n: (c.dtype, (shard.end - shard.first, rows, *c.shape)) for n, c in columns.items()
        }
        if {n: (p.dtype, p.shape) for n, p in self._header.places.items()} != shapes:
            raise Refused("does not hold what its name says")

    def _damage(self) -> _AsDamaged:
        return _AsDamaged(self.shard.path)


class _AsDamaged:
    """What is met in a file, as a `Damaged` that names it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        if isinstance(error, FileNotFoundError):
            return
        if isinstance(error, Refused):
            raise Damaged(self.path, str(error)) from None
        if isinstance(error, OSError):
            raise Damaged(self.path, f"cannot be read ({error.strerror or error})") from None
        if isinstance(error, (ValueError, RecursionError)):
            raise Damaged(self.path, "is damaged: its header is none") from None


def checksums(
    columns: Mapping[str, Tensor],
    epoch: int,
    step: int,
    share: Sequence[int],
    names: Mapping[str, Column],
    rows: Sequence[int],
) -> Iterator[tuple[int, int]]:
    """(row, CRC-32 of its place and its bytes) for some rows of a share."""
    data = [columns[name].reshape(len(share), -1) for name in sorted(names)]
    flat = [cast(Any, value.view(torch.uint8).numpy()) for value in data]
    for row in rows:
        total = zlib.crc32(KEY.pack(epoch, step, share[row]))
        for value in flat:
            total = zlib.crc32(value[row], total)
        yield row, total


def _bytes(rows: Tensor) -> memoryview:
    return memoryview(cast(Any, rows.reshape(-1).view(torch.uint8).numpy()))
