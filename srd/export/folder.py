"""Hands a classifier on: one folder with its weights, graphs, configuration and model card.

The folder appears whole or not at all: it is written under another name beside its place, and
renamed when everything in it has been read back and compared.
"""

from __future__ import annotations

import inspect
import json
import os
import runpy
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import timm

from srd.errors import RunFailed, UserError
from srd.export.card import model_card
from srd.export.classifier import Classifier
from srd.export.description import OWN_SECTION
from srd.export.formats import CARD, CONFIG, FORMATS, ONNX, TORCH, WEIGHTS
from srd.export.graphs import need_onnx, trace, write_onnx, write_torch
from srd.files.checkpoint import save_weights, write_text, write_whole
from srd.files.released import REPOSITORY


def export(
    classifier: Classifier,
    folder: Path,
    formats: Collection[str] = FORMATS,
    licence: str = "unknown",
    overwrite: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    """Write `folder`; every graph in it is compared with the network before it appears.

    Args:
        formats: of FORMATS; `timm` brings the weights along.
        licence: of the weights, for the model card.
        overwrite: take the place of an earlier export; never of anything else.
        tell: is told each comparison's result.

    Raises:
        UserError: the folder exists, cannot be made, or a package is missing.
        RunFailed: a graph does not compute what the network computes, or writing failed.
    """
    if "onnx" in formats:
        need_onnx()
    check_place(folder, overwrite)
    with appearing(folder) as parts:
        checks = write_graphs(classifier, parts, formats, tell)
        code = write_for_timm(classifier, parts) if "timm" in formats else None
        if {"safetensors", "timm"} & set(formats):
            about = {"format": "pt", OWN_SECTION: json.dumps(classifier.description.to_config())}
            save_weights(parts / WEIGHTS, classifier.model.state_dict(), about)
        files = [path.name for path in parts.iterdir()]
        card = model_card(classifier, licence, files, checks, code)
        write_text(parts / CARD, card)


def write_graphs(
    classifier: Classifier, folder: Path, formats: Collection[str], tell: Callable[[str], None]
) -> list[str]:
    """`model.onnx` and `model.pt2`, as asked; returns what their comparisons said."""
    writers = {"onnx": (ONNX, write_onnx, "ONNX Runtime"), "torch": (TORCH, write_torch, "PyTorch")}
    chosen = [writer for name, writer in writers.items() if name in formats]
    program = trace(classifier) if chosen else None
    checks = []
    for file, write, reader in chosen:
        assert program is not None
        difference = write(program, classifier, folder / file)
        checks.append(
            f"{file}: read back by {reader}, its logits differ from the network's by at most "
            f"{difference:.1e} (batches of 1 and 3)"
        )
        tell(checks[-1])
    return checks


def write_for_timm(classifier: Classifier, folder: Path) -> Path | None:
    """`config.json`, and a copy of the architecture's source where timm does not have it."""
    config = json.dumps(classifier.description.to_config(), indent=2, ensure_ascii=False)
    write_text(folder / CONFIG, config + "\n")
    code = code_of(classifier.description.architecture)
    if code is not None:
        write_whole(folder / code.name, lambda file: file.write(code.read_bytes()))
    return code


def code_of(architecture: str) -> Path | None:
    """The file that registers an architecture with timm; None for timm's own."""
    build = timm.model_entrypoint(architecture)
    return None if build.__module__.startswith("timm.") else Path(inspect.getfile(build))


def check_place(folder: Path, overwrite: bool) -> None:
    """Raise a UserError unless `folder` is free, or an earlier export that may be overwritten."""
    if not os.path.lexists(folder):
        return
    if not overwrite:
        raise UserError(f"{folder} exists: give another --output, or --overwrite")
    ours = {CARD, CONFIG, WEIGHTS, ONNX, TORCH}
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


if __name__ == "__main__":  # `python -m srd.export.folder` is the same command
    runpy.run_path(str(REPOSITORY / "scripts" / "export.py"), run_name="__main__")
