"""Torch's files of before 2020: five pickles, then the data of the tensors one after the other."""

from __future__ import annotations

from typing import Any

from srd.files.limits import LIMITS
from srd.files.opened import OpenedFile, Refused
from srd.files.reading.pickles import Unpickler

START = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number, pickled
COUNT = 8  # bytes before each storage's data, the number of its items


def read_legacy(file: OpenedFile) -> Any:
    """What a file describes, with the data of its tensors.

    Raises:
        Refused: it is damaged, or asks for more than a checkpoint needs. ValueError, LookupError:
            it is damaged.
    """
    left = file.size

    def claim(key: str, nbytes: int) -> None:
        nonlocal left
        if nbytes > left:
            raise Refused(f"claims {nbytes:,} bytes for a tensor, and has {left:,} at most")
        left -= nbytes

    unpickler = _unpickler(file, claim)
    _, _, _, content, keys = [unpickler.load() for _ in range(5)]
    storages, at = unpickler.storages, unpickler.at
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise Refused("is damaged: it does not say whose data follows")
    if missing := storages.keys() - set(keys):
        raise Refused(f"is damaged: the data {sorted(missing)[0][:20]!r} of a tensor is missing")
    if len(keys) > len(storages):
        raise Refused("is damaged: it holds data that is no tensor's")
    for key in keys:
        storage = storages[key]
        items = int.from_bytes(file.read(at, COUNT), "little")
        if items * storage.dtype.itemsize != storage.data.numel():
            raise Refused(f"is damaged: the data {key[:20]!r} of a tensor has another size")
        file.fill(storage.data, at + COUNT)
        at += COUNT + storage.data.numel()
    return content


def refuse_pickle(file: OpenedFile) -> None:
    """Say what a pickle that is not torch's asks for, or that it is one."""

    def claim(key: str, nbytes: int) -> None:
        raise Refused("is a pickle of tensors without their data: refused")

    _unpickler(file, claim).load()
    raise Refused("is a plain pickle, not a torch file: save it with torch.save")


def _unpickler(file: OpenedFile, claim: Any) -> Unpickler:
    return Unpickler(file.read(0, min(file.size, LIMITS.pickle_bytes)), claim)
