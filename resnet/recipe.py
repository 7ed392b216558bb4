"""Reads a torchdistill YAML file: checked first, then built."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic.dataclasses import dataclass
from torchdistill.common import yaml_util

from resnet.nodes import ITEM, PLAIN, _at, _check, _check_dependencies, _walk
from resnet.trust import check_object, forbid_pickled_code
from srd.config.fields import Saving
from srd.config.layers import Amp, Layer, build
from srd.errors import UserError, nearest
from srd.strict import STRICT

SECTIONS = ("dependencies", "root_dir", "datasets", "models", "train", "test", "run")
# Where files are and how a machine is used: not part of the recipe.
NOT_RECIPE_KEYS = {
    "root",
    "root_dir",
    "num_workers",
    "pin_memory",
    "src_ckpt",
    "dst_ckpt",
    "log_freq",
}
NOT_RECIPE = tuple(f"run.{field.name}" for field in dataclasses.fields(Saving))


@dataclass(config=STRICT)
class Run(Saving):
    """Our own section of the file, `run:`; all of it optional."""

    amp: Amp = "off"
    channels_last: bool = False
    deterministic: bool = False
    global_statistics: bool = True  # of the whole batch; off: each process's share of it


class Recipe(NamedTuple):
    """A configuration, built: torchdistill's sections, our `run`, the text, and its plain form."""

    config: dict[str, Any]
    run: Run
    text: str
    settings: dict[str, Any]


class _Loader(yaml.FullLoader):
    """FullLoader with torchdistill's tags, and `1e-4` read as a number.

    Where `path` is set, what the file reaches through an object is checked (`resnet.trust`).
    """

    path: Path | None = None


def _checked(build: Callable[[_Loader, yaml.Node], Any]) -> Callable[[_Loader, yaml.Node], Any]:
    """A constructor that refuses what a file may not reach."""

    def construct(loader: _Loader, node: yaml.Node) -> Any:
        found = build(loader, node)
        if loader.path is not None:
            check_object(found, f"a {type(found).__name__}", _at(loader.path, node))
        return found

    return construct


_EXPONENT = re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))
for _tag, _build in {
    "!join": yaml_util.yaml_join,
    "!pathjoin": yaml_util.yaml_pathjoin,
    "!expanduser": yaml_util.yaml_expanduser,
    "!abspath": yaml_util.yaml_abspath,
    "!import_get": yaml_util.yaml_import_get,
    "!import_call": yaml_util.yaml_import_call,
    "!import_call_method": yaml_util.yaml_import_call_method,
    "!call_method": yaml_util.yaml_call_method,
    "!getattr": _checked(yaml_util.yaml_getattr),
    "!setattr": yaml_util.yaml_setattr,
    ITEM: _checked(yaml_util.yaml_access_by_index_or_key),
}.items():
    _Loader.add_constructor(_tag, _build)


def read_recipe(path: str | Path, data_path: str | None = None, trusted: bool = False) -> Recipe:
    """Read, check and build a configuration.

    Args:
        data_path: takes the place of the file's `root_dir`; so does the variable SRD_DATA.
        trusted: skip the check of what the file names. Otherwise this process reads weights only,
            from here on (`resnet.trust.forbid_pickled_code`).

    Raises:
        UserError: no file, malformed (with its line), an unknown section or `run` key, a name that
            a configuration may not use (with its line), or objects that cannot be built.
    """
    path = Path(path).expanduser()
    text = _read(path)
    root = _compose(text, path)
    sections = {key.value: value for key, value in root.value if isinstance(key, yaml.ScalarNode)}
    for key, _ in root.value:
        if key.value not in SECTIONS:
            raise UserError(
                f"{_at(path, key)}: unknown section {key.value!r}{nearest(key.value, SECTIONS)}"
            )
    if missing := [
        name for name in ("datasets", "models", "train", "test") if name not in sections
    ]:
        raise UserError(
            f"{path} has no section {missing[0]!r}: is it a torchdistill configuration?"
        )
    if not trusted:
        forbid_pickled_code()
        for node in _walk(root):
            _check(node, path)
        _check_dependencies(sections.get("dependencies"), path)
    settings = _plain(root)
    if override := data_path or os.environ.get("SRD_DATA"):
        if not isinstance(sections.get("root_dir"), yaml.ScalarNode):
            raise UserError(f"{path} has no `root_dir:` line whose place --data-path could take")
        sections["root_dir"].value = override
    run = build(Run, [Layer(f"{path}, run", settings.get("run") or {})])
    return Recipe(_construct(root, path, trusted), run, text, settings)


def read_settings(path: str | Path) -> dict[str, Any]:
    """A configuration in its plain form (`Recipe.settings`); nothing in it is built or run."""
    return _plain(_compose(_read(Path(path)), Path(path)))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise UserError(f"cannot read the configuration {path}: {reason}") from None


def _compose(text: str, path: Path) -> yaml.MappingNode:
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line} is not YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{path} must hold `key: value` lines")
    return root


def _construct(root: yaml.Node, path: Path, trusted: bool) -> dict[str, Any]:
    loader = _Loader("")
    loader.path = None if trusted else path
    try:
        return loader.construct_document(root)
    except UserError:
        raise
    except Exception as error:  # whatever the objects that the file names raise when they are built
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path}: building what it names failed ({reason})") from None
    finally:
        loader.dispose()


def _plain(node: yaml.Node) -> Any:
    """A document as plain values, tags as keys, without what is not part of the recipe."""
    if isinstance(node, yaml.MappingNode):
        pairs = {
            str(key.value): _plain(value)
            for key, value in node.value
            if key.value not in NOT_RECIPE_KEYS
        }
        return pairs if node.tag in PLAIN else {node.tag: pairs}
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item) for item in node.value]
    loader = _Loader("")
    try:
        return loader.construct_object(node) if node.tag in PLAIN else f"{node.tag} {node.value}"
    finally:
        loader.dispose()
