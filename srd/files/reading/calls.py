"""The functions that a pickled checkpoint may call, by the names that it has for them.

Everything else is refused by name. None of these runs anything of the file's: they make plain
containers, and tensors that are views of data in the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from srd.files.limits import LIMITS
from srd.files.opened import Refused
from srd.files.reading.arrays import Array, NumberType, number_type, scalar
from srd.files.reading.budget import Budget
from srd.printable import printable

# Storage types by the files' names for them.
STORAGES = {
    "torch DoubleStorage": torch.float64, "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16, "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64, "torch IntStorage": torch.int32,
    "torch ShortStorage": torch.int16, "torch CharStorage": torch.int8,
    "torch ByteStorage": torch.uint8, "torch BoolStorage": torch.bool,
    "torch ComplexDoubleStorage": torch.complex128, "torch ComplexFloatStorage": torch.complex64,
    "torch.storage UntypedStorage": torch.uint8,
}  # fmt: skip
# Two classes that only hold settings. They come back as plain dictionaries, without their packages.
CFG_NODE, NAMESPACE = "yacs.config CfgNode", "argparse Namespace"
# Classes that a call may be given, to say what it makes; none of them is called.
TENSORS = ("torch Tensor", "torch.nn.parameter Parameter", "torch.nn.parameter Buffer")
GIVEN = (CFG_NODE, NAMESPACE, "numpy ndarray", *TENSORS,
         *(f"__builtin__ {name}" for name in ("list", "dict", "int", "float", "str", "bool")))  # fmt: skip


@dataclass(frozen=True)
class Name:
    """A function or class that a file names, as `module name`."""

    name: str

    def __str__(self) -> str:
        module, _, name = self.name.partition(" ")
        return printable(f"{module.replace('__builtin__', 'builtins')}.{name}"[:100])


@dataclass(frozen=True)
class Storage:
    """The data that tensors share: bytes, read when the whole pickle has been followed."""

    data: Tensor  # uint8
    dtype: torch.dtype


def asked_for(name: Name) -> Refused:
    return Refused(f"asks to run {name}: refused, checkpoints are read as data only")


def expect(fine: bool, otherwise: str) -> None:
    if not fine:
        raise Refused(f"{otherwise}: refused")


def known(name: Name) -> Name | str:
    """A name that may be used; the name of a type of numbers is a text, such as "torch.float16"."""
    if name.name in STORAGES or name.name in CALLS or name.name in GIVEN:
        return name
    dtype = name.name.replace(" ", ".", 1)
    if _dtype(dtype) is not None:
        return dtype
    raise asked_for(name)


def _dtype(name: Any) -> torch.dtype | None:
    """A type of numbers by its whole name; None for others, quantised types among them."""
    if not isinstance(name, str) or not name.startswith("torch."):
        return None
    dtype = vars(torch).get(name.removeprefix("torch."))
    return dtype if isinstance(dtype, torch.dtype) and not name.startswith("torch.q") else None


def call(budget: Budget, function: Any, arguments: Any) -> Any:
    """What a call that a file asks for gives."""
    if not isinstance(function, Name) or not isinstance(arguments, tuple):
        raise Refused("calls something that is no function: refused")
    if function.name not in CALLS:
        raise asked_for(function)
    try:
        return CALLS[function.name](budget, *arguments)
    except TypeError:  # another number of arguments
        raise Refused(f"calls {function} with arguments that it never has: refused") from None


def _ordered_dict(budget: Budget) -> dict[Any, Any]:
    return {}


def _default_dict(budget: Budget, factory: Any = None) -> dict[Any, Any]:
    expect(factory is None or isinstance(factory, Name), "makes a dictionary in an unknown way")
    return {}


def _counter(budget: Budget, counts: Any) -> dict[Any, Any]:
    expect(type(counts) is dict, "counts something that is no dictionary")
    budget.copy(len(counts))
    return budget.fill({}, counts.items())


def _set(budget: Budget, items: Any) -> set[Any]:
    expect(type(items) is list, "makes a set of something that is no list")
    budget.copy(len(items))
    for place, item in enumerate(items):
        budget.key(item, place)
    return set(items)


def _frozen_set(budget: Budget, items: Any) -> frozenset[Any]:
    return frozenset(_set(budget, items))


def _complex(budget: Budget, real: Any, imaginary: Any) -> complex:
    expect(type(real) is float and type(imaginary) is float, "makes a complex number of others")
    return complex(real, imaginary)


def _no_bytes(budget: Budget) -> bytes:
    return b""


def _number_type(budget: Budget, kind: Any, align: Any, copy: Any) -> NumberType:
    return number_type(kind)


def _scalar(budget: Budget, numbers: Any, data: Any) -> Any:
    return scalar(numbers, data)


def _array(budget: Budget, kind: Any, shape: Any, letter: Any) -> Array:
    expect(kind == Name("numpy ndarray"), "makes an array of another kind")
    budget.tensor(0)
    return Array()


def _encode(budget: Budget, text: Any, encoding: Any) -> bytes:
    expect(isinstance(text, str) and encoding == "latin1", "encodes in a way that torch does not")
    budget.copy(len(text))
    return text.encode("latin1")


def _size(budget: Budget, sizes: Any) -> tuple[int, ...]:
    expect(_naturals(sizes), "has a size of something else than numbers")
    return sizes


def _device(budget: Budget, kind: Any, index: Any = None) -> str:
    fine = isinstance(kind, str) and (index is None or type(index) is int)
    expect(fine, "names a device without a name")
    return str(torch.device(kind) if index is None else torch.device(kind, index))


def _parameter(budget: Budget, tensor: Any, requires_grad: Any, hooks: Any) -> Tensor:
    plain = isinstance(requires_grad, bool) and type(hooks) is dict
    if not isinstance(tensor, Tensor) or not plain:
        raise Refused("makes a parameter of something else than a tensor: refused")
    return tensor


def _parameter_with_state(
    budget: Budget, tensor: Any, requires_grad: Any, hooks: Any, state: Any
) -> Tensor:
    """A parameter; what was attached to it is left out."""
    return _parameter(budget, tensor, requires_grad, hooks)


def _from_type(budget: Budget, function: Any, kind: Any, arguments: Any, state: Any) -> Tensor:
    """A tensor that had attributes, such as a buffer has; they are left out."""
    plain = isinstance(kind, Name) and kind.name in TENSORS
    expect(plain and function in REBUILDERS, "makes a tensor of another kind")
    return call(budget, function, arguments)


def _tensor(budget: Budget, storage: Any, offset: Any, size: Any, stride: Any) -> Tensor:
    """A tensor that lies inside its storage; it may have more items, as an expanded one has."""
    described = isinstance(storage, Storage) and _naturals((offset,), size, stride)
    countable = described and len(size) == len(stride) and math.prod(filter(None, size)) < 2**63
    expect(countable, "describes a tensor in an unknown way")
    there = storage.data.numel() // storage.dtype.itemsize
    items = math.prod(size)
    budget.tensor(items * storage.dtype.itemsize)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if items and last >= there:
        raise Refused(
            f"claims a tensor of {items:,} items, up to number {last + 1:,}, where there are "
            f"{there:,}: refused"
        )
    if not items:
        return torch.empty(size, dtype=storage.dtype)
    empty = torch.empty(0, dtype=storage.dtype)
    return empty.set_(storage.data.untyped_storage(), offset, size, stride)


def _tensor_v2(
    budget: Budget, storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any
) -> Tensor:
    expect(isinstance(grad, bool) and type(hooks) is dict, "attaches things to a tensor")
    return _tensor(budget, storage, offset, size, stride)


def _tensor_v3(
    budget: Budget, storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any,
    dtype: Any,
) -> Tensor:  # fmt: skip
    numbers = _dtype(dtype)
    if numbers is None or not isinstance(storage, Storage):
        raise Refused("describes a tensor in an unknown way: refused")
    return _tensor_v2(budget, Storage(storage.data, numbers), offset, size, stride, grad, hooks)


def _naturals(*tuples: Any) -> bool:
    """Whether all are short tuples of whole numbers that are not negative."""
    return all(
        isinstance(numbers, tuple)
        and len(numbers) <= LIMITS.dimensions
        and all(type(number) is int and 0 <= number < 2**63 for number in numbers)
        for numbers in tuples
    )


CALLS: dict[str, Callable[..., Any]] = {
    "collections OrderedDict": _ordered_dict,
    "collections Counter": _counter,
    "__builtin__ set": _set,
    "collections defaultdict": _default_dict,
    "__builtin__ frozenset": _frozen_set,
    "__builtin__ complex": _complex,
    "__builtin__ bytes": _no_bytes,
    "_codecs encode": _encode,
    "numpy dtype": _number_type,
    **{f"numpy.{core}.multiarray scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray _reconstruct": _array for core in ("core", "_core")},
    "torch Size": _size,
    "torch device": _device,
    "torch._utils _rebuild_tensor": _tensor,
    "torch._utils _rebuild_tensor_v2": _tensor_v2,
    "torch._utils _rebuild_tensor_v3": _tensor_v3,
    "torch._utils _rebuild_parameter": _parameter,
    "torch._utils _rebuild_parameter_with_state": _parameter_with_state,
    "torch._tensor _rebuild_from_type_v2": _from_type,
}
REBUILDERS = [Name(name) for name in CALLS if name.startswith("torch._utils _rebuild_tensor")]
