"""A file is opened once, without waiting, and is never read beyond what it had when it was opened."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from srd.errors import UserError
from srd.files import opened
from srd.files.checkpoint import load_weights
from srd.files.opened import Refused, open_once, read_small
from srd.files.reading import pickles
from tests.files.made import (
    WEIGHTS,
    as_zip,
    assert_same,
    checkpoint,
    legacy,
    name,
    number,
    numbers,
    one_line,
    storage,
    tensor,
    text,
    zipped,
)


@pytest.mark.parametrize("write", [zipped, legacy])
def test_a_link_that_is_turned_while_a_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Any], bytes]
) -> None:
    """The second file is one that torch would read past its end, and that is refused."""
    good, bad, link = tmp_path / "good.pth", tmp_path / "bad.pth", tmp_path / "link.pth"
    good.write_bytes(write(WEIGHTS))
    bad.write_bytes(
        as_zip(checkpoint(tensor(storage(1), numbers(10**12), numbers(0))), {"0": bytes(4)})
    )
    link.symlink_to(good)
    turned = []
    open_file = os.open

    def turning(path: Any, *arguments: Any) -> int:
        handle = open_file(path, *arguments)
        if Path(path) == link:
            turned.append(Path(path))
            link.unlink()
            link.symlink_to(bad)
        return handle

    monkeypatch.setattr(opened.os, "open", turning)
    assert_same(load_weights(link))
    assert turned == [link]
    with pytest.raises(UserError, match="bytes of tensors in 4"):
        load_weights(link)


def test_a_file_that_is_cut_short_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(zipped({"model": {"w": torch.ones(10**5)}}))
    load = pickles.Unpickler.load

    def cutting(self: pickles.Unpickler) -> Any:
        os.truncate(path, 2000)
        return load(self)

    monkeypatch.setattr(pickles.Unpickler, "load", cutting)
    with pytest.raises(UserError, match="shorter while it was read") as caught:
        load_weights(path)
    one_line(caught, path)


def test_no_more_is_read_than_there_was(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    with open_once(path) as file:
        with path.open("ab") as growing:
            growing.write(b"67890")
        assert file.size == 5 and file.read(1, 4) == b"2345" and file.read(5, 0) == b""
        for offset, count in ((0, 6), (5, 1), (-1, 2), (3, -1)):
            with pytest.raises(Refused):
                file.read(offset, count)
    with pytest.raises(Refused, match="10 bytes, and 9"):
        read_small(path, 9)
    assert read_small(path, 10) == b"1234567890"


def test_a_pipe_or_a_device_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), Path("/dev/stdin")):
        if path.is_file():  # standard input, where it comes from a file
            continue
        with pytest.raises(Refused, match="pipe, a device"), open_once(path):
            pass
        with pytest.raises(UserError):
            load_weights(path)


@pytest.mark.parametrize("key, record, fine", [
    (b"\xc3\xa9", "é", True), (b"\xc3\xa9", "Ã©", False), (b"\xe9", "é", False),
])  # fmt: skip
def test_names_are_compared_as_torch_reads_them(
    tmp_path: Path, key: bytes, record: str, fine: bool
) -> None:
    """A storage's key in a text of Python 2's kind: UTF-8, and never latin-1."""
    identity = text("storage") + name("torch", "FloatStorage") + b"U" + bytes([len(key)]) + key
    data = b"(" + identity + text("cpu") + number(1) + b"tQ"
    path = tmp_path / "a.pth"
    content = as_zip(checkpoint(tensor(data, numbers(1), numbers(1))), {record: bytes(4)})
    path.write_bytes(content)
    if fine:
        assert load_weights(path)["w"].tolist() == [0]
        assert torch.load(path, weights_only=True)["model"]["w"].tolist() == [0]
    else:
        with pytest.raises(UserError):
            load_weights(path)
