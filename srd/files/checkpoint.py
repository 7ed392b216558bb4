"""Files that hold weights and runs: written whole or not at all, and read as data.

Reading is in `srd.files.weights`; its names are at home here too.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from srd.errors import RunFailed, UserError
from srd.files.hashes import sha256
from srd.files.reading.safetensors import write_safetensors
from srd.files.weights import (
    explain_mismatch,
    load_content,
    load_file,
    load_parts,
    load_weights,
    weights_in,
)

__all__ = [
    "explain_mismatch", "is_whole", "load_content", "load_file", "load_parts", "load_weights",
    "newest_whole", "save_state", "save_weights", "sha256", "weights_in", "write_text",
    "write_whole",
]  # fmt: skip


def write_whole(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Call `write` on a temporary file beside `path`, then put it in the place of `path` at once.

    The data is on the disk before the name points to it, and the folder is synced after, so that
    at any instant, power cuts included, `path` is the old file or the new one.

    Raises:
        RunFailed: the file cannot be written (a full disk, say); the old file is untouched.
    """
    path = Path(path)
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(
            prefix=f".{path.name}.", suffix=".part", dir=path.parent
        )
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
        temporary = None
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except (OSError, RuntimeError) as error:
        raise RunFailed(f"cannot write {path} ({_reason(error)})") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _reason(error: BaseException) -> str:
    """What the system said: of a full disk, torch reports the place that it did not get to."""
    first: BaseException | None = error
    while first is not None and not (isinstance(first, OSError) and first.strerror):
        first = first.__cause__ or first.__context__
    reason = first.strerror if isinstance(first, OSError) else None
    return " ".join((reason or str(error)).split())[:160]


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all (UTF-8)."""
    write_whole(path, lambda file: file.write(text.encode()))


def save_state(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write a run's state (tensors and plain containers) whole or not at all."""
    write_whole(path, lambda file: torch.save(dict(state), file))


def save_weights(
    path: str | Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write weights as safetensors, whole or not at all; equal ones have equal bytes."""
    write_whole(path, lambda file: write_safetensors(file, weights, metadata))


def is_whole(path: str | Path) -> bool:
    """Whether every record of a file written by `save_state` has the checksum it was written with."""
    try:
        load_content(path, checked=True)
    except UserError:
        return False
    return True


def newest_whole(candidates: Iterable[Path]) -> tuple[Path | None, list[Path]]:
    """The first whole file among `candidates`, and the damaged ones passed over before it."""
    damaged: list[Path] = []
    for path in candidates:
        if not path.is_file():
            continue
        if is_whole(path):
            return path, damaged
        damaged.append(path)
    return None, damaged
