"""torchdistill's tags: read as what they name, checked; or, for a trusted file, run."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import yaml
from torchdistill.common import yaml_util

from resnet.places import Places
from resnet.trust import TRUST, Made, called, item, member, named
from srd.config.documents import MOST_BYTES, Loader
from srd.errors import UserError

PLAIN = tuple(
    f"tag:yaml.org,2002:{name}"
    for name in ("str", "int", "float", "bool", "null", "seq", "map", "merge")
)

MAP = "tag:yaml.org,2002:map"


class Reader(Loader):
    """The limited reader, with `1e-4` read as a number and torchdistill's tags for paths."""


class Section(dict[Any, Any]):
    """A mapping that knows where it stands."""

    def __init__(self, where: str, content: Mapping[Any, Any] | None = None) -> None:
        super().__init__(content or {})
        self.where = where


class Checked(Reader):
    """Reads what a document names as `Made`: checked, and not built."""

    def __init__(self, text: str, source: str, places: Places) -> None:
        super().__init__(text, source)
        self.places = places

    def section(self, node: yaml.Node) -> Iterator[Section]:
        section = Section(self.at(node))
        yield section
        section.update(self.construct_mapping(self.mapping(node)))

    def entries(self, node: yaml.Node) -> dict[Any, Any]:
        """A tag's mapping; torchdistill ignores the keys that it does not know."""
        return dict(self.construct_mapping(self.mapping(node), deep=True))

    def mapping(self, node: yaml.Node) -> yaml.MappingNode:
        if not isinstance(node, yaml.MappingNode):
            raise UserError(f"{self.at(node)}: {node.tag} needs `key: value` lines")
        return node

    def dotted(self, node: yaml.Node, entries: dict[Any, Any]) -> str:
        """The dotted name that an import's `package` and `key` make."""
        package, key = entries.get("package"), entries.get("key")
        if not isinstance(key, str) or not isinstance(package, str | None):
            raise UserError(f"{self.at(node)}: {node.tag} needs `key: a.dotted.name`")
        return f"{package}.{key}" if package else key

    def import_get(self, node: yaml.Node) -> Made:
        return named(self.dotted(node, self.entries(node)), self.at(node))

    def import_call(self, node: yaml.Node) -> Made:
        entries = self.entries(node)
        init = {} if entries.get("init") is None else entries["init"]
        if not isinstance(init, dict):
            raise UserError(f"{self.at(node)}: init holds args and kwargs")
        args = [] if init.get("args") is None else init["args"]
        kwargs = {} if init.get("kwargs") is None else init["kwargs"]
        made = called(self.dotted(node, entries), args, kwargs, self.at(node))
        root = made.arguments.get("root")
        if made.arguments.get("download") and not self.places.hold(str(root), data=True):
            made.arguments["download"] = False
            made.hint = (
                "; a file may download into the working folder, --output and --data-path only; "
                + TRUST
            )
        return made

    def getattr(self, node: yaml.Node) -> Made:
        if not isinstance(node, yaml.SequenceNode) or len(node.value) != 2:
            raise UserError(f"{self.at(node)}: !getattr needs [object, name]")
        base, name = self.construct_sequence(node, deep=True)
        return member(base, name, self.at(node))

    def access(self, node: yaml.Node) -> Any:
        entries = self.entries(node)
        return item(entries.get("data"), entries.get("index_or_key"), self.at(node))

    def unknown(self, node: yaml.Node) -> Any:
        raise UserError(
            f"{self.at(node)}: the tag {node.tag[:100]!r} is not one that a file may use; {TRUST}"
        )


class Trusted(Reader):
    """Runs what a document says, with torchdistill's own functions."""


def _run(build: Callable[[Trusted, yaml.Node], Any]) -> Callable[[Trusted, yaml.Node], Any]:
    def construct(loader: Trusted, node: yaml.Node) -> Any:
        try:
            return build(loader, node)
        except (UserError, yaml.YAMLError):
            raise
        except Exception as error:  # whatever the objects that the file names raise
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(f"{loader.at(node)}: {node.tag} failed ({reason})") from None

    return construct


def _texts(loader: Reader, node: yaml.Node) -> list[str]:
    """The items of a list as texts; an object has none that is known before it is built."""
    if not isinstance(node, yaml.SequenceNode):
        raise UserError(f"{loader.at(node)}: {node.tag} needs a list of texts")
    items = loader.construct_sequence(node, deep=True)
    if any(isinstance(item, Made | list | dict) for item in items):
        raise UserError(f"{loader.at(node)}: {node.tag} needs a list of texts")
    texts = [str(item) for item in items]
    if sum(map(len, texts)) > MOST_BYTES:  # aliases repeat what they stand for
        raise UserError(f"{loader.at(node)}: more than {MOST_BYTES:,} characters in one text")
    return texts


def _text(change: Callable[[str], str]) -> Callable[[Reader, yaml.Node], str]:
    def construct(loader: Reader, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise UserError(f"{loader.at(node)}: {node.tag} needs a text")
        return change(node.value)

    return construct


def _joined(loader: Reader, node: yaml.Node) -> str:
    return "".join(_texts(loader, node))


def _path(loader: Reader, node: yaml.Node) -> str:
    return os.path.expanduser(os.path.join("", *_texts(loader, node)))


_EXPONENT = re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$")
Reader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))
Reader.add_constructor("!join", _joined)
Reader.add_constructor("!pathjoin", _path)
Reader.add_constructor("!expanduser", _text(os.path.expanduser))
Reader.add_constructor("!abspath", _text(os.path.abspath))

for _tag, _build in {
    MAP: Checked.section,
    "!import_get": Checked.import_get,
    "!import_call": Checked.import_call,
    "!getattr": Checked.getattr,
    "!access_by_index_or_key": Checked.access,
    None: Checked.unknown,
}.items():
    Checked.add_constructor(_tag, _build)

for _tag, _build in {
    "!import_get": yaml_util.yaml_import_get,
    "!import_call": yaml_util.yaml_import_call,
    "!import_call_method": yaml_util.yaml_import_call_method,
    "!call_method": yaml_util.yaml_call_method,
    "!getattr": yaml_util.yaml_getattr,
    "!setattr": yaml_util.yaml_setattr,
    "!access_by_index_or_key": yaml_util.yaml_access_by_index_or_key,
    "tag:yaml.org,2002:python/tuple": lambda loader, node: tuple(
        loader.construct_sequence(node, deep=True)
    ),
}.items():
    Trusted.add_constructor(_tag, _run(_build))
