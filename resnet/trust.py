"""Holds a YAML file to what configurations may name (`resnet.allowed`), before anything is built.

torchdistill's files can import and call anything. Here a name is a name on a list, an argument one that
the list gives it, and a value plain (numbers, words, lists of them) or an object that is on a list
itself: nothing that could be a file, an address, a piece of Python or the name of another object.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import EnumMeta
from functools import cache
from importlib import import_module
from typing import Any

import torchvision
from torch.utils.data import Dataset, Subset

from resnet import allowed
from srd.data.folder_images import ClassFolders
from srd.errors import UserError, nearest
from srd.files.limits import LIMITS

TRUST = "--trust-config runs a file that you have read and trust"
# What a plain text may be: a word, a module's path, a mode; no file, no address, nothing hidden.
WORD = re.compile(r"[+-]?[A-Za-z0-9.][\w.+=()-]{0,199}")
# Which objects an argument takes, by its name; every other takes plain values only.
OBJECTS = {
    "transform": "transform",
    "target_transform": "transform",
    "transforms": "transform",
    "dataset": "data set",
    "interpolation": "interpolation",
    "policy": "policy",
    "dtype": "dtype",
    "weights": "weights",
}
# What becomes pixels or classes: the largest number that may stand there.
MOST = {
    **dict.fromkeys(("image_size", "input_size", "target_size", "max_size"), LIMITS.image_size),
    **dict.fromkeys(("padding", "kernel_size"), LIMITS.image_size),
    "num_classes": LIMITS.classes,
}
# Texts that are no words, and that nothing opens: a folder of pictures is read as pictures.
FREE = ("root", "dataset_id")


@dataclass(eq=False)
class Made:
    """What an allowed name stands for, before it is built.

    Args:
        kind: of the result, as in `OBJECTS`.
        make: called with the arguments, built, by their names.
        result: the type that it must give.
        hint: what to do where it cannot be built.
    """

    kind: str
    name: str
    where: str
    make: Callable[..., Any]
    result: type
    arguments: dict[str, Any] = field(default_factory=dict)
    hint: str = ""


def called(name: str, args: Any, kwargs: Any, where: str) -> Made:
    """The call of an allowed name.

    Raises:
        UserError: the name is not on the list, or an argument is not one of its own, or not plain.
    """
    table = _calls()
    if name not in table:
        raise _unlisted(name, table, where)
    kind, arguments, result = table[name]
    make = _imported(name)
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise UserError(f"{where}: {name} needs `init: {{args: [...], kwargs: {{...}}}}`")
    given = _bound(make, name, args, kwargs, where)
    check_arguments(given, arguments, name, where)
    if kind == "transform":  # of a data set, `size` is a number of images
        _check_size(given.get("size"), "size", LIMITS.image_size, where)
    return Made(kind, name, where, make, result or make, given)


def named(name: str, where: str) -> Made:
    """An allowed name that is not called."""
    table = _gets()
    if name not in table:
        raise _unlisted(name, table, where)
    value = _imported(name)
    return Made(table[name], name, where, lambda: value, type(value))


def member(base: Any, name: Any, where: str) -> Made:
    """A member of an allowed enumeration, such as a model's weights."""
    if not isinstance(base, Made) or not issubclass(base.result, EnumMeta):
        raise UserError(f"{where}: !getattr names a member of weights or modes only; {TRUST}")
    enumeration = base.make()
    members = enumeration.__members__
    if not isinstance(name, str) or name not in members:
        hint = nearest(str(name), members)
        raise UserError(f"{where}: {base.name} has no {str(name)[:100]!r}{hint}")
    member = members[name]
    return Made(base.kind, f"{base.name}.{name}", where, lambda: member, enumeration)


def item(data: Any, index: Any, where: str) -> Any:
    """An element of a plain list or mapping, or one of the parts of a split data set."""
    if isinstance(data, Made) and data.kind == "data sets" and type(index) is int:
        name, arguments = f"{data.name}[{index}]", {"data": data, "index": index}
        return Made("data set", name, where, lambda data, index: data[index], Subset, arguments)
    if isinstance(data, list | dict) and isinstance(index, int | str):
        try:
            return data[index]  # type: ignore[index]
        except (LookupError, TypeError):
            raise UserError(f"{where}: there is no {str(index)[:100]!r}") from None
    raise UserError(f"{where}: only lists, mappings and split data sets have items; {TRUST}")


def built(value: Any, memo: dict[int, Any]) -> Any:
    """A checked document, its objects built, each once; `memo` is by identity.

    Raises:
        UserError: what an object says against its arguments, or what it gives is not its own.
    """
    if not isinstance(value, Made | dict | list):
        return value
    if id(value) not in memo:
        if isinstance(value, Made):
            memo[id(value)] = _make(value, built(value.arguments, memo))
        elif isinstance(value, dict):
            memo[id(value)] = {key: built(inner, memo) for key, inner in value.items()}
        else:
            memo[id(value)] = [built(inner, memo) for inner in value]
    return memo[id(value)]


def _make(value: Made, arguments: dict[str, Any]) -> Any:
    try:
        result = value.make(**arguments)
    except UserError:
        raise
    except Exception as error:  # whatever the object raises
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{value.where}: building {value.name} failed ({reason}){value.hint}"
        ) from None
    if not isinstance(result, value.result):
        raise UserError(f"{value.where}: {value.name} gave a {type(result).__name__}; {TRUST}")
    return result


