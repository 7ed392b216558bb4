"""Strict configuration: dataclass defaults, then a YAML file, then flags; every mistake is named.

The dataclasses are pydantic's, which check types and ranges; this file merges the layers and
turns pydantic's findings into one line that says which key, where it was set, and what fits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args

import yaml
from pydantic import BeforeValidator, TypeAdapter, ValidationError

from srd.config.documents import load, read_text
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
    content = load(read_text(path), str(path))
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
    return nested(key.strip(), load(value, f"--set {key}"))


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
        if not isinstance(layer.values, Mapping):
            raise UserError(
                f"{layer.source} must hold `key: value` lines, not {_shown(layer.values)}"
            )
        merged = merge(merged, layer.values)
    try:
        config = TypeAdapter(cls).validate_python(merged)
    except ValidationError as error:
        raise UserError(_explain(error, cls, layers, merged)) from None
    for loc, value in _booleans_as_numbers(merged, config):
        raise UserError(f"{'.'.join(loc)}{_source(loc, layers)} should be a number, not {value}")
    return config


def _booleans_as_numbers(
    values: Mapping[str, Any], built: Any, loc: tuple[str, ...] = ()
) -> Iterator[tuple[list[str], bool]]:
    """Where `values` hold a boolean of which pydantic made a number."""
    for key, value in values.items():
        own = built.get(key) if isinstance(built, Mapping) else getattr(built, str(key), None)
        if isinstance(value, Mapping):
            yield from _booleans_as_numbers(value, own, (*loc, key))
        elif isinstance(value, bool) and isinstance(own, int | float) and type(own) is not bool:
            yield [*loc, key], value


def _shown(value: Any, most: int = 80) -> str:
    """A value in a message: on one line, and not longer than one reads."""
    text = " ".join(repr(value).split())
    return text if len(text) <= most else text[: most - 3] + "..."


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the entries of `over` in their places, mappings merged key by key."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merge(result[key], value) if both else value
    return result


def moved(values: Mapping[str, Any], places: Mapping[str, str]) -> dict[str, Any]:
    """`values` with the entries that `places` names (dotted, old to new) at their new places."""
    result = dict(values)
    for old, new in places.items():
        section, key = old.split(".")
        inner = result.get(section)
        if isinstance(inner, Mapping) and key in inner:
            rest = {name: value for name, value in inner.items() if name != key}
            result[section] = merge(rest, nested(new, inner[key])[section])
    return result


def _explain(error: ValidationError, cls: type, layers: list[Layer], merged: Any) -> str:
    known = list(dotted_keys(cls, merged))
    lines = []
    for problem in error.errors()[:3]:
        loc, kind = _place(problem["loc"], merged)
        key, where, given = ".".join(loc), _source(loc, layers), problem["input"]
        context = problem.get("ctx", {})
        match problem["type"]:
            case "unexpected_keyword_argument" | "extra_forbidden":
                hint = _suggest(key, known, of_its_section=kind is not None)
                lines.append(f"unknown key {key!r}{where}{f' for {kind!r}' if kind else ''}{hint}")
            case "union_tag_invalid":
                names = [name.strip("'") for name in context["expected_tags"].split(", ")]
                hint = f"{nearest(context['tag'], names)}: one of {', '.join(names)}"
                lines.append(f"unknown {key} {context['tag']!r}{where}{hint}")
            case "union_tag_not_found":
                lines.append(
                    f"{key}{where} should have a {context['discriminator']}, not {_shown(given)}"
                )
            case "dataclass_type" | "dict_type":
                lines.append(f"{key}{where} should hold `key: value` lines, not {_shown(given)}")
            case "missing" if isinstance(problem["loc"][-1], int):
                lines.append(f"{key}{where} should hold more values than {_shown(given)}")
            case "missing":
                lines.append(f"{key} is missing{where}")
            case _:
                message = problem["msg"].removeprefix("Input ").removeprefix("Value error, ")
                lines.append(f"{key}{where} {message[0].lower()}{message[1:]}, not {_shown(given)}")
    return "; ".join(lines)


def _place(parts: Iterable[Any], values: Any) -> tuple[list[str], str | None]:
    """The keys on the way to a problem, and the name of the kind of a section that has several.

    pydantic's own way also has list indices, and that name as if it were a key.
    """
    keys: list[str] = []
    kind = None
    names = [part for part in parts if isinstance(part, str)]
    for i, name in enumerate(names):
        if isinstance(values, Mapping) and (name in values or i == len(names) - 1):
            keys.append(name)
            values = values.get(name)
        else:
            kind = name
    return keys, kind


def _source(loc: list[str], layers: list[Layer]) -> str:
    """`" in <source>"` of the last layer that sets `loc`, or `""`."""
    source = next((layer.source for layer in reversed(layers) if _holds(layer.values, loc)), "")
    return f" in {source}" if source else ""


def _suggest(key: str, known: list[str], *, of_its_section: bool) -> str:
    """The nearest known key or section: by its whole dotted name, else by its last part."""
    section, _, last = key.rpartition(".")
    if of_its_section:
        own = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == section]
        own = [name for name in own if name != last]  # of another kind of the section
        return nearest(last, own).replace("'", f"'{section}.", 1)
    if not section:
        by_last_part = {name.rsplit(".", 1)[-1]: name for name in known}
        if key in by_last_part:
            return f" (did you mean {by_last_part[key]!r}?)"
    sections = {place for name in known if "." in name for place in sections_of(name)}
    return nearest(key, [*known, *sorted(sections)])


def sections_of(name: str) -> list[str]:
    """`a` and `a.b` of `a.b.c`."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _holds(values: Any, loc: list[str]) -> bool:
    for part in loc:
        if not isinstance(values, Mapping) or part not in values:
            return False
        values = values[part]
    return True


def dotted_keys(cls: Any, values: Any = None, prefix: str = "") -> Iterator[str]:
    """Every leaf field of a nested configuration class, as `section.key`.

    Args:
        values: a configuration's, which name the kinds of sections that come in several kinds.
    """
    for field in dataclasses.fields(cls):
        own = values.get(field.name) if isinstance(values, Mapping) else None
        if (section := _section(cls, field, own)) is not None:
            yield from dotted_keys(section, own, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def _section(cls: Any, field: dataclasses.Field[Any], values: Any) -> Any:
    """The class of a section, of the kind that `values` name; None for a leaf."""
    name = values.get("name") if isinstance(values, Mapping) else values
    annotation = cls.__pydantic_fields__[field.name].annotation
    kinds = [kind for kind in (annotation, *get_args(annotation)) if dataclasses.is_dataclass(kind)]
    for kind in kinds:
        if len(kinds) == 1 or name == getattr(kind, "name", None):
            return kind
    factory = field.default_factory
    return factory if isinstance(factory, type) and dataclasses.is_dataclass(factory) else None


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
