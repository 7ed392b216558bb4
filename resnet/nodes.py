"""What a YAML document names, looked over node by node before anything is built."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml

from resnet.trust import check_module, check_name
from srd.errors import UserError

IMPORTS = ("!import_get", "!import_call", "!import_call_method")


PATHS = ("!join", "!pathjoin", "!expanduser", "!abspath")


ITEM = "!access_by_index_or_key"


PLAIN = tuple(
    f"tag:yaml.org,2002:{name}"
    for name in ("str", "int", "float", "bool", "null", "seq", "map", "merge")
)


def _walk(node: yaml.Node) -> Iterator[yaml.Node]:
    """Every node of a document once, aliases followed."""
    seen: set[int] = set()
    stack = [node]
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        if isinstance(node, yaml.MappingNode):
            stack += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            stack += node.value


def _check(node: yaml.Node, path: Path) -> None:
    where = _at(path, node)
    if node.tag in IMPORTS:
        check_name(*_imported(node, where), where)
    elif node.tag == "!getattr":
        names = node.value[1:2] if isinstance(node, yaml.SequenceNode) else []
        if not names or not isinstance(names[0], yaml.ScalarNode) or names[0].value[:1] == "_":
            raise UserError(f"{where}: !getattr may only name a public attribute, as plain text")
    elif node.tag not in (*PATHS, ITEM, *PLAIN):
        raise UserError(
            f"{where}: the tag {node.tag} is not one that a configuration may use; "
            "--trust-config runs a file that you have read and trust"
        )
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value == "repo_or_dir":
                raise UserError(
                    f"{_at(path, value)}: repo_or_dir runs the code of a repository: not supported"
                )


def _imported(node: yaml.Node, where: str) -> tuple[str, list[str]]:
    """The module and the attributes in it that torchdistill takes from an import's node."""
    entry = _scalars(node, ("key", "package", "class_name", "method_name"), where)
    names = [entry.get("key", "")]
    if node.tag == "!import_call_method":
        names = [entry.get("class_name", ""), entry.get("method_name", "")]
    if all(names) and "package" in entry:
        return entry["package"], names
    parts = (entry.get("package") or entry.get("key", "")).split(".")
    return ".".join(parts[: -len(names)]), parts[-len(names) :]


def _check_dependencies(node: yaml.Node | None, path: Path) -> None:
    if node is None or node.tag.endswith("null"):
        return
    items = node.value if isinstance(node, yaml.SequenceNode) else [node]
    for item in items:
        if not isinstance(item, yaml.ScalarNode):
            raise UserError(
                f"{_at(path, item)}: dependencies are module names, such as resnet.extension"
            )
        check_module(item.value, _at(path, item))


def _scalars(node: yaml.Node, keys: tuple[str, ...], where: str) -> dict[str, str]:
    """The plain-text values of `keys` in a mapping; a computed one is a UserError."""
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{where}: {node.tag} needs `key: ...`")
    found: dict[str, str] = {}
    for key, value in node.value:
        if key.value in ("<<",) or not isinstance(key, yaml.ScalarNode):
            raise UserError(f"{where}: {node.tag} must be written out, without merge keys")
        if key.value in keys:
            if not isinstance(value, yaml.ScalarNode) or not value.tag.endswith(":str"):
                raise UserError(f"{where}: {key.value} of {node.tag} must be plain text")
            found[key.value] = value.value
    return found


def _at(path: Path, node: yaml.Node) -> str:
    return f"{path}, line {node.start_mark.line + 1}"
