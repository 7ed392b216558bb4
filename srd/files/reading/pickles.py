"""Pickled checkpoints, built without pickle.

A pickle is a program for a machine with a stack. This is a machine that knows the operations which
torch writes, and the few functions in `srd.files.reading.calls`: what it follows is what it builds,
from one reading of the file, and it stops where `srd.files.limits` say.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable
from typing import Any

from torch import Tensor

from srd.files.limits import LIMITS
from srd.files.opened import Refused, allocate
from srd.files.reading.arrays import Array, NumberType, array
from srd.files.reading.budget import Budget
from srd.files.reading.calls import (
    CFG_NODE,
    NAMESPACE,
    STORAGES,
    Name,
    Storage,
    asked_for,
    call,
    expect,
    known,
)

PROTOCOL = 2  # what torch.save writes
TEXT = 16  # characters, or bytes, that count as one value


class Unpickler:
    """Builds what pickles at the start of `program` describe; `storages` are theirs, still empty.

    Args:
        claim: is told the key and the bytes of each tensor's data once; raises Refused where the
            file does not have them.
    """

    def __init__(self, program: bytes, claim: Callable[[str, int], None]) -> None:
        self.program, self.at, self.claim = program, 0, claim
        self.budget = Budget()
        self.storages: dict[str, Storage] = {}

    def load(self) -> Any:
        """Build what the next pickle describes, and stand behind it.

        Raises:
            Refused: it asks for something that no checkpoint needs. ValueError, LookupError,
                struct.error: it is damaged.
        """
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # stacks under each open mark
        self.memo: dict[int, Any] = {}
        self.namespaces: dict[int, Any] = {}  # by identity: what settings may be put into
        self.protocol = 0
        while (code := self.program[self.at : self.at + 1]) != b".":
            self.budget.opcode()
            self.at += 1
            self.budget.read = self.at
            operation = OPERATIONS.get(code)
            if operation is None:
                raise _unknown(code)
            operation(self)
        self.at += 1
        if self.protocol != PROTOCOL:
            raise Refused(
                f"is pickled with protocol {self.protocol}, and torch reads {PROTOCOL}: save it again "
                "with torch.save, without pickle_protocol"
            )
        self.budget.check_views(sum(there.data.numel() for there in self.storages.values()))
        return check_tree(self.stack.pop())

    # Parts of the program

    def take(self, count: int) -> bytes:
        """The next `count` bytes of the program."""
        data = self.program[self.at : self.at + count]
        if len(data) < count:
            raise Refused("is damaged: its pickle is cut short; fetch it again")
        self.at += count
        return data

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def text(self, size_layout: str, errors: str = "strict") -> str:
        """A text after its length: UTF-8, as torch reads all of them."""
        return str(self.take(self.number(size_layout)), "utf-8", errors)

    def line(self) -> str:
        end = self.program.index(b"\n", self.at)
        return str(self.take(end + 1 - self.at)[:-1], "utf-8")

    # Operations

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop_mark(self) -> list[Any]:
        """What lies above the last mark."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def pop(self, count: int) -> list[Any]:
        """The last `count` values, in the order in which they came."""
        return [self.stack.pop() for _ in range(count)][::-1]

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def keep(self, index: int) -> None:
        if index not in self.memo:
            self.budget.key(index, len(self.memo))
        self.memo[index] = self.stack[-1]
        if isinstance(self.stack[-1], Array):
            self.stack[-1].place = index

    def append(self, items: list[Any]) -> None:
        expect(type(self.stack[-1]) is list, "fills something that is no list")
        self.stack[-1] += items

    def set_items(self, items: list[Any]) -> None:
        expect(type(self.stack[-1]) is dict, "fills something that is no dictionary")
        self.budget.fill(self.stack[-1], zip(items[::2], items[1::2], strict=True))

    def reduce(self) -> None:
        function, arguments = self.pop(2)
        self.push(call(self.budget, function, arguments))

    def new(self) -> None:
        cls, arguments = self.pop(2)
        if cls not in (Name(CFG_NODE), Name(NAMESPACE)) or arguments != ():
            raise Refused(f"makes a new {cls if isinstance(cls, Name) else 'thing'}: refused")
        self.push({})
        if cls.name == NAMESPACE:
            self.namespaces[id(self.stack[-1])] = self.stack[-1]

    def build(self) -> None:
        """Settings into a namespace; what is attached to another mapping is left out."""
        target, state = self.stack[-2], self.stack.pop()
        if isinstance(target, NumberType):
            target.set_order(state)
            return
        if isinstance(target, Array):
            self.fill_array(target, state)
            return
        expect(type(target) is dict and type(state) is dict, "sets attributes")
        if id(target) in self.namespaces:
            self.budget.copy(len(state))
            self.budget.fill(target, list(state.items()))

    def fill_array(self, waiting: Array, state: Any) -> None:
        expect(isinstance(state, tuple) and len(state) == 5, "describes an array in an unknown way")
        self.budget.copy(len(state[-1]) if isinstance(state[-1], bytes) else 0)
        self.stack[-1] = array(state)
        if waiting.place is not None:
            self.memo[waiting.place] = self.stack[-1]

    def named(self, name: Name) -> None:
        self.push(known(name))

    def instance(self) -> None:
        raise asked_for(Name(f"{self.line()} {self.line()}"))

    def skip_frame(self) -> None:
        self.take(8)

    def set_protocol(self) -> None:
        self.protocol = self.number("B")

    def storage(self) -> None:
        """The storage that a persistent id names, if the file has its data."""
        match self.stack.pop():
            case ("storage", Name(name), str(key), str(), int(items), *rest) if (
                name in STORAGES and 0 <= items < 2**63 and rest in ([], [None])
            ):
                dtype = STORAGES[name]
            case _:
                raise Refused("refers to something else than a tensor's data: refused")
        nbytes = items * dtype.itemsize
        there = self.storages.get(key)
        if there is None:
            self.claim(key, nbytes)
            there = self.storages[key] = Storage(allocate(nbytes), dtype)
            if len(self.storages) > LIMITS.tensors:
                raise Refused(f"holds the data of more than {LIMITS.tensors:,} tensors")
        elif nbytes and (there.data.numel(), there.dtype) != (nbytes, dtype):
            raise Refused("describes the data of one tensor in two ways: refused")
        self.push(there if nbytes else Storage(allocate(0), dtype))


