"""One run and its cache: for every step, what was recorded, or what the teacher says now."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from srd.cache.codec import Codec, Column, Values
from srd.cache.manifest import Manifest
from srd.cache.reader import Key, Reader, salvage
from srd.cache.recorder import Recorder
from srd.cache.shards import CHECK, Damaged, Layout, Shelf
from srd.distributed import processes
from srd.errors import UserError

AHEAD = 8  # steps that are read before they are asked for
VIEW = "view"  # the column that tells an image from another
VIEW_PIXELS, VIEW_TOLERANCE = 16, 0.01  # of them a side; in standard deviations of the pixels
CHECK_EVERY = 50  # steps between two looks at what a GPU found


@dataclass(frozen=True)
class OpenCache:
    """A cache whose manifest is known: its codec and its shards."""

    folder: Path
    manifest: Manifest
    codec: Codec
    shelf: Shelf

    @classmethod
    def at(cls, folder: Path, manifest: Manifest) -> OpenCache:
        """The cache in a folder."""
        codec = Codec(manifest.cache, manifest.shapes.fields, manifest.exact)
        columns = {**codec.columns(), VIEW: Column(torch.float32, ())}
        shapes = manifest.shapes
        layout = Layout(columns, shapes.batch_size, shapes.steps, manifest.digest)
        return cls(folder, manifest, codec, Shelf(folder, layout))

    def missing(self, epochs: int) -> dict[int, list[int]]:
        """The steps that are not there, of the epochs where some are not."""
        found = {epoch: self.shelf.missing(epoch) for epoch in range(epochs)}
        return {epoch: steps for epoch, steps in found.items() if steps}

    def size(self, epochs: int) -> str:
        """What it takes, and what is free, for people."""
        layout = self.shelf.layout
        place = next(p for p in (self.folder, *self.folder.absolute().parents) if p.exists())
        free = shutil.disk_usage(place).free
        return (
            f"{layout.row_bytes:,} bytes a view, {in_units(layout.epoch_bytes)} an epoch, "
            f"{in_units(layout.epoch_bytes * epochs)} for {epochs} epoch(s); {in_units(free)} are free"
        )

    def approximation(self) -> str | None:
        """What is not exact, for people."""
        shapes = self.manifest.shapes
        words = {"float32": "", "float16": "rounded to float16", "int8": "features in int8"}
        parts = [words[shapes.dtype]] if words[shapes.dtype] else []
        if shapes.top_logits is not None:
            parts.append(f"the {shapes.top_logits} largest logits, the rest spread evenly")
        return f"approximate: {' and '.join(parts)}" if parts else None


def in_units(size: float) -> str:
    """Bytes for people."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB"


class Replay:
    """What a teacher says in a run's steps, out of a cache as far as it is there.

    A step that is not there is computed, recorded, and given as it will be replayed: so a run that
    records, one that replays and one that does both are the same run.

    Args:
        repeat: epochs after which views repeat; None: never.
        load: makes the teacher ready to compute; raises a UserError where it cannot.
        tell: a line for people.
    """

    def __init__(
        self,
        cache: OpenCache,
        *,
        repeat: int | None,
        device: torch.device,
        load: Callable[[], object],
        tell: Callable[[str], object],
    ) -> None:
        self.cache, self.repeat, self.device = cache, repeat, device
        self.load, self.tell = load, tell
        share = processes.rank(), processes.world_size()
        self.reader = Reader(cache.shelf, *share, pinned=device.type == "cuda")
        self.recorder = Recorder(cache.shelf, *share)
        self.place, self._told = 0, False
        self._strangest = torch.zeros((), device=device)

    def at(self, place: int) -> None:
        """The batch that comes is the one after so many steps, in epochs of this cache's length."""
        self.place = place

    def values(self, images: Tensor, compute: Callable[[], Mapping[str, Tensor]]) -> Values:
        """The fields of this step's images, this process's share of the batch.

        Raises:
            UserError: the images are not those that were recorded, or a shard is damaged and there
                is no teacher.
        """
        key, view = self._key(self.place), of_view(images)
        stored = self._stored(key)
        if stored is None:
            columns = {**self.cache.codec.encode(compute()), VIEW: view}
            self._record(key, columns)
        else:
            kept = {name: value for name, value in stored.items() if name != CHECK}
            columns = {n: v.to(self.device, non_blocking=True) for n, v in kept.items()}
            self._compare(key, columns[VIEW], view)
        return self.cache.codec.decode(columns)

    def close(self) -> None:
        """Write what is not yet written."""
        self.reader.close()
        self.recorder.close()
        self._tell_failure()

    def _key(self, place: int) -> Key:
        epoch, step = divmod(place, self.cache.shelf.layout.steps)
        return (epoch % self.repeat if self.repeat else epoch, step)

    def _ahead(self) -> Iterator[Key]:
        yield from (self._key(self.place + next) for next in range(1, AHEAD + 1))

    def _stored(self, key: Key) -> Values | None:
        while True:
            try:
                return self.reader.get(key, self._ahead())
            except Damaged as damage:
                self._mend(damage)

    def _mend(self, damage: Damaged) -> None:
        """Set a damaged shard aside, so that what it lacks is recorded again."""
        try:
            self.load()
        except UserError as error:
            raise UserError(f"{damage}; there is no teacher to record it again: {error}") from None
        self.tell(f"warning: {damage}: what is whole of it is kept, the rest is recorded again")
        self.reader.forget(damage.path)
        self.cache.shelf.ignored.add(damage.path)
        try:
            salvage(self.cache.shelf, damage.path)
        except Exception as error:  # it stays where it is, and is not read again
            self.tell(f"warning: it cannot be set aside ({error})")

    def _record(self, key: Key, columns: Values) -> None:
        self.recorder.put(*key, columns)
        if isinstance(self.recorder.failure, UserError):
            self._told = True
            raise self.recorder.failure
        self._tell_failure()

    def _tell_failure(self) -> None:
        if (failure := self.recorder.failure) is not None and not self._told:
            self._told = True
            self.tell(f"warning: {failure}: nothing more is recorded, the training goes on")

    def _compare(self, key: Key, recorded: Tensor, view: Tensor) -> None:
        """Raise a UserError where the images are others than those that were recorded."""
        self._strangest = torch.maximum(self._strangest, (recorded - view).abs().max())
        due = self.device.type == "cpu" or self.place % CHECK_EVERY == 0
        if due and not self._strangest.item() <= VIEW_TOLERANCE:
            raise UserError(
                f"the images of epoch {key[0]}, step {key[1]} or shortly before are not those "
                f"that {self.cache.folder} recorded: a file has changed, or is decoded otherwise; "
                "record another cache"
            )


def of_view(images: Tensor) -> Tensor:
    """A number for each image (B,), from some of its pixels: float32."""
    every = max(1, images.shape[-1] // VIEW_PIXELS)
    return images[..., ::every, ::every].float().flatten(1).mean(dim=1)
