"""What the tests of reading share: files of weights, honest ones and ones forged byte by byte."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

WEIGHTS = {"head.weight": torch.arange(6.0).view(2, 3), "head.bias": torch.tensor([1.0, -1.0])}


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor] = WEIGHTS) -> None:
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def one_line(error: pytest.ExceptionInfo[Exception], path: Path) -> str:
    said = str(error.value)
    assert str(path) in said and "\n" not in said and len(said) < 400
    return said


def cuts(data: bytes) -> list[int]:
    """Lengths at which to cut a file: the start and the end byte by byte, and samples between."""
    return [*range(0, 40), *range(40, len(data), 17), *range(len(data) - 40, len(data))]


# Honest files


def saved(path: Path, content: Any, **how: Any) -> Path:
    torch.save(content, path, **how)
    return path


def pickled(content: Any) -> bytes:
    return pickle.dumps(content, protocol=2)


def zipped(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def legacy(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


# Forged files: a pickle written by hand, in either of torch's formats


def as_zip(
    program: bytes,
    records: Mapping[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> bytes:
    """A torch zip archive with this pickle, and with data by key."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + program + b".")
        archive.writestr("archive/byteorder", b"little")
        for key, data in (records or {}).items():
            archive.writestr(f"archive/data/{key}", data)
        archive.writestr("archive/version", b"3\n")
    return file.getvalue()


def as_legacy(program: bytes, records: Mapping[str, bytes] | None = None) -> bytes:
    """An old torch file with this pickle, and with data (of four-byte items) by key."""
    records = records or {}
    head = b"".join(pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {}))
    keys = pickle.dumps(list(records), 2)
    data = b"".join((len(d) // 4).to_bytes(8, "little") + d for d in records.values())
    return head + b"\x80\x02" + program + b"." + keys + data


def text(value: str) -> bytes:
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


def number(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + b"(" + b"".join(arguments) + b"tR"


def storage(items: int, kind: str = "FloatStorage", key: str = "0", old: bool = False) -> bytes:
    more = b"N" if old else b""
    what = text("storage") + name("torch", kind) + text(key) + text("cpu") + number(items)
    return b"(" + what + more + b"tQ"


HOOKS = name("collections", "OrderedDict") + b")R"


def tensor(data: bytes, size: bytes, stride: bytes, offset: int = 0) -> bytes:
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    return call(rebuild, data, number(offset), size, stride, b"\x89", HOOKS)


def checkpoint(value: bytes) -> bytes:
    """{"model": {"w": value}}"""
    return b"}" + text("model") + b"}" + text("w") + value + b"ss"


class Hostile:
    """Pickles as a call: the classic attack."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call