def check_tree(root: Any) -> Any:
    """`root`, if it is a tree of plain containers, values and tensors with limits to its size.

    A list can hold the same list many times, which holds another one many times, ...; and itself.
    """
    level, count = [root], 1
    for _ in range(LIMITS.depth):
        below: list[Any] = []
        for value in level:
            if isinstance(value, (dict, list, tuple)):
                count += len(value)
                below += value.values() if isinstance(value, dict) else value
                if isinstance(value, dict):  # one text can be a key of each
                    count += sum(len(key) for key in value if isinstance(key, str)) // TEXT
            elif isinstance(value, (str, bytes, set, frozenset)):
                count += len(value) // (TEXT if isinstance(value, (str, bytes)) else 1)
            elif not isinstance(value, (type(None), bool, int, float, complex, Tensor)):
                raise Refused(f"holds a {type(value).__name__.lower()} as a value: refused")
            if count > LIMITS.values:
                raise Refused(f"unfolds into more than {LIMITS.values:,} values: refused")
        if not below:
            return root
        level = below
    raise Refused("is nested too deeply, or holds itself: refused")


def _unknown(code: bytes) -> Refused:
    if not code:
        return Refused("is damaged: its pickle is cut short; fetch it again")
    names = {operation.code: operation.name for operation in pickletools.opcodes}
    name = names.get(code.decode("latin1"), repr(code))
    return Refused(f"uses the pickle operation {name}, which torch never writes")


OPERATIONS: dict[bytes, Callable[[Unpickler], None]] = {
    b"N": lambda u: u.push(None),
    b"\x88": lambda u: u.push(True),
    b"\x89": lambda u: u.push(False),
    b"J": lambda u: u.push(u.number("<i")),
    b"K": lambda u: u.push(u.number("B")),
    b"M": lambda u: u.push(u.number("<H")),
    b"\x8a": lambda u: u.push(int.from_bytes(u.take(u.number("B")), "little", signed=True)),
    b"G": lambda u: u.push(u.number(">d")),
    b"X": lambda u: u.push(u.text("<I", "surrogatepass")),
    b"U": lambda u: u.push(u.text("B")),
    b"q": lambda u: u.keep(u.number("B")),
    b"r": lambda u: u.keep(u.number("<I")),
    b"h": lambda u: u.push(u.memo[u.number("B")]),
    b"j": lambda u: u.push(u.memo[u.number("<I")]),
    b"(": Unpickler.mark,
    b")": lambda u: u.push(()),
    b"\x85": lambda u: u.push(tuple(u.pop(1))),
    b"\x86": lambda u: u.push(tuple(u.pop(2))),
    b"\x87": lambda u: u.push(tuple(u.pop(3))),
    b"t": lambda u: u.push(tuple(u.pop_mark())),
    b"]": lambda u: u.push([]),
    b"}": lambda u: u.push({}),
    b"a": lambda u: u.append(u.pop(1)),
    b"e": lambda u: u.append(u.pop_mark()),
    b"s": lambda u: u.set_items(u.pop(2)),
    b"u": lambda u: u.set_items(u.pop_mark()),
    b"c": lambda u: u.named(Name(f"{u.line()} {u.line()}")),
    b"Q": Unpickler.storage,
    b"R": Unpickler.reduce,
    b"\x81": Unpickler.new,
    b"b": Unpickler.build,
    b"\x80": Unpickler.set_protocol,
    # What torch does not write: followed only to name what a foreign pickle asks for.
    b"i": Unpickler.instance,
    b"\x8c": lambda u: u.push(u.text("B")),
    b"\x93": lambda u: u.named(Name(" ".join(map(str, u.pop(2))))),
    b"\x94": lambda u: u.keep(len(u.memo)),
    b"\x95": Unpickler.skip_frame,
}
