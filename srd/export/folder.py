"""Hands a classifier on: one folder with its weights, graphs, configuration and model card.

The folder appears whole or not at all: it is written under another name beside its place, and
renamed when everything in it has been read back and compared.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from srd.errors import RunFailed, UserError, clearing_away
from srd.export.card import model_card
from srd.export.classifier import Classifier
from srd.export.formats import FORMATS, choose_formats
from srd.export.graphs import Original
from srd.export.layout import CARD
from srd.files.checkpoint import write_text


def export(
    classifier: Classifier,
    folder: Path,
    *,
    formats: Iterable[str] | None = None,
    licence: str = "unknown",
    overwrite: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Write `folder`; every graph in it is compared with the network before it appears.

    Args:
        formats: names of FORMATS; None for all. What an earlier export in `folder` has besides is
            made anew: it would be of other weights, or lost.
        licence: of the weights, for the model card.
        overwrite: take the place of an earlier export; never of anything else.
        report: is told each comparison's result.

    Raises:
        UserError: the folder exists or cannot be made, or as `choose_formats`.
        RunFailed: a graph does not compute what the network computes, or writing failed.
    """
    check_place(folder, overwrite)
    there = [name for name, format in FORMATS.items() if (folder / format.file).is_file()]
    chosen = choose_formats([*(FORMATS if formats is None else formats), *there])
    original, checks = Original(classifier), []
    with clearing_away(), appearing(folder) as parts:
        for format in chosen:
            if (check := format.write(original, parts / format.file)) is not None:
                checks.append(check)
                report(check)
        usage = [format.usage(classifier) for format in chosen]
        card = model_card(classifier, licence=licence, usage=usage, checks=checks)
        write_text(parts / CARD, card)


def check_place(folder: Path, overwrite: bool) -> None:
    """Raise a UserError unless `folder` is free, or an earlier export that may be overwritten."""
    if not os.path.lexists(folder):
        return
    if not overwrite:
        raise UserError(f"{folder} exists: give another --output, or --overwrite")
    ours = {CARD, *(format.file for format in FORMATS.values())}
    known = folder.is_dir() and not folder.is_symlink()
    others = (
        [p for p in folder.iterdir() if p.name not in ours and p.suffix != ".py"] if known else []
    )
    if not known or others or not (folder / CARD).is_file():
        strange = f" (it holds {others[0].name})" if others else ""
        raise UserError(f"{folder} is not an exported folder{strange}: --overwrite leaves it alone")


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A new folder to write into; it becomes `folder` when all went well, and vanishes otherwise."""
    folder = folder.absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        parts = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    except OSError as error:
        raise UserError(
            f"cannot write {folder} ({error.strerror}): give another --output"
        ) from None
    try:
        yield parts
        parts.chmod(0o777 & ~_umask())
        for path in (*parts.iterdir(), parts):
            _sync(path)
        _take_place(parts, folder)
        _sync(folder.parent)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise RunFailed(f"cannot write {folder} ({' '.join(reason.split())[:160]})") from error
    finally:
        shutil.rmtree(parts, ignore_errors=True)


def _take_place(parts: Path, folder: Path) -> None:
    """Rename `parts` to `folder`; an earlier `folder` is moved aside first, and put back if that fails."""
    if not folder.exists():
        parts.rename(folder)
        return
    aside = parts.with_suffix(".old")
    folder.rename(aside)
    try:
        parts.rename(folder)
    except OSError:
        aside.rename(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def _sync(path: Path) -> None:
    """Everything in a file or a folder's list, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
