"""What people ask of a cache: what it holds, whether it is whole, what it takes, and what may go."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from srd.cache.manifest import NAME, read_manifest
from srd.cache.reader import row_damage
from srd.cache.replay import OpenCache, in_units
from srd.cache.shards import EPOCH
from srd.cache.shards import NAME as SHARD
from srd.errors import RunFailed, UserError
from srd.run.lock import Turn


def open_there(folder: Path) -> OpenCache:
    """The cache in a folder; a UserError where there is none."""
    manifest = read_manifest(folder) if os.path.exists(folder / NAME) else None
    if manifest is None:
        raise UserError(f"there is no teacher cache in {folder}")
    return OpenCache.at(folder, manifest)


def epochs_in(cache: OpenCache) -> list[int]:
    """The epochs of which there is something."""
    names = (EPOCH.fullmatch(path.name) for path in cache.folder.iterdir())
    return sorted(int(match[1]) for match in names if match)


def listing(folder: Path) -> Iterator[str]:
    """Lines about the cache in a folder, or about every cache in it."""
    caches = [folder] if (folder / NAME).exists() else []
    with suppress(OSError):
        caches = caches or sorted(path.parent for path in folder.glob(f"*/{NAME}"))
    if not caches:
        raise UserError(f"there is no teacher cache in {folder}")
    for path in caches:
        cache = open_there(path)
        manifest, shapes = cache.manifest, cache.manifest.shapes
        dataset, images, seed = (
            str(manifest.recipe.get(name))[:100] for name in ("dataset", "images", "seed")
        )
        yield (
            f"{path}: {manifest.teacher.name[:100]}, {dataset}, {images} images, seed {seed}, batch "
            f"{shapes.batch_size}, {shapes.dtype}, {', '.join(shapes.fields)}"
            + (f", {shapes.top_logits} logits" if shapes.top_logits else "")
        )
        for epoch in epochs_in(cache):
            lacking = len(cache.shelf.missing(epoch))
            there = f"{shapes.steps - lacking} of {shapes.steps} steps"
            yield f"  epoch {epoch}: {'whole' if not lacking else there}"


def size(folder: Path) -> str:
    """What a cache takes, and could take."""
    cache = open_there(folder)
    epochs = epochs_in(cache)
    files = [path for path in folder.rglob("*") if path.is_file()]
    taken = sum(path.stat().st_size for path in files)
    return f"{folder}: {in_units(taken)} in {len(files)} files; {cache.size(len(epochs))}"


def verify(folder: Path) -> str:
    """Read every row of every shard, and compare it with its checksum.

    Raises:
        UserError: some are damaged, by name.
    """
    cache, damaged, count = open_there(folder), [], 0
    for epoch in epochs_in(cache):
        for shard in cache.shelf.shards(epoch):
            count += 1
            if (damage := row_damage(cache.shelf, shard)) is not None:
                damaged.append(str(damage))
    damaged += [f"{path} is cut short" for path in sorted(cache.shelf.cut)]
    if damaged:
        more = f"; and {len(damaged) - 5} more" if len(damaged) > 5 else ""
        raise UserError(
            f"{'; '.join(damaged[:5])}{more}: a run or srd cache fill with the teacher records them "
            "again"
        )
    return f"{folder}: {count} shards, every row as it was written"


def prune(folder: Path, epochs: int | None) -> Iterator[str]:
    """Remove what nothing reads; with `epochs`, also every epoch from there on.

    What another process is recording stays, and so does what no cache makes: other files, and a folder
    elsewhere that a link leads to.
    """
    cache = open_there(folder)
    freed = count = 0
    for epoch in epochs_in(cache):
        place = cache.shelf.epoch_folder(epoch)
        if place.is_symlink() or not place.is_dir():
            yield f"{place} is no folder of this cache's: left as it is"
            continue
        whole = epochs is not None and epoch >= epochs
        turns = [Turn(path) for path in place.glob(".turn_*")]
        try:
            if not all(turn.taken for turn in turns):
                yield f"{place} is being recorded: left as it is"
                continue
            useless = [*place.glob("*.damaged"), *place.glob(".*.part")]
            cut = [path for path in cache.shelf.cut if path.parent == place]
            shards = [path for path in place.iterdir() if SHARD.fullmatch(path.name)]
            for path in {*useless, *(shards if whole else cut)}:
                freed, count = freed + path.lstat().st_size, count + 1
                path.unlink(missing_ok=True)
        except OSError as error:
            raise RunFailed(f"cannot prune {place} ({error.strerror or error})") from None
        finally:
            for turn in turns:
                turn.release()
        if whole:
            with suppress(OSError):  # there is something else in it
                place.rmdir()
    yield f"{folder}: {count} files removed, {in_units(freed)}"
