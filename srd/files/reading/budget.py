"""What a pickle has asked for so far, and where that is too much."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from srd.files.limits import LIMITS
from srd.files.opened import Refused


class Budget:
    """Counts what one file builds; each method refuses what goes beyond `LIMITS`."""

    def __init__(self) -> None:
        self.opcodes = self.tensors = self.number_keys = self.copied = 0
        self.viewed = 0  # bytes of all tensors, each as if it had its own
        self.read = 0  # bytes of pickles so far

    def opcode(self) -> None:
        self.opcodes += 1
        if self.opcodes > LIMITS.opcodes:
            raise Refused(f"builds more than {LIMITS.opcodes:,} things: no checkpoint does")

    def tensor(self, nbytes: int) -> None:
        self.tensors, self.viewed = self.tensors + 1, self.viewed + nbytes
        if self.tensors > LIMITS.tensors:
            raise Refused(f"holds more than {LIMITS.tensors:,} tensors: no checkpoint does")

    def check_views(self, nbytes: int) -> None:
        """All tensors, which share so many bytes: whoever copies them gets each on its own."""
        if self.viewed > LIMITS.views * nbytes + LIMITS.expanded:
            raise Refused(f"holds {self.viewed:,} bytes of tensors in {nbytes:,}: refused")

    def copy(self, items: int) -> None:
        """A call copies so many items (or characters).

        Each of them stood in the file, a byte or more, and an array's are copied twice: who copies
        more copies the same again.
        """
        self.copied += items
        if self.copied > 2 * self.read:
            raise Refused("copies the same things again and again: no checkpoint does")

    def key(self, key: Any, place: int) -> None:
        """A key that will be hashed, the one at this place in its dictionary or set.

        Texts have hashes that nobody can foresee, and 0, 1, 2, ... lie side by side. Other numbers
        can be chosen so that each collides with all before it.
        """
        if key is None or type(key) is str:
            return
        if not isinstance(key, (int, float)) or (type(key) is int and key.bit_length() > 64):
            raise Refused("has keys that are not plain values: refused")
        if key != place:
            self.number_keys += 1
            if self.number_keys > LIMITS.number_keys:
                raise Refused(f"has more than {LIMITS.number_keys:,} scattered numbers as keys")

    def fill(self, target: dict[Any, Any], pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
        """Put `pairs` into `target`; returns it."""
        for key, value in pairs:
            self.key(key, len(target))
            target[key] = value
        return target
