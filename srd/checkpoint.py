"""Files that hold weights and runs: read as data, written whole or not at all.

Loading never executes what a file asks for: torch's restricted unpickler builds tensors and plain
containers only. Two classes that the released files pickle (the configuration of yacs and
argparse's namespace) come back as plain mappings, without those packages.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import struct
import tempfile
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from srd.errors import RunFailed, UserError

# Where files met in the wild keep their weights, in the order in which to look.
WEIGHT_ENTRIES = ("model", "state_dict", "model_state_dict")
WRAPPER_PREFIXES = ("module.", "_orig_mod.")


class _PlainNamespace:
    """Stands in for argparse.Namespace: its attributes, and none of its behaviour."""


_STAND_INS: list[Any] = [
    (OrderedDict, "yacs.config.CfgNode"),  # torch fills in no other kind of mapping
    (_PlainNamespace, "argparse.Namespace"),
]


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """The weights in a checkpoint file, by name, on the CPU; never executes the file.

    Reads safetensors and torch files: a plain state dict, or one under `model` or `state_dict`
    as in the released checkpoints, torchdistill's and timm's. `module.` and `_orig_mod.`
    prefixes are taken off.

    Raises:
        UserError: the file is missing, damaged, asks for code, or holds no weights.
    """
    return weights_in(load_file(path), path)


def weights_in(content: Mapping[str, Any], path: str | Path) -> dict[str, Tensor]:
    """The weights in what `load_file` read from `path`, by bare name."""
    entry = next(
        (content[key] for key in WEIGHT_ENTRIES if isinstance(content.get(key), Mapping)), content
    )
    weights = {
        _bare(str(name)): value for name, value in entry.items() if isinstance(value, Tensor)
    }
    if not weights:
        raise UserError(
            f"{path} holds no weights: found {_some(map(str, content))}, expected a state dict, "
            f"or one under {' or '.join(repr(key) for key in WEIGHT_ENTRIES)}"
        )
    return weights


def load_file(path: str | Path) -> dict[str, Any]:
    """Everything in a checkpoint file, as tensors and plain containers, on the CPU.

    Raises:
        UserError: the file is missing, damaged, or asks for anything else to be built.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}")
    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(path))
        with torch.serialization.safe_globals(_STAND_INS):
            content = _plain(torch.load(path, map_location="cpu", weights_only=True))
    except pickle.UnpicklingError as error:
        raise UserError(_refusal(path, str(error))) from None
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, TypeError, AttributeError,
            IndexError, OverflowError, AssertionError, struct.error,
            safetensors.SafetensorError) as error:  # fmt: skip
        detail = " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(f"{path} is damaged or not a checkpoint ({detail})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return content


def _refusal(path: Path, message: str) -> str:
    asked = re.search(r"(?:GLOBAL|class|function) ([\w.]*\w)", message)
    if asked:
        return f"{path} asks to run {asked.group(1)}: refused, checkpoints are read as data only"
    return f"{path} is damaged or not a checkpoint (it cannot be read as tensors and plain values)"


def _plain(value: Any) -> Any:
    """Stand-ins as plain mappings, containers copied, everything else as it is."""
    if isinstance(value, _PlainNamespace):
        return {key: _plain(item) for key, item in vars(value).items()}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if type(value) is tuple:
        return tuple(_plain(item) for item in value)
    return value


def _bare(name: str) -> str:
    """`name` without the prefixes that wrappers put before it."""
    while name.startswith(WRAPPER_PREFIXES):
        name = name.split(".", 1)[1]
    return name


def _some(names: Iterable[str], most: int = 4) -> str:
    names = list(names)
    return (", ".join(names[:most]) or "nothing") + (", ..." if len(names) > most else "")


def explain_mismatch(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path: str | Path, what: str
) -> None:
    """Check that `found` has every tensor of `expected`, in its shape, and nothing else.

    Raises:
        UserError: names the keys and shapes that differ, the shortest list first.
    """
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    shapes = [
        f"{name} {tuple(found[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in found and found[name].shape != value.shape
    ]
    lists = {"missing": missing, "unexpected": extra, "of another shape": shapes}
    parts = [
        f"{len(names)} {label}: {_some(names, 3)}"
        for label, names in sorted(lists.items(), key=lambda item: len(item[1]))
        if names
    ]
    if parts:
        raise UserError(f"{path} does not fit {what}: " + "; ".join(parts))


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise RunFailed(f"cannot write {path} ({' '.join(reason.split())[:160]})") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all (UTF-8)."""
    write_whole(path, lambda file: file.write(text.encode()))


def save_state(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write a run's state (tensors and plain containers) whole or not at all."""
    write_whole(path, lambda file: torch.save(dict(state), file))


def save_weights(
    path: str | Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write weights as safetensors, whole or not at all."""
    plain = OrderedDict(
        (name, value.detach().cpu().contiguous()) for name, value in weights.items()
    )
    data = safetensors.torch.save(plain, dict(metadata))
    write_whole(path, lambda file: file.write(data))


def is_whole(path: str | Path) -> bool:
    """Whether every record of a file written by `save_state` has the checksum it was written with."""
    try:
        with zipfile.ZipFile(path) as archive:
            # torch writes no attributes; one that says "folder" would hide a record's content
            if any(record.external_attr for record in archive.infolist()) or archive.testzip():
                return False
        load_file(path)  # zipfile forgives damage to the directory that torch does not
    except (OSError, EOFError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error, UserError):
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
