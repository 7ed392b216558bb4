"""Strict configuration: dataclass defaults, then a YAML file, then flags; every mistake is named.

The dataclasses are pydantic's, which check types and ranges; this file merges the layers and
turns pydantic's findings into one line that says which key, where it was set, and what fits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import yaml
from pydantic import BeforeValidator, TypeAdapter, ValidationError

from srd.errors import UserError, nearest

Amp = Annotated[  # of `srd.device.Precision`; YAML reads a bare `off` as false
    Literal["auto", "off", "bf16", "fp16", "fp64"],
    BeforeValidator(lambda value: "off" if value is False else value),
]

T = TypeVar("T")


class Layer(NamedTuple):
    """Settings from one place: `values` may be nested; later layers win."""

    source: str
    values: Mapping[str, Any]


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UserError: no such file, malformed (with its line), or not a mapping.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"cannot read the configuration {path}: {error.strerror or error}"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"the configuration {path} is not a text file") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where} is not YAML: {getattr(error, 'problem', error)}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold `key: value` lines, not a {type(content).__name__}")
    return content


def setting(text: str) -> dict[str, Any]:
    """`section.key=value` as a nested mapping; the value is read as YAML."""
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise UserError(f"--set {text}: expected section.key=value")
    try:
        parsed = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):  # ValueError: a date that does not exist
        raise UserError(f"--set {text}: the value is not YAML") from None
    return nested(key.strip(), parsed)


def nested(dotted: str, value: Any) -> dict[str, Any]:
    """`("a.b", 1)` as `{"a": {"b": 1}}`."""
    for part in reversed(dotted.split(".")):
        value = {part: value}
    return value


def build(cls: type[T], layers: Iterable[Layer]) -> T:
    """A `cls` from its defaults and `layers`, later ones winning.

    Raises:
        UserError: an unknown key (with the nearest known one), or a value of the wrong type or range.
    """
    layers = list(layers)
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = merge(merged, layer.values)
    try:
        config = TypeAdapter(cls).validate_python(merged)
    except ValidationError as error:
        raise UserError(_explain(error, cls, layers)) from None
    built = flatten(to_mapping(config))
    for key, value in flatten(merged).items():  # pydantic takes True for 1
        if isinstance(value, bool) and not isinstance(built[key], bool | str):
            source = _source(key.split("."), layers)
            raise UserError(f"{key}{source} should be a number, not {value}")
    return config


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the entries of `over` in their places, mappings merged key by key."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merge(result[key], value) if both else value
    return result


def _explain(error: ValidationError, cls: type, layers: list[Layer]) -> str:
    known = list(dotted_keys(cls))
    lines = []
    for problem in error.errors()[:3]:
        loc = [part for part in problem["loc"] if isinstance(part, str)]
        key = ".".join(loc)
        where = _source(loc, layers)
        if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            lines.append(f"unknown key {key!r}{where}{_suggest(key, known)}")
        else:
            message = problem["msg"].removeprefix("Input ").lower()
            lines.append(f"{key}{where} {message}, not {problem['input']!r}")
    return "; ".join(lines)


def _source(loc: list[str], layers: list[Layer]) -> str:
    """`" in <source>"` of the last layer that sets `loc`, or `""`."""
    source = next((layer.source for layer in reversed(layers) if _holds(layer.values, loc)), "")
    return f" in {source}" if source else ""


def _suggest(key: str, known: list[str]) -> str:
    """The nearest known key or section: by its whole dotted name, else by its last part."""
    sections = {name.split(".")[0] for name in known if "." in name}
    if "." not in key:
        by_last_part = {name.rsplit(".", 1)[-1]: name for name in known}
        if key in by_last_part:
            return f" (did you mean {by_last_part[key]!r}?)"
    return nearest(key, [*known, *sections])


def _holds(values: Any, loc: list[str]) -> bool:
    for part in loc:
        if not isinstance(values, Mapping) or part not in values:
            return False
        values = values[part]
    return True


def dotted_keys(cls: Any, prefix: str = "") -> Iterator[str]:
    """Every leaf field of a nested configuration class, as `section.key`."""
    hints = {field.name: field for field in dataclasses.fields(cls)}
    for name, field in hints.items():
        factory = field.default_factory
        if isinstance(factory, type) and dataclasses.is_dataclass(factory):
            yield from dotted_keys(factory, f"{prefix}{name}.")
        else:
            yield prefix + name


def to_mapping(config: Any) -> dict[str, Any]:
    """A configuration as plain mappings, lists and scalars, ready for YAML or a checkpoint."""
    return _plain(dataclasses.asdict(config))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def dump_yaml(values: Mapping[str, Any]) -> str:
    """YAML text that `read_yaml` reads back to the same values."""
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as `{"section.key": value}`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def differences(old: Mapping[str, Any], new: Mapping[str, Any], ignore: Iterable[str]) -> list[str]:
    """`"key: old -> new"` for every leaf that differs, except keys that start with one of `ignore`."""
    before, after = flatten(old), flatten(new)
    skip = tuple(ignore)
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key) and not key.startswith(skip)
    ]