def check_arguments(
    given: Mapping[Any, Any], known: tuple[str, ...] | None, name: str, where: str
) -> None:
    """Raise a UserError unless `name` may be given these arguments, with these values.

    Args:
        known: None for what checks the names itself: this project's own classes.
    """
    for argument, value in given.items():
        if known is not None and argument not in known:
            shown = str(argument)[:100]
            raise UserError(
                f"{where}: {name}.{shown if shown.isprintable() else repr(shown)} is not an argument "
                "that a file may set"
                f"{nearest(str(argument), known)}; {TRUST}"
            )
        check_value(value, str(argument), where)


def check_value(value: Any, name: str, where: str) -> None:
    """Raise a UserError unless `value` is plain, or an object that `name` takes."""
    if isinstance(value, Made):
        if OBJECTS.get(name) != value.kind:
            raise UserError(f"{where}: {name} cannot be {value.name}; {TRUST}")
    elif isinstance(value, dict):
        for key, inner in value.items():
            check_value(str(key), "key", where)
            check_value(inner, str(key), where)
    elif isinstance(value, list):
        for inner in value:
            check_value(inner, name, where)
    elif value is not None and name in allowed.SWITCHES:
        if not isinstance(value, bool):
            raise UserError(f"{where}: {name} should be true or false, not {str(value)[:100]!r}")
    elif isinstance(value, bool) and name not in allowed.EITHER:
        raise UserError(f"{where}: {name} cannot be {str(value).lower()}: it is no switch")
    elif isinstance(value, int | float) and name in MOST:
        _check_size(value, name, MOST[name], where)
    elif value is not None and OBJECTS.get(name) in ("transform", "data set"):
        raise UserError(f"{where}: {name} cannot be {str(value)[:100]!r}: it is built in the file")
    elif isinstance(value, str):
        hidden = ".." in value or any(part[:1] == "_" for part in value.split("."))
        if value and name not in FREE and (hidden or not WORD.fullmatch(value)):
            raise UserError(
                f"{where}: {name} is {value[:100]!r}: a file may give words here, no path, "
                f"address or code; {TRUST}"
            )
    elif not isinstance(value, int | float | None):
        raise UserError(f"{where}: {name} cannot be a {type(value).__name__}")


def _check_size(value: Any, name: str, most: int, where: str) -> None:
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, int | float) and not number <= most:
            raise UserError(f"{where}: {name} is {number}: {most:,} are the most")


def forbid_pickled_code() -> None:
    """Make every `torch.load` of this process read weights only, whatever its caller asks for.

    torchvision's and torchdistill's own loading of weights runs what a file holds, in some versions.
    """
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"


def own(registered: Any) -> bool:
    """Whether this project registered it: `resnet.extension` may be named as a whole."""
    return getattr(registered, "__module__", None) == allowed.OWN


@cache
def _calls() -> dict[str, tuple[str, tuple[str, ...] | None, type | None]]:
    """What `!import_call` may call: kind, arguments, and the type of what a function returns."""
    ours: dict[str, tuple[str, ...] | None] = {
        f"{allowed.OWN}.{name}": None
        for name, value in vars(import_module(allowed.OWN)).items()
        if own(value) and inspect.isclass(value) and issubclass(value, Dataset)
    }
    compose = torchvision.transforms.Compose
    return {
        **{name: ("transform", given, None) for name, given in allowed.TRANSFORMS.items()},
        **{name: ("data set", given, None) for name, given in allowed.DATASETS.items()},
        **{name: ("data set", given, None) for name, given in ours.items()},
        **{name: ("data sets", given, list) for name, given in allowed.SPLITS.items()},
        "timm.data.create_transform": (
            "transform",
            allowed.TRANSFORMS["timm.data.create_transform"],
            compose,
        ),
    }


@cache
def _gets() -> dict[str, str]:
    """What `!import_get` may name, with its kind; the weights of torchvision's classifiers too."""
    models = torchvision.models
    every = [models.get_model_weights(name) for name in models.list_models(models)]
    homes = {f"{weights.__module__}.{weights.__name__}": "weights" for weights in every}
    return {
        **allowed.GETS,
        **homes,
        **{f"torchvision.models.{weights.__name__}": "weights" for weights in every},
    }


def _imported(name: str) -> Any:
    if name == "torchvision.datasets.ImageFolder":
        return ClassFolders  # the same, which links cannot lead in circles
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)


def _bound(
    make: Callable[..., Any], name: str, args: list[Any], kwargs: dict[Any, Any], where: str
) -> dict[str, Any]:
    """All arguments by their names."""
    signature = inspect.signature(make)
    try:
        given = dict(signature.bind(*args, **kwargs).arguments)
    except TypeError as error:
        raise UserError(f"{where}: {name}: {error}") from None
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            given |= given.pop(parameter.name, {})
        elif parameter.kind is parameter.VAR_POSITIONAL and parameter.name in given:
            raise UserError(f"{where}: {name} takes arguments by name")
    return given


def _unlisted(name: str, known: Mapping[str, Any], where: str) -> UserError:
    if name in _calls() or name in _gets():
        tag = "!import_call" if name in _calls() else "!import_get"
        return UserError(f"{where}: {name} goes with {tag} only; {TRUST}")
    return UserError(
        f"{where} names {name[:100]!r}, which is not on the list of resnet/allowed.py"
        f"{nearest(name[:100], known)}; {TRUST}"
    )
