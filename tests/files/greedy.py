"""Small files that ask for much memory or time: each is refused within `srd.files.limits`."""

from __future__ import annotations

import json

from tests.files.made import (
    HOOKS,
    as_legacy,
    as_zip,
    call,
    checkpoint,
    name,
    number,
    numbers,
    storage,
    tensor,
    text,
)


def many_pairs(count: int) -> bytes:
    """A dictionary of 0, 1, 2, ..."""
    pairs = b"".join(b"M" + i.to_bytes(2, "little") + b"N" for i in range(count))
    return b"}q\x00(" + pairs + b"u"


def again(function: bytes, arguments: bytes, times: int) -> bytes:
    """Calls of the same function with the same arguments."""
    kept = b"(" + function + b"q\x01" + arguments + b"q\x02"
    return kept + b"h\x01h\x02R" * times + b"t"


def scattered(count: int, offset: int = 0) -> bytes:
    """A dictionary of numbers whose lower bits are all the same."""
    return b"}(" + b"".join(number(offset + (i << 40)) + b"N" for i in range(1, count)) + b"u"


def unfolding(value: bytes, times: int = 60_000) -> bytes:
    """A dictionary with a list of the same value again and again."""
    return b"}" + text("a") + b"](" + value + b"q\x05" + b"h\x05" * times + b"es"


ONE_NUMBER = b"(" + storage(1) + number(0) + numbers(1) + numbers(1) + b"\x89" + HOOKS + b"t"
EMPTY = b"(" + storage(0) + number(0) + numbers(0) + numbers(1) + b"\x89" + HOOKS + b"t"
REBUILD = name("torch._utils", "_rebuild_tensor_v2")
THOUSAND = tensor(storage(1000), numbers(1000), numbers(1))


def safetensors_of(header: object) -> bytes:
    data = json.dumps(header).encode()
    return len(data).to_bytes(8, "little") + data


EMPTIES = {str(i): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(110_000)}
NESTED = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"

GREEDY: dict[str, bytes] = {
    "a long text as a key of many dictionaries": as_zip(
        unfolding(text("k" * 400_000)).replace(b"h\x05" * 60_000, b"}h\x05Ns" * 60_000)
    ),
    "a large dictionary counted again and again": as_zip(
        many_pairs(65_536) + again(name("collections", "Counter"), b"h\x00\x85", 20_000)
    ),
    "a long list made a set again and again": as_zip(
        b"](" + text("x") * 100_000 + b"eq\x00" + again(name("__builtin__", "set"), b"h\x00\x85", 9000)
    ),
    "a long text encoded again and again": as_zip(
        again(name("_codecs", "encode"), text("x" * 10**6) + text("latin1") + b"\x86", 5000)
    ),
    "settings filled again and again": as_zip(
        many_pairs(65_536)
        + b"(" + (name("argparse", "Namespace") + b")\x81h\x00b") * 9000 + b"t"
    ),
    "numbers that collide": as_zip(scattered(20_000)),
    "numbers that collide, old": as_legacy(scattered(20_000, 2**60)),
    "numbers that collide in many dictionaries": as_zip(b"(" + scattered(300) * 50 + b"t"),
    "places of the memo that collide": as_zip(
        b"N" + b"".join(b"r" + (i << 12).to_bytes(4, "little") for i in range(1, 20_000))
    ),
    "tensors without end": as_zip(again(REBUILD, ONE_NUMBER, 110_000), {"0": bytes(4)}),
    "empty tensors without end": as_zip(again(REBUILD, EMPTY, 110_000), {"0": b""}),
    "data of tensors without end": as_legacy(
        b"(" + b"".join(storage(0, key=str(i), old=True) for i in range(110_000)) + b"t"
    ),
    "the same bytes in many tensors": as_zip(
        b"(" + THOUSAND * 100 + b"t", {"0": bytes(4000)}
    ),
    "a text a thousand times": as_zip(unfolding(text("x" * 100_000))),
    "bytes a thousand times": as_zip(
        unfolding(call(name("_codecs", "encode"), text("x" * 100_000), text("latin1")))
    ),
    "a set a thousand times": as_zip(
        unfolding(call(name("__builtin__", "set"), b"](" + b"".join(
            text(str(i)) for i in range(1000)) + b"e"))
    ),
    "a size of six hundred digits": as_zip(
        checkpoint(b"(" + text("storage") + name("torch", "FloatStorage") + text("0") + text("cpu")
                   + number(2**2000) + b"tQ"), {"0": bytes(4)}
    ),
    "empty safetensors without end": safetensors_of(EMPTIES),
    "a header of nothing but brackets": len(NESTED).to_bytes(8, "little") + NESTED,
    "a long header": (1 << 30).to_bytes(8, "little") + b"{" + b" " * 1000,
    "an empty tensor of immense size": safetensors_of(
        {"fc.weight": {"dtype": "F32", "shape": [2**62, 2**62, 0], "data_offsets": [0, 0]}}
    ),
    "tensors that lie on each other": safetensors_of(
        {key: {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]} for key in "abc"}
    ) + bytes(4),
    "metadata that are no texts": safetensors_of({"__metadata__": {"a": 1}}),
}  # fmt: skip
