"""What a checkpoint may build, described instead of built: see `srd.files.vetting.pickles`.

Accepted are tensors no larger than their data, plain containers, and two classes that only hold
settings; everything else is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import torch

MOST_DIMENSIONS = 64

# The files' names for storage types, with bytes per item, and for two classes that are only settings.
STORAGES = {
    "torch DoubleStorage": 8, "torch FloatStorage": 4, "torch HalfStorage": 2,
    "torch BFloat16Storage": 2, "torch LongStorage": 8, "torch IntStorage": 4,
    "torch ShortStorage": 2, "torch CharStorage": 1, "torch ByteStorage": 1,
    "torch BoolStorage": 1, "torch ComplexDoubleStorage": 16, "torch ComplexFloatStorage": 8,
    "torch.storage UntypedStorage": 1,
}  # fmt: skip
SETTINGS = ("yacs.config CfgNode", "argparse Namespace")


class Refused(Exception):
    """A file asks for something that no checkpoint needs; says what, without the file's name."""


class Kind(Enum):
    """Things that need no further description."""

    TENSOR = auto()
    VALUE = auto()  # bytes, a device, a size, a set of scalars


@dataclass(frozen=True)
class Name:
    """A function or class that a file names, as `module name`."""

    name: str

    def __str__(self) -> str:
        module, _, name = self.name.partition(" ")
        return f"{module.replace('__builtin__', 'builtins')}.{name}"[:100]


@dataclass(frozen=True)
class Storage:
    """Data of a tensor: how many bytes, and bytes per item."""

    nbytes: int
    item: int


@dataclass
class Container:
    """A list with its items, a dictionary (of any kind), or settings."""

    kind: str
    items: list[Any] = field(default_factory=list)


def plain_value(thing: Any) -> bool:
    """Whether a thing is a text or a number that hashes at once and unlike its neighbours."""
    small = isinstance(thing, int) and thing.bit_length() <= 64
    return small or thing is None or isinstance(thing, (str, float))


def asked_for(name: Name) -> Refused:
    return Refused(f"asks to run {name}: refused, checkpoints are read as data only")


def expect(fine: bool, otherwise: str) -> None:
    if not fine:
        raise Refused(f"{otherwise}: refused")


def is_a(thing: Any, *kinds: str) -> bool:
    return isinstance(thing, Container) and thing.kind in kinds


def known(name: Name) -> Name:
    if name.name in STORAGES or name.name in CALLS or name.name in SETTINGS or _item_size(name):
        return name
    raise asked_for(name)


def _item_size(name: Any) -> int:
    """Bytes per item of a dtype's name; 0 for other names, and for quantised types."""
    module, _, dtype = name.name.partition(" ") if isinstance(name, Name) else ("", "", "")
    found = getattr(torch, dtype, None) if module == "torch" else None
    return found.itemsize if isinstance(found, torch.dtype) and dtype[0] != "q" else 0


def call(function: Any, arguments: Any) -> Any:
    if not isinstance(function, Name) or not isinstance(arguments, tuple):
        raise Refused("calls something that is no function: refused")
    if function.name not in CALLS:
        raise asked_for(function)
    try:
        return CALLS[function.name](*arguments)
    except TypeError:  # another number of arguments
        raise Refused(f"calls {function} with arguments that it never has: refused") from None


def new(cls: Any, arguments: Any) -> Container:
    if not isinstance(cls, Name) or cls.name not in SETTINGS or arguments != ():
        raise Refused(f"makes a new {cls if isinstance(cls, Name) else 'thing'}: refused")
    return Container("dict" if cls.name == "yacs.config CfgNode" else "settings")


# What may be called, each described by a function of the same arguments: what comes out.


def _ordered_dict() -> Container:
    return Container("dict")


def _counter(counts: Any) -> Container:
    expect(is_a(counts, "dict"), "counts something that is no dictionary")
    return Container("dict")


def _set(items: Any) -> Kind:
    plain = is_a(items, "list") and all(map(plain_value, items.items))
    expect(plain, "makes a set of things that are no plain values")
    return Kind.VALUE


def _encode(text: Any, encoding: Any) -> Kind:
    expect(isinstance(text, str) and encoding == "latin1", "encodes in a way that torch does not")
    return Kind.VALUE


def _size(sizes: Any) -> Kind:
    expect(_naturals(sizes), "has a size of something else than numbers")
    return Kind.VALUE


def _device(kind: Any, index: Any = 0) -> Kind:
    expect(isinstance(kind, str) and isinstance(index, int), "names a device without a name")
    return Kind.VALUE


def _parameter(tensor: Any, requires_grad: Any, hooks: Any) -> Kind:
    plain = tensor is Kind.TENSOR and isinstance(requires_grad, bool) and is_a(hooks, "dict")
    expect(plain, "makes a parameter of something else than a tensor")
    return Kind.TENSOR


def _tensor(storage: Any, offset: Any, size: Any, stride: Any) -> Kind:
    """A tensor that lies inside its storage, and has no more items than it."""
    described = isinstance(storage, Storage) and _naturals((offset,), size, stride)
    expect(described and len(size) == len(stride), "describes a tensor in an unknown way")
    there = storage.nbytes // storage.item
    items = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if items > there or (items and last >= there):
        raise Refused(
            f"claims a tensor of {items:,} items, up to number {last + 1:,}, where there are "
            f"{there:,}: refused"
        )
    return Kind.TENSOR


def _tensor_v2(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any
) -> Kind:
    expect(isinstance(requires_grad, bool) and is_a(hooks, "dict"), "attaches things to a tensor")
    return _tensor(storage, offset, size, stride)


def _tensor_v3(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, dtype: Any
) -> Kind:
    item = _item_size(dtype)
    expect(isinstance(storage, Storage) and item > 0, "describes a tensor in an unknown way")
    return _tensor_v2(Storage(storage.nbytes, item), offset, size, stride, requires_grad, hooks)


def _naturals(*tuples: Any) -> bool:
    """Whether all are short tuples of whole numbers that are not negative."""
    return all(
        isinstance(numbers, tuple)
        and len(numbers) <= MOST_DIMENSIONS
        and all(type(number) is int and 0 <= number < 2**63 for number in numbers)
        for numbers in tuples
    )


CALLS: dict[str, Callable[..., Any]] = {
    "collections OrderedDict": _ordered_dict,
    "collections Counter": _counter,
    "__builtin__ set": _set,
    "_codecs encode": _encode,
    "torch Size": _size,
    "torch device": _device,
    "torch._utils _rebuild_tensor": _tensor,
    "torch._utils _rebuild_tensor_v2": _tensor_v2,
    "torch._utils _rebuild_tensor_v3": _tensor_v3,
    "torch._utils _rebuild_parameter": _parameter,
}
