"""What a pickle would do, found out without doing it.

A pickle is a program. Torch's restricted unpickler refuses to call strangers, but it calls its few
friends with whatever the file gives them, and that is enough to fill a machine's memory or to read
past the end of a buffer. So every program is first followed on paper: the same stack, with
descriptions of things in the place of things (`srd.files.vetting.values`).
"""

from __future__ import annotations

import pickletools
from collections.abc import Mapping
from typing import IO, Any

from srd.files.vetting.values import (
    STORAGES,
    Container,
    Name,
    Refused,
    Storage,
    asked_for,
    call,
    expect,
    is_a,
    known,
    new,
    plain_value,
)

PROTOCOL = 2  # the only one that torch's restricted unpickler reads
MOST_OPCODES = 2_000_000  # DeiT with its optimizer's state takes 22,176


class PickleCheck:
    """Follows pickles of one file; `storages` keeps what they claim of its data.

    Args:
        records: bytes of each record of data by key, where the file has a directory of them.
        total: bytes of data that all claims together may reach.
    """

    def __init__(self, records: Mapping[str, int] | None, total: int) -> None:
        self.records, self.total = records, total
        self.storages: dict[str, tuple[str, int]] = {}
        self.opcodes = 0

    def follow(self, stream: IO[bytes]) -> Any:
        """Follow one pickle to its end, leaving `stream` behind it; returns what it describes.

        Raises:
            Refused: it asks for something that no checkpoint needs. ValueError, IndexError,
                KeyError: it is damaged.
        """
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # stacks under each open mark
        self.memo: dict[int, Any] = {}
        self.protocol = 0
        self.result: Any = None
        for opcode, argument, _ in pickletools.genops(stream):
            self.opcodes += 1
            if self.opcodes > MOST_OPCODES:
                raise Refused(f"builds more than {MOST_OPCODES:,} things: no checkpoint does")
            self._step(opcode.name, argument)
        if self.protocol != PROTOCOL:
            raise Refused(
                f"is pickled with protocol {self.protocol}, and torch reads {PROTOCOL}: save it again "
                "with torch.save, without pickle_protocol"
            )
        return self.result

    def _step(self, opcode: str, argument: Any) -> None:
        stack = self.stack
        match opcode:
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(argument)
            case "BINUNICODE" | "SHORT_BINUNICODE" | "SHORT_BINSTRING":
                stack.append(argument)
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "MARK":
                self.below.append(stack)
                self.stack = []
            case "TUPLE":
                self.stack = self.below.pop()
                self.stack.append(tuple(stack))
            case "EMPTY_TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(opcode[-1]) if opcode[-1].isdecimal() else 0
                items = [stack.pop() for _ in range(size)]
                stack.append(tuple(reversed(items)))
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode])
            case "EMPTY_LIST" | "EMPTY_DICT":
                stack.append(Container(opcode.removeprefix("EMPTY_").lower()))
            case "APPEND" | "SETITEM" | "APPENDS" | "SETITEMS":
                self._fill(opcode)
            case "GLOBAL":
                stack.append(known(Name(argument)))
            case "BINPERSID":
                stack.append(self._storage(stack.pop()))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(call(function, arguments))
            case "NEWOBJ":
                arguments, cls = stack.pop(), stack.pop()
                stack.append(new(cls, arguments))
            case "BUILD":
                state, target = stack.pop(), stack[-1]
                expect(is_a(target, "dict", "settings") and is_a(state, "dict"), "sets attributes")
            case "PROTO":
                self.protocol = argument
            case "STOP":
                self.result = stack.pop()
            case "STACK_GLOBAL":  # this and the next three: followed only to name what is asked for
                name, module = stack.pop(), stack.pop()
                stack.append(known(Name(f"{module} {name}")))
            case "INST":
                raise asked_for(Name(argument))
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "FRAME":
                pass
            case _:
                raise Refused(f"uses the pickle operation {opcode}, which torch never writes")

    def _fill(self, opcode: str) -> None:
        pairs = opcode.startswith("SETITEM")
        if opcode.endswith("S"):
            items, self.stack = self.stack, self.below.pop()
        else:
            count = 2 if pairs else 1
            items = self.stack[-count:]
            del self.stack[-count:]
        target = self.stack[-1]
        expect(is_a(target, "dict" if pairs else "list"), "fills something that is no container")
        if not pairs:
            target.items += items
        elif not all(map(plain_value, items[::2])):
            raise Refused("has keys that are not plain values")

    def _storage(self, identity: Any) -> Storage:
        """The storage that a persistent id names, if the file has its data."""
        match identity:
            case ("storage", Name(name), str(key), str(), int(items), *rest) if (
                name in STORAGES and items >= 0 and rest in ([], [None])
            ):
                pass
            case _:
                raise Refused("refers to something else than a tensor's data")
        size = STORAGES[name]
        nbytes = items * size
        if key not in self.storages:
            self._claim(key, nbytes)
            self.storages[key] = (name, items)
        elif nbytes and self.storages[key] != (name, items):
            raise Refused(f"describes the data {key[:20]!r} of a tensor in two ways")
        return Storage(nbytes, size)

    def _claim(self, key: str, nbytes: int) -> None:
        there = self.total if self.records is None else self.records.get(key)
        if there is None:
            raise Refused(f"is damaged: the data {key[:20]!r} of a tensor is missing")
        if nbytes > there:
            raise Refused(f"claims {nbytes:,} bytes for a tensor whose data has {there:,} at most")
        if self.records is None:
            self.total -= nbytes
