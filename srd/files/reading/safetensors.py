"""Safetensors: a header in JSON that says where in the file each tensor is, and the tensors.

Written here rather than by the library, whose metadata comes in another order every time: files
of the same tensors have the same bytes.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple, cast

import torch
from torch import Tensor

from srd.files.limits import LIMITS
from srd.files.opened import OpenedFile, Refused, allocate
from srd.printable import printable

SIZE = struct.Struct("<Q")  # bytes of the header, before it
METADATA = "__metadata__"
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
    "BOOL": torch.bool, "C64": torch.complex64, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2, "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}  # fmt: skip
# Types that newer versions of torch have. Two numbers of HALVES are one item there.
HALVES = "F4"
NEWER = {"F8_E8M0": "float8_e8m0fnu", HALVES: "float4_e2m1fn_x2"}
DTYPES |= {name: getattr(torch, dtype) for name, dtype in NEWER.items() if hasattr(torch, dtype)}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Place(NamedTuple):
    """A tensor in a file: its type, its shape, and its first byte and the one after its last."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


def looks_like_safetensors(head: bytes) -> bool:
    """Whether a file that starts so can be one."""
    return len(head) > SIZE.size and head[8:9] == b"{" and SIZE.unpack_from(head)[0] < 2**40


class Header(NamedTuple):
    """Where the tensors are, in the order in which they lie, from byte `first` of the file on."""

    places: dict[str, Place]
    metadata: dict[str, str]
    first: int


def read_header(file: OpenedFile) -> Header:
    """What a file says that it holds, checked to be all that it holds.

    Raises:
        Refused: it is damaged, or holds more than files of weights do. ValueError, RecursionError:
            its header is no JSON.
    """
    (length,) = SIZE.unpack(file.read(0, SIZE.size))
    if length > LIMITS.header_bytes:
        raise Refused(f"has a header of more than {LIMITS.header_bytes >> 20} MiB: refused")
    header = json.loads(str(file.read(SIZE.size, length), "utf-8"))
    if not isinstance(header, dict) or len(header) > LIMITS.tensors + 1:
        raise Refused(f"holds no tensors, or more than {LIMITS.tensors:,}: refused")
    metadata = header.pop(METADATA, {})
    texts = metadata.values() if isinstance(metadata, dict) else [None]
    if not all(isinstance(text, str) for text in texts):
        raise Refused("has metadata that is no list of texts: refused")
    places = {name: _place(name, entry) for name, entry in header.items()}
    places = dict(sorted(places.items(), key=lambda item: item[1][2:]))
    at, first = 0, SIZE.size + length
    for name, place in places.items():
        if place.start != at:
            raise Refused(
                f"is damaged: {printable(name[:60])} does not follow the tensor before it"
            )
        at = place.end
        if first + at > file.size:
            raise Refused("is damaged: cut short, it claims more data than it has; fetch it again")
    if first + at != file.size:
        raise Refused("is damaged: it is longer than its tensors; fetch it again")
    return Header(places, metadata, first)


def read_safetensors(file: OpenedFile) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors by name, in the order in which they lie in the file, and the metadata.

    Raises:
        As `read_header`.
    """
    places, metadata, first = read_header(file)
    tensors: dict[str, Tensor] = {}
    for name, place in places.items():
        data = allocate(place.end - place.start)
        file.fill(data, first + place.start)
        tensors[name] = data.view(place.dtype).view(place.shape)
    return tensors, metadata


def _place(name: str, entry: Any) -> Place:
    match entry:
        case {"dtype": str(kind), "shape": list(shape), "data_offsets": [int(start), int(end)]}:
            pass
        case _:
            raise Refused(f"does not say where {printable(name[:60])} is: refused")
    if kind not in DTYPES:
        raise Refused(f"holds numbers of the type {printable(kind[:20])}, which is not known here")
    if kind == HALVES and shape and isinstance(shape[-1], int) and shape[-1] % 2 == 0:
        shape = [*shape[:-1], shape[-1] // 2]
    elif kind == HALVES:
        raise Refused(f"describes {printable(name[:60])} in an unknown way: refused")
    whole = all(type(size) is int and 0 <= size < 2**63 for size in shape)
    if not whole or len(shape) > LIMITS.dimensions or math.prod(filter(None, shape)) >= 2**63:
        raise Refused(f"describes {printable(name[:60])} in an unknown way: refused")
    if math.prod(shape) * DTYPES[kind].itemsize != end - start or start < 0:
        raise Refused(f"is damaged: the data of {printable(name[:60])} has another size")
    return Place(DTYPES[kind], tuple(shape), start, end)


def write_safetensors(
    file: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write tensors, in the library's order (wide types first, then by name), and metadata by name."""
    order = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    header: dict[str, Any] = {METADATA: dict(sorted(metadata.items()))} if metadata else {}
    at = 0
    for name, value in order:
        start, at = at, at + value.numel() * value.dtype.itemsize
        shape = list(value.shape)
        if NAMES[value.dtype] == HALVES:
            shape[-1] *= 2
        header[name] = {"dtype": NAMES[value.dtype], "shape": shape, "data_offsets": [start, at]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors start at a multiple of eight
    file.write(SIZE.pack(len(text)) + text)
    for _, value in order:
        flat = value.detach().cpu().contiguous().flatten()
        file.write(cast(Any, flat.view(torch.uint8).numpy()))
