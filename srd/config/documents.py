"""YAML documents that somebody else may have written, read within limits.

A few lines of YAML can ask for more than a machine has: aliases that unfold into billions of values,
thousands of brackets, numbers of a million digits. Both halves read their files here.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from srd.errors import UserError

# Far above what configurations need (the longest of torchdistill's has 11,000 bytes, 900 values), and
# read in a second: PyYAML looks at every character.
MOST_BYTES = 1 << 18
MOST_VALUES = 20_000  # written
MOST_UNFOLDED = 1_000_000  # each as often as an alias repeats it
MOST_DEPTH = 64
MOST_DIGITS = 100  # of a number
NUMBERS = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "timestamp"))


class Loader(yaml.SafeLoader):
    """SafeLoader that counts what it composes, and takes plain keys only, each once.

    Raises:
        UserError: beyond a limit; or what YAML allows, and no configuration means. With its line.
    """

    def __init__(self, text: str, source: str) -> None:
        self.source = source
        with explained(source):  # characters that no text has
            super().__init__(text)
        self._depth = self._values = 0
        self._unfolded: dict[int, tuple[int, int]] = {}  # of a node, by id: its values, its depth

    def value(self, node: yaml.Node | None) -> Any:
        """What a document's nodes stand for; whatever an alias repeats is whole when it is."""
        with explained(self.source):
            return None if node is None else self.construct_object(node, deep=True)

    def at(self, node: yaml.Node) -> str:
        """Where a node stands."""
        return f"{self.source}, line {node.start_mark.line + 1}"

    def compose(self) -> yaml.Node | None:
        """The one document's nodes; None for an empty one."""
        try:
            with explained(self.source):
                node: yaml.Node | None = self.get_single_node()
                return node
        except (
            OverflowError,
            ValueError,
        ):  # of escapes and directives, beyond what PyYAML thinks of
            raise UserError(f"{self.source}, line {self.line + 1} is not YAML") from None

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            return self._repeated(parent, index)
        self._depth += 1
        self._values += 1
        if self._depth > MOST_DEPTH or self._values > MOST_VALUES:
            raise UserError(
                f"{self.source}, line {self.peek_event().start_mark.line + 1}: too much: a file may "
                f"hold {MOST_VALUES:,} values, {MOST_DEPTH} in one another"
            )
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is not None:
            self._count(node)
        return node

    def _repeated(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """What an alias stands for; not what it stands in."""
        line = self.peek_event().start_mark.line + 1
        node = super().compose_node(parent, index)
        if id(node) not in self._unfolded:
            raise UserError(f"{self.source}, line {line}: this value contains itself")
        return node

    def _count(self, node: yaml.Node) -> None:
        """Note how much a node unfolds into; those inside it are counted already."""
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.ScalarNode):
            node.value.encode()  # half of a surrogate pair is no text: nobody could write it again
        elif isinstance(node, yaml.MappingNode):
            self._check_keys(node)
            inner = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            inner = node.value
        counts = [self._unfolded[id(part)] for part in inner]
        values = 1 + sum(count for count, _ in counts)
        depth = 1 + max((depth for _, depth in counts), default=0)
        if values > MOST_UNFOLDED or depth > MOST_DEPTH:
            raise UserError(
                f"{self.at(node)}: too much: its aliases unfold into {values:,} values, {depth} in "
                f"one another; a file may hold {MOST_UNFOLDED:,}, and {MOST_DEPTH}"
            )
        self._unfolded[id(node)] = values, depth

    def _check_keys(self, node: yaml.MappingNode) -> None:
        names: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise UserError(f"{self.at(key)}: a list or a mapping cannot be a key")
            if key.value in names and key.value != "<<":
                raise UserError(f"{self.at(key)}: the key {key.value[:100]!r} stands there twice")
            names.add(key.value)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            return super().construct_object(node, deep=deep)
        try:
            if node.tag in NUMBERS and len(node.value) > MOST_DIGITS:
                raise ValueError
            return super().construct_object(node, deep=deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            kind = node.tag.rpartition(":")[2]  # `!!int abc`: PyYAML leaves these to Python
            raise UserError(f"{self.at(node)} is not YAML: this is no {kind}") from None


def read_text(path: str | Path) -> str:
    """The text of a file, which is opened once and not waited for.

    Raises:
        UserError: it cannot be read, is no file but a pipe or a device, is too long, or no text.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)
    try:
        with open(path, "rb", opener=lambda name, _: os.open(name, flags)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UserError(f"the configuration {path} is no file: a pipe or a device")
            data = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read the configuration {path}: {reason}") from None
    if len(data) > MOST_BYTES:
        raise UserError(f"the configuration {path} is longer than {MOST_BYTES:,} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise UserError(f"the configuration {path} is not a text file") from None


def load(text: str, source: str) -> Any:
    """The one document in a text as plain values; `source` is named where it is wrong.

    Raises:
        UserError: malformed, with its line; or beyond a limit.
    """
    loader = Loader(text, source)
    return loader.value(loader.compose())


@contextmanager
def explained(source: str) -> Iterator[None]:
    """What PyYAML says of a text, as a UserError of one line."""
    try:
        yield
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        if "constructor for the tag '!" in reason:
            reason += " (torchdistill's files are read by resnet/image_classification.py)"
        raise UserError(f"{source}{where} is not YAML: {reason}") from None
